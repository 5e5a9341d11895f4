"""Scores of forecasts against closed forms: CRPS of a Gaussian, biases of quantile levels, exact baselines."""

import math

import numpy as np
import pytest

from diffusion_jax.evaluation import forecasts

RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal(200_000)


def test_gaussian_crps_is_the_integral_of_the_squared_difference_to_the_step():
    x = np.linspace(-12, 12, 200_001)
    cdf = 0.5 * (1 + np.vectorize(math.erf)((x - 0.3) / 1.7 / math.sqrt(2)))
    for y in (-2.0, 0.3, 1.1):
        integral = np.trapezoid((cdf - (x >= y)) ** 2, x)
        assert forecasts.gaussian_crps(0.3, 1.7, y) == pytest.approx(integral, rel=1e-4)
    assert forecasts.gaussian_crps(0.0, 1.0, 0.0) == pytest.approx(0.23369, abs=1e-5)


def test_the_fair_estimator_is_unbiased_and_the_other_is_too_large_by_one_over_m():
    """A calibrated N(0, 1) has the expected CRPS 1 / sqrt(pi) for any number of samples."""
    y, m = NORMAL[:20_000], 10
    samples = RNG.standard_normal((m, len(y)))
    exact = 1 / math.sqrt(math.pi)
    assert forecasts.crps(samples, y).mean() == pytest.approx(exact, abs=0.01)
    assert forecasts.crps(samples, y, fair=False).mean() == pytest.approx(exact * (1 + 1 / m), abs=0.01)
    assert forecasts.crps(samples, y, fair=False).mean() > exact + 0.03


def test_estimators_of_given_samples_are_their_definitions():
    samples, y = RNG.standard_normal((7, 3, 2)), RNG.standard_normal((3, 2))
    pairs = np.abs(samples[:, None] - samples[None])
    error = np.abs(samples - y).mean(0)
    np.testing.assert_allclose(forecasts.crps(samples, y), error - pairs.sum((0, 1)) / (2 * 7 * 6))
    np.testing.assert_allclose(forecasts.crps(samples, y, fair=False), error - pairs.mean((0, 1)) / 2)
    np.testing.assert_allclose(forecasts.crps(samples[:1], y), np.abs(samples[0] - y))
    vector = forecasts.energy_score(samples, y)
    norms = np.linalg.norm(samples[:, None] - samples[None], axis=-1).sum((0, 1)) / (2 * 7 * 6)
    np.testing.assert_allclose(vector, np.linalg.norm(samples - y, axis=-1).mean(0) - norms)
    np.testing.assert_allclose(forecasts.energy_score(samples[..., :1], y[..., :1]), forecasts.crps(samples, y)[:, 0])


@pytest.mark.parametrize(("levels", "value"), [(forecasts.NINETEEN, 0.5914), (forecasts.NINE, 0.6173)])
def test_quantile_levels_overestimate_the_crps_of_a_calibrated_normal(levels, value):
    """.5642 is exact; a point forecast, sqrt(2 / pi), is unaffected."""
    exact = np.quantile(NORMAL, levels).reshape(-1, 1)
    assert forecasts.quantile_losses(exact, levels, NORMAL).mean() == pytest.approx(value, abs=0.004)
    point = np.zeros((len(levels), 1))
    losses = forecasts.quantile_losses(point, levels, NORMAL)
    assert losses.mean() == pytest.approx(math.sqrt(2 / math.pi), abs=0.006)


def test_many_levels_are_the_crps_of_the_samples():
    samples, y = RNG.standard_normal((400, 1, 5)), RNG.standard_normal((1, 5))
    levels = tuple((k + 0.5) / 2000 for k in range(2000))
    found = forecasts.quantile_crps(samples, y, levels=levels) * np.abs(y).sum()
    assert found == pytest.approx(forecasts.crps(samples, y, fair=False).sum(), rel=0.01)


def test_scores_scale_with_the_series_and_a_sum_of_one_channel_is_itself():
    samples, y = RNG.standard_normal((50, 6, 1)), RNG.standard_normal((6, 1))
    for score in (forecasts.quantile_crps, forecasts.crps_sum, forecasts.coverage):
        assert score(3 * samples, 3 * y) == pytest.approx(score(samples, y))
    assert forecasts.crps_sum(samples, y) == pytest.approx(forecasts.quantile_crps(samples, y))
    np.testing.assert_allclose(forecasts.crps(3 * samples, 3 * y), 3 * forecasts.crps(samples, y))
    both = np.concatenate([samples, -samples], -1)
    assert forecasts.crps_sum(both, np.concatenate([y, 1 - y], -1)) == pytest.approx(1.0)


def test_a_calibrated_forecast_covers_and_a_narrow_one_does_not():
    y, samples = NORMAL[:4000], RNG.standard_normal((200, 4000))
    assert forecasts.coverage(samples, y, level=0.9) == pytest.approx(0.9, abs=0.02)
    assert forecasts.coverage(samples / 2, y, level=0.9) < 0.65


def test_missing_and_unasked_values_do_not_count():
    samples, y = RNG.standard_normal((20, 2, 3)), RNG.standard_normal((2, 3))
    where = np.array([[True, True, False], [True, True, True]])
    hole = np.where(where, y, np.nan)
    for score in (forecasts.quantile_crps, forecasts.coverage):
        assert score(samples, hole) == pytest.approx(score(samples, y, where))
    assert forecasts.nd(samples[0], hole) == pytest.approx(forecasts.nd(samples[0], y, where))
    with pytest.raises(ValueError, match="nothing to compare"):
        forecasts.nrmse(samples[0], y, np.zeros_like(where))


def test_the_seasonal_naive_forecast_of_a_periodic_series_has_no_error():
    steps = np.arange(60)
    series = np.stack([np.sin(2 * np.pi * steps / 6), np.cos(2 * np.pi * steps / 12)], -1)[None]
    past, future = series[:, :48], series[:, 48:]
    naive = forecasts.seasonal_naive(past, 12, 12)
    np.testing.assert_allclose(naive, future, atol=1e-12)
    assert forecasts.nd(naive, future) == pytest.approx(0, abs=1e-9)
    assert forecasts.nrmse(naive, future) == pytest.approx(0, abs=1e-9)
    assert forecasts.mase(naive, future, past, 1) == pytest.approx(0, abs=1e-9)
    assert forecasts.mase(naive + 1, future, past, 1) > 1
    with pytest.raises(ValueError, match=r"shorter than data\.season=50"):
        forecasts.seasonal_naive(past, 12, 50)


def test_ridge_finds_a_linear_recursion_and_interpolation_a_line():
    x = np.zeros((300, 20, 1))
    x[:, 0, 0] = RNG.standard_normal(300)
    x[:, 1, 0] = RNG.standard_normal(300)
    for t in range(2, 20):
        x[:, t] = 1.6 * x[:, t - 1] - 0.8 * x[:, t - 2]
    weights = forecasts.ridge(x, 4, penalty=1e-6)
    np.testing.assert_allclose(forecasts.ridge_forecast(weights, x[:, :-4]), x[:, -4:], atol=1e-3)
