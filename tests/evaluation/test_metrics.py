import math

import numpy as np
import pytest
from sklearn.datasets import load_digits

from diffusion_jax.evaluation.metrics import (
    classifier_metrics,
    sliced_wasserstein,
    toy_metrics,
)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    x = (data.images[..., None] / 8 - 1).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    x, labels = x[order], data.target[order]
    held_out = dict(x=x[1000:1400], label=labels[1000:1400])
    return dict(x=x[:1000], label=labels[:1000]), held_out, x[1400:], labels[1400:]


def test_unseen_real_digits_are_as_good_as_the_test_split(digits):
    train, test, x, _ = digits
    result = classifier_metrics(x, train, test)
    assert result["num_samples"] == len(x) == 397 and result["num_frechet"] == 397
    assert result["classifier_test_accuracy"] > 0.97
    assert result["class_entropy_max"] == pytest.approx(math.log(10))
    assert result["class_entropy_ratio"] > 0.99
    assert 0.95 < result["confidence_ratio"] < 1.05
    assert 0.6 < result["classifier_frechet_ratio"] < 1.6
    assert result["nearest_train_distance"] == pytest.approx(result["nearest_train_distance_real"], rel=0.1)
    assert result["classifier_frechet_ratio"] == result["classifier_frechet"] / result["classifier_frechet_real"]


def test_collapse_noise_and_copies_are_told_apart(digits):
    train, test, x, labels = digits
    threes = classifier_metrics(x[labels == 3], train, test, epochs=25)
    assert threes["class_entropy_ratio"] < 0.1 and threes["num_frechet"] == np.sum(labels == 3)
    assert threes["classifier_frechet_ratio"] > 5

    noise = np.random.default_rng(0).uniform(-1, 1, (500, 8, 8, 1)).astype(np.float32)
    result = classifier_metrics(noise, train, test, epochs=25)
    assert result["confidence_ratio"] < 0.9 and result["classifier_frechet_ratio"] > 5
    assert result["num_samples"] == 500 and result["num_frechet"] == 400

    copies = classifier_metrics(train["x"][:300], train, test, epochs=25)
    assert copies["nearest_train_distance"] == copies["nearest_train_minimum"] == 0
    assert copies["nearest_train_distance_real"] > 0.1


def test_a_poor_classifier_is_pointed_out(digits):
    train, test, x, _ = digits
    shuffled = dict(x=train["x"], label=np.random.default_rng(0).permutation(train["label"]))
    with pytest.warns(UserWarning, match="accurate on real test images"):
        classifier_metrics(x[:10], shuffled, test, epochs=1)


def test_bad_samples_are_refused(digits):
    train, test, x, _ = digits
    for samples, message in [
        (x[:0], "samples must not be empty"),
        (x[:1], "samples must hold at least 2 images, got 1"),
        (np.where(x > 0, np.nan, x), "samples must be finite"),
        ((x + 1) * 127.5, r"samples must be in \[-1, 1\]"),
        (x.repeat(3, axis=-1), r"training images \(8, 8, 1\), got \(8, 8, 3\)"),
        (x[..., 0], r"\[n, h, w, c\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            classifier_metrics(samples, train, test)
    with pytest.raises(ValueError, match="test label"):
        classifier_metrics(x, train, dict(x=test["x"], label=test["label"][:5]))


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


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        (np.zeros((4, 3)), {}, r"samples must be \[n, 2\]"),
        (np.full((4, 2), np.inf), {}, "finite"),
        (np.zeros((4, 2)), {"means": _MEANS}, "together"),
        (np.zeros((4, 2)), {"means": _MEANS, "weights": np.array([0.5, 0.6])}, "2 probabilities"),
    ],
)
def test_toy_metrics_refuses(samples, options, message):
    with pytest.raises(ValueError, match=message):
        toy_metrics(samples, np.zeros((8, 2)), **options)
