import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from diffusion_jax.losses import times, weightings
from diffusion_jax.processes import EDM, VE, VP, log_snr

N = 5000
KEY = jax.random.key(0)


def test_uniform_times():
    t, weight = times.uniform(0.1, 0.7)(VP(), KEY, N)
    assert stats.kstest(t, stats.uniform(0.1, 0.6).cdf).pvalue > 1e-3
    np.testing.assert_array_equal(weight, 1)


def test_low_discrepancy_times_fill_every_stratum_once():
    n = 64
    t, weight = times.low_discrepancy(0.2, 1.0)(VP(), KEY, n)
    strata = np.sort(np.floor((np.asarray(t, np.float64) - 0.2) / 0.8 * n + 1e-3)) % n
    assert len(np.unique(strata)) == n
    np.testing.assert_allclose(np.diff(np.sort(t)), 0.8 / n, rtol=1e-3)
    np.testing.assert_array_equal(weight, 1)


def test_each_low_discrepancy_time_is_uniform_and_the_keys_matter():
    t = jax.vmap(lambda key: times.low_discrepancy(0.0, 1.0)(VP(), key, 4)[0])(jax.random.split(KEY, 2000))
    for r in range(4):
        assert stats.kstest(np.asarray(t[:, r]), "uniform").pvalue > 1e-3


def test_discrete_times_are_uniform_over_the_grid_points():
    t, weight = times.discrete(10)(VP(), KEY, N)
    values, counts = np.unique(np.asarray(t), return_counts=True)
    np.testing.assert_allclose(values, np.arange(1, 11) / 10, rtol=1e-6)
    assert stats.chisquare(counts).pvalue > 1e-3
    np.testing.assert_array_equal(weight, 1)


def test_level_times_are_uniform_over_the_levels():
    t, weight = times.levels(5)(VE(), KEY, N)
    values, counts = np.unique(np.asarray(t), return_counts=True)
    np.testing.assert_allclose(values, np.arange(5) / 4)
    assert stats.chisquare(counts).pvalue > 1e-3
    np.testing.assert_array_equal(weight, 1)


def test_level_times_refuse_a_single_level():
    with pytest.raises(ValueError, match="num_levels is 1; it must be at least 2"):
        times.levels(1)


@pytest.mark.parametrize("process", [EDM(), VP()], ids=["edm", "vp"])
def test_log_normal_times_have_normal_log_sigma(process):
    t, weight = times.log_normal(-1.2, 1.2)(process, KEY, N)
    log_sigma = -np.asarray(log_snr(process, t), np.float64) / 2
    assert log_sigma.mean() == pytest.approx(-1.2, abs=4 * 1.2 / N**0.5)
    assert log_sigma.std() == pytest.approx(1.2, rel=4 / (2 * N) ** 0.5)
    assert stats.kstest(log_sigma, stats.norm(-1.2, 1.2).cdf).pvalue > 1e-3
    np.testing.assert_array_equal(weight, 1)


def test_log_normal_times_stay_in_range():
    t, _ = times.log_normal(5.0, 10.0)(EDM(), KEY, N)
    assert float(t.min()) >= 0 and float(t.max()) <= 1


def test_logit_normal_times():
    t, weight = times.logit_normal(0.3, 0.8)(VP(), KEY, N)
    u = np.asarray(t, np.float64)
    assert stats.kstest(np.log(u / (1 - u)), stats.norm(0.3, 0.8).cdf).pvalue > 1e-3
    np.testing.assert_array_equal(weight, 1)


def test_importance_times_are_unbiased_and_of_lower_variance():
    """The mean over uniform times of w(t) / SNR(t) h(t), where h stands for the mean squared error of eps."""
    process, t_min, t_max = VP(), 1e-3, 1.0
    weighting = weightings.likelihood()

    def value(t):
        return weighting(process, t) / weightings.snr(process, t) * (1 + jnp.sin(5 * t)) / 2

    grid = np.geomspace(t_min, t_max, 200_001)
    exact = integrate.simpson(np.asarray(value(jnp.asarray(grid, jnp.float32)), np.float64), x=grid) / (t_max - t_min)
    t, weight = times.importance(weighting, t_min, t_max)(process, KEY, N)
    assert float(t.min()) >= t_min * 0.999 and float(t.max()) <= t_max
    estimates = np.asarray(weight * value(t), np.float64)
    assert estimates.mean() == pytest.approx(exact, abs=4 * estimates.std() / N**0.5 + 1e-4 * exact)
    uniform, _ = times.uniform(t_min, t_max)(process, KEY, N)
    assert estimates.std() < 0.5 * np.std(np.asarray(value(uniform)))


def test_importance_times_are_unbiased_for_any_table():
    """A table of 5 entries is far from the density, whose inverse as a weight would give 1.37 instead of 1."""
    t, weight = times.importance(weightings.likelihood(), 1e-3, 1.0, num_points=5)(VP(), KEY, N)
    for moment in (0, 1, 2):
        estimates = np.asarray(weight * t**moment, np.float64)
        exact = (1 - 1e-3 ** (moment + 1)) / (moment + 1) / 0.999
        assert estimates.mean() == pytest.approx(exact, abs=4 * estimates.std() / N**0.5)


def test_importance_times_have_the_density_of_the_weight():
    """For the likelihood weight of VE, w / SNR = d log sigma^2 / dt is constant, so that t is uniform."""
    t, weight = times.importance(weightings.likelihood(), 1e-3, 1.0)(VE(), KEY, N)
    assert stats.kstest(np.asarray(t), stats.uniform(1e-3, 0.999).cdf).pvalue > 1e-3
    np.testing.assert_allclose(weight, 1, rtol=1e-3)
    # For VP it is -d log(SNR) / dt, up to a factor 1 / alpha^2: checked by its distribution function.
    t, _ = times.importance(weightings.likelihood(), 1e-3, 1.0)(VP(), KEY, N)
    grid = np.geomspace(1e-3, 1.0, 20_001)
    beta, integral = 0.1 + 19.9 * grid, 0.1 * grid + 19.9 * grid**2 / 2
    mass = integrate.cumulative_simpson(beta / -np.expm1(-integral), x=grid, initial=0)
    assert stats.kstest(np.asarray(t), lambda t: np.interp(t, grid, mass / mass[-1])).pvalue > 1e-3


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: times.uniform(0.9, 0.1), "t_min"),
        (lambda: times.low_discrepancy(0.9, 0.1), "t_min"),
        (lambda: times.importance(weightings.likelihood(), 0.9, 0.1), "t_min"),
        (lambda: times.importance(weightings.likelihood(), t_min=0.0), "t_min"),
        (lambda: times.importance(weightings.likelihood(), num_points=1), "num_points"),
        (lambda: times.log_normal(std=-1.0), "std"),
        (lambda: times.logit_normal(std=0.0), "std"),
    ],
)
def test_numbers_out_of_range_are_refused(make, key):
    with pytest.raises(ValueError, match=rf"{key}.* is .*; it must be"):
        make()
