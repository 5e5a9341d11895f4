"""Draws of an image given another one: exact posteriors are calibrated, others are not, and baselines are exact."""

import numpy as np
import pytest

from diffusion_jax.evaluation import translation
from diffusion_jax.modalities.image import picture

# x = 0.5 y + e with e ~ N(0, V): the regression is 0.5 y, the posterior N(0.5 y, V).
NUM, K, V = 300, 8, 0.01
RNG = np.random.default_rng(0)
GIVEN = RNG.uniform(-1, 1, (NUM, 8, 8, 1))
TRUTH = 0.5 * GIVEN + V**0.5 * RNG.standard_normal(GIVEN.shape)


def drawn(scale: float) -> np.ndarray:
    """K draws of each, with `scale` times the standard deviation of the posterior, one after the other over images."""
    return np.concatenate([0.5 * GIVEN + scale * V**0.5 * RNG.standard_normal(GIVEN.shape) for _ in range(K)])


def values(samples: np.ndarray) -> dict[str, float]:
    return translation.translation(samples, TRUTH, GIVEN, TRUTH, GIVEN)


def test_draws_of_the_exact_posterior():
    found = values(drawn(1.0))
    assert found["translation_psnr"] == pytest.approx(translation.psnr(2 * V), abs=0.1)
    assert found["translation_mean_psnr"] == pytest.approx(translation.psnr(V * (1 + 1 / K)), abs=0.1)
    assert found["translation_gain"] == pytest.approx(found["translation_gain_exact"], rel=0.02)
    assert found["translation_calibration"] == pytest.approx(1, abs=0.03)
    assert found["translation_spread"] == pytest.approx(V**0.5, rel=0.02)
    assert (found["translation_num"], found["translation_samples_per_image"]) == (NUM, K)


@pytest.mark.parametrize(("scale", "expected"), [(0.5, 3.67), (2.0, 1 / 3)])
def test_draws_that_are_too_alike_or_too_different_are_not_calibrated(scale, expected):
    """(V + scale^2 V / K) / (spread^2 (1 + 1/K)) with spread^2 = scale^2 V."""
    assert values(drawn(scale))["translation_calibration"] == pytest.approx(expected, rel=0.05)


def test_the_regression_of_a_linear_map_is_exact():
    found = values(drawn(1.0))
    for name in ("pixel", "window"):
        assert found[f"translation_psnr_{name}"] == pytest.approx(translation.psnr(V), abs=0.1)
    blurred = (GIVEN + np.roll(GIVEN, 1, 2))[:, 1:-1, 2:-2] / 2
    inner = GIVEN[:, 1:-1, 2:-2]
    near = translation.regression(inner, blurred, inner, reach=1)[:, :, 1:]
    far = translation.regression(inner, blurred, inner)[:, :, 1:]
    assert np.square(near - blurred[:, :, 1:]).mean() < 0.2 * np.square(far - blurred[:, :, 1:]).mean()
    with pytest.raises(ValueError, match="do not lie upon"):
        translation.regression(GIVEN[:, :4], TRUTH, GIVEN)


def test_channels_have_metrics_of_their_own():
    truth = np.concatenate([TRUTH, TRUTH + 0.1], -1)
    found = translation.translation(np.concatenate([TRUTH, TRUTH], -1), truth, GIVEN, truth, GIVEN)
    assert found["translation_channel_0_psnr"] > 90
    assert found["translation_channel_1_psnr"] == pytest.approx(translation.psnr(0.01), abs=1e-3)
    assert "translation_spread" not in found and found["translation_gain"] == pytest.approx(1)


def test_every_pair_needs_as_many_samples():
    with pytest.raises(ValueError, match="every pair needs as many"):
        values(drawn(1.0)[:-1])
    with pytest.raises(ValueError, match="at least 2 are needed"):
        translation.mean_and_spread(GIVEN, 1)


def test_a_picture_has_the_mean_and_the_spread():
    """A row per image: the original, what is given, 3 draws, their mean and their standard deviation."""
    original, given = (np.repeat(x[:2], 3, 0) for x in (TRUTH, GIVEN))
    samples = np.concatenate([original, 0 * original], -1) + np.float32([0, 0.5, 1] * 2)[:, None, None, None]
    sheet = picture({"samples": samples, "image": given, "original": np.concatenate([original] * 2, -1)}, None, {})
    one = picture({"samples": samples[::3], "image": given[::3]}, None, {})
    assert sheet.shape[1] / sheet.shape[0] == pytest.approx(7 / 2, rel=0.02) and one is not None
    mean, spread = translation.mean_and_spread(samples, 3)
    np.testing.assert_allclose(mean[0, ..., 1], 0.5)
    np.testing.assert_allclose(spread, 0.5, rtol=1e-5)
