import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from diffusion_jax.evaluation.feature_classifier import features, probabilities, train_classifier

pytestmark = pytest.mark.optimized  # these train: what runs long is compiled well


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    x = (data.images[..., None] / 8 - 1).astype(np.float32)
    return train_test_split(x, data.target, test_size=500, stratify=data.target, random_state=0)


@pytest.fixture(scope="module")
def classifier(digits):
    x, _, labels, _ = digits
    return train_classifier(x, labels, num_classes=10)


def test_digits_are_classified(classifier, digits):
    _, x, _, labels = digits
    assert np.mean(probabilities(classifier, x).argmax(axis=1) == labels) >= 0.98


def test_probabilities_and_features(classifier, digits):
    x = digits[1]
    p, h = probabilities(classifier, x), features(classifier, x)
    assert p.shape == (500, 10) and h.shape == (500, 64)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    logits = h @ np.asarray(classifier.params["logits"]["kernel"]) + np.asarray(classifier.params["logits"]["bias"])
    np.testing.assert_allclose(np.asarray(jax.nn.softmax(logits)), p, atol=1e-5)
    np.testing.assert_allclose(features(classifier, x[300:303]), h[300:303], rtol=1e-4, atol=1e-4)


def test_result_depends_on_the_seed_alone(digits):
    x, _, labels, _ = digits
    first, again, other = (
        train_classifier(x[:256], labels[:256], num_classes=10, seed=seed, epochs=1) for seed in (0, 0, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    assert not np.allclose(features(first, x[:8]), features(other, x[:8]))


@pytest.mark.few(1)
@pytest.mark.parametrize("shape", [(28, 28, 1), (16, 32, 3), (5, 9, 2)])
def test_other_image_shapes(shape):
    random = np.random.default_rng(0)
    labels = np.arange(64) % 2
    x = np.where(labels[:, None, None, None] == 0, -0.5, 0.5) + 0.1 * random.normal(size=(64, *shape))
    classifier = train_classifier(x, labels, num_classes=2, epochs=15, batch_size=32)
    assert features(classifier, x).shape == (64, 64)
    assert np.mean(probabilities(classifier, x).argmax(axis=1) == labels) == 1


_X = np.zeros((4, 8, 8, 1), np.float32)


@pytest.mark.parametrize(
    ("x", "labels", "options", "message"),
    [
        (_X[0], np.zeros(4, int), {}, r"\[n, h, w, c\]"),
        (_X[:0], np.zeros(0, int), {}, "not empty"),
        (_X * np.nan, np.zeros(4, int), {}, "finite"),
        (_X, np.zeros(3, int), {}, "labels must be 4 integers"),
        (_X, np.zeros(4), {}, "float64"),
        (_X, np.array([0, 1, 2, 3]), {}, r"labels must be in 0\.\.2, got 0\.\.3"),
        (_X, np.zeros(4, int), {"epochs": 0}, "at least 1"),
    ],
)
def test_train_classifier_refuses(x, labels, options, message):
    with pytest.raises(ValueError, match=message):
        train_classifier(x, labels, num_classes=3, **options)


def test_images_of_another_shape_are_refused(classifier):
    with pytest.raises(ValueError, match=r"shape \(8, 8, 1\), got \(8, 8, 3\)"):
        features(classifier, np.zeros((2, 8, 8, 3), np.float32))
