import math

import numpy as np
import pytest
from sklearn.datasets import load_digits

from diffusion_jax.evaluation.metrics import classifier_metrics

pytestmark = pytest.mark.optimized  # these train: what runs long is compiled well


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
