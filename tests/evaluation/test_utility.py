"""What synthetic examples are worth: those of the true law train the classifier of Fisher, others a worse one."""

import numpy as np
import pytest

from diffusion_jax.evaluation import utility

RNG = np.random.default_rng(0)
MEANS = np.array([[0.0, 0.0, 0.0], [1.2, 0.3, 0.0], [0.2, 1.4, 0.6]])
COVARIANCE = np.array([[1.0, 0.5, 0.0], [0.5, 0.8, 0.2], [0.0, 0.2, 0.6]])


def gaussians(num: int) -> dict[str, np.ndarray]:
    """Three classes of one covariance, as images of 3 pixels."""
    label = np.arange(num) % 3
    x = MEANS[label] + RNG.multivariate_normal(np.zeros(3), COVARIANCE, num)
    return {"x": x.reshape(num, 1, 3, 1), "label": label}


def discriminant(x: np.ndarray) -> np.ndarray:
    """The class by linear discriminant analysis with the true means and covariance."""
    weights = np.linalg.solve(COVARIANCE, MEANS.T)
    return (x.reshape(len(x), -1) @ weights - 0.5 * np.einsum("kd,dk->k", MEANS, weights)).argmax(1)


def test_synthetic_examples_of_the_true_law_give_the_discriminant_of_the_truth():
    train, synthetic, test = gaussians(3000), gaussians(30_000), gaussians(9000)
    found = utility.utility(synthetic["x"], synthetic["label"], train, test)
    right = discriminant(test["x"]) == test["label"]
    best = np.mean([right[test["label"] == label].mean() for label in range(3)])
    assert found["utility_synthetic"] == pytest.approx(best, abs=0.006)
    for name in ("real", "both", "gaussian"):
        assert found[f"utility_{name}"] == pytest.approx(best, abs=0.012)
    assert found["utility_num_synthetic"] == 30_000 and found["utility_num_train"] == 3000


def test_samples_of_the_wrong_class_are_worth_nothing():
    train, test = gaussians(600), gaussians(3000)
    wrong = RNG.permutation(train["label"])
    found = utility.utility(train["x"], wrong, train, test)
    assert found["utility_synthetic"] < 0.45 < found["utility_real"]


def test_the_accuracy_is_that_of_classes_and_not_of_examples():
    """A classifier that always gives the common class has the accuracy 1 / 2."""
    test = {"x": np.concatenate([np.zeros((90, 1)), np.ones((10, 1))]), "label": np.repeat([0, 1], [90, 10])}
    assert utility.accuracy(np.zeros((50, 1)), np.arange(50) // 40, test, num_classes=2) == pytest.approx(0.5)


def test_the_gaussian_baseline_has_the_moments_of_a_class():
    x = RNG.multivariate_normal(np.zeros(3), COVARIANCE, 50)
    drawn, _ = utility.gaussian(x, np.zeros(50, int), labels=np.zeros(40_000, int))
    np.testing.assert_allclose(drawn.mean(0), x.mean(0), atol=0.02)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(x.T), atol=0.03)


def test_what_does_not_fit_is_refused():
    train, test = gaussians(30), gaussians(30)
    with pytest.raises(ValueError, match="samples have 0 examples of class 2"):
        utility.utility(train["x"][:2], train["label"][:2], train, test)
    with pytest.raises(ValueError, match="do not fit training"):
        utility.utility(train["x"][:, :, :2], train["label"], train, test)
    with pytest.raises(ValueError, match="train have 1 examples of class 0; at least 2"):
        utility.utility(train["x"], train["label"], {name: value[:3] for name, value in train.items()}, test)
