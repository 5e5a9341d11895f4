"""Pictures and groups of samples of series."""

import numpy as np

from diffusion_jax.evaluation import fan_charts
from diffusion_jax.modalities import MODALITIES
from diffusion_jax.modalities.series import _groups, scores

RNG = np.random.default_rng(0)
WINDOWS = RNG.standard_normal((2, 12, 4)).astype(np.float32)
KNOWN = WINDOWS.copy()
KNOWN[:, -4:] = np.nan


def test_a_picture_has_a_fan_for_each_window():
    """Of the same samples in any order, and none of samples that are not finite."""
    series, order = MODALITIES["series"], [0, 1, 1, 0, 1, 0]
    samples = RNG.standard_normal((6, 12, 4)).astype(np.float32)
    drawn = {"samples": samples, "known": KNOWN[order], "original": WINDOWS[order]}
    picture = series.picture(drawn, None, {})
    again = {name: value[::-1][[1, 0, 2, 3, 4, 5]] for name, value in drawn.items()}
    assert picture.dtype == np.uint8 and picture.ndim == 3
    assert picture.shape == series.picture(again, None, {}).shape
    assert [list(group) for group in _groups(drawn["known"])] == [[0, 3, 5], [1, 2, 4]]
    assert series.picture({**drawn, "samples": samples * np.nan}, None, {}) is None
    free = series.picture({"samples": samples}, None, {})
    assert free.shape[0] < picture.shape[0]


def test_a_band_is_drawn_where_values_are_hidden_only():
    paths = RNG.standard_normal((20, 12, 1)) * 3
    blue = lambda image: (image[..., 2].astype(int) - image[..., 0] > 30).sum(0)
    known = np.zeros((12, 1))
    known[6:] = np.nan
    columns = blue(fan_charts.fans([paths], [known], [np.full((12, 1), np.nan)])[40:])
    left, right = columns[40 : len(columns) // 2 - 20].sum(), columns[len(columns) // 2 :].sum()
    assert right > 20 * max(left, 1)


def test_perfect_samples_have_perfect_scores():
    values = scores(np.repeat(WINDOWS[None], 8, 0), WINDOWS, KNOWN, 4, 2)
    for name in ("crps", "mae_median", "rmse_mean", "nd", "quantile_crps_19", "crps_sum_19", "energy_score", "mase"):
        assert abs(values[name]) < 1e-6, name
    assert values["coverage_90"] == 1 and values["num_windows"] == 2 and values["samples_per_window"] == 8
