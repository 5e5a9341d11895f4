import math

import numpy as np
import pytest

from diffusion_jax.evaluation.points import sliced_wasserstein, toy_metrics


def test_sliced_wasserstein_of_a_translation_and_of_gaussians():
    random = np.random.default_rng(0)
    x = random.normal(size=(20_000, 2))
    assert sliced_wasserstein(x, x + np.array([3.0, 4.0])) == pytest.approx(5 / math.sqrt(2), rel=1e-4)
    assert sliced_wasserstein(x, random.permutation(x)) == pytest.approx(0, abs=1e-6)
    assert sliced_wasserstein(x, 3 * random.normal(size=(20_000, 2))) == pytest.approx(2, rel=0.02)
    with pytest.raises(ValueError, match="equally many points, got 20000 and 1"):
        sliced_wasserstein(x, x[:1])


_MEANS = np.array([[2.0, 0.0], [-2.0, 0.0]])
_WEIGHTS = np.array([0.3, 0.7])


def _mixture(random, weights, n):
    return _MEANS[random.choice(2, n, p=weights)] + 0.3 * random.normal(size=(n, 2))


def _log_density(x):
    squared = ((x[:, None] - _MEANS) ** 2).sum(-1)
    return np.log(np.exp(-squared / (2 * 0.09)) @ _WEIGHTS / (2 * np.pi * 0.09))


def test_toy_metrics_see_a_wrong_mode_weight():
    random = np.random.default_rng(0)
    reference = _mixture(random, _WEIGHTS, 8000)
    exact = dict(means=_MEANS, weights=_WEIGHTS, log_density=_log_density)
    good = toy_metrics(_mixture(random, _WEIGHTS, 4000), reference, **exact)
    bad = toy_metrics(_mixture(random, [0.5, 0.5], 4000), reference, **exact)
    assert good["num_wasserstein"] == 4000
    assert good["mode_weight_error"] < 0.03 and good["mode_weight_error_real"] < 0.03
    assert bad["mode_weight_error"] == pytest.approx(0.2, abs=0.03)
    assert good["sliced_wasserstein"] < 0.2 and good["sliced_wasserstein_real"] < 0.2
    assert bad["sliced_wasserstein"] > 4 * good["sliced_wasserstein_real"]
    entropy = np.log(2 * np.pi * math.e * 0.09) - _WEIGHTS @ np.log(_WEIGHTS)  # the modes do not overlap
    assert good["mean_log_density"] == pytest.approx(-entropy, abs=0.05)
    assert bad["mean_log_density"] < good["mean_log_density"]


def test_modes_are_counted_where_points_are_near_enough_and_many_enough():
    random = np.random.default_rng(0)
    means = 4 * np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    exact = dict(means=means, weights=np.full(4, 0.25), std=0.3)
    reference = np.tile(means, (2000, 1)) + 0.3 * random.normal(size=(8000, 2))
    found = toy_metrics(reference, reference, **exact)
    assert found["modes"] == found["modes_real"] == 4
    assert found["near_modes"] == pytest.approx(1 - math.exp(-4.5), abs=0.005)
    # Half at one mode, 0.5 % at the second, 5 % at the third, the others a little more than 3 std from the fourth.
    counts = [500, 5, 50, 445]
    x = np.repeat(means, counts, axis=0)
    x[-445:] += 0.3 * 3.01 * np.array([1.0, 0.0])
    found = toy_metrics(x, reference, **exact)
    assert found["modes"] == 2 and found["near_modes"] == pytest.approx(0.555)


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        (np.zeros((4, 3)), {}, r"samples must be \[n, 2\]"),
        (np.full((4, 2), np.inf), {}, "finite"),
        (np.zeros((4, 2)), {"means": _MEANS}, "together"),
        (np.zeros((4, 2)), {"std": 0.1}, "std only with them"),
        (np.zeros((4, 2)), {"means": _MEANS, "weights": np.array([0.5, 0.6])}, "2 probabilities"),
    ],
)
def test_toy_metrics_refuses(samples, options, message):
    with pytest.raises(ValueError, match=message):
        toy_metrics(samples, np.zeros((8, 2)), **options)
