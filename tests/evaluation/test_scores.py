import math

import numpy as np
import pytest

from diffusion_jax.evaluation.scores import inception_score, kernel_distance, squared_mmd


def _kernel_mean(mu1, sigma1, mu2, sigma2):
    """E (<x, y> / d + 1)^3 of independent Gaussians, from the moments of each."""

    def moments(mu, sigma):
        second = sigma + np.outer(mu, mu)
        third = np.einsum("i,j,k", mu, mu, mu) + sum(
            np.einsum("ij,k->" + out, sigma, mu) for out in ("ijk", "ikj", "kij")
        )
        return mu, second, third

    pairs = zip(moments(mu1, sigma1), moments(mu2, sigma2), strict=True)
    u1, u2, u3 = (np.sum(a * b) / mu1.size**i for i, (a, b) in enumerate(pairs, 1))
    return u3 + 3 * u2 + 3 * u1 + 1


def _gaussian(random, mu, sigma, n):
    return random.multivariate_normal(mu, sigma, n)


def test_the_kernel_distance_has_the_expectation_of_gaussians():
    random = np.random.default_rng(0)
    p = np.array([0.5, -1.0, 0.3]), np.array([[1.0, 0.3, 0.0], [0.3, 0.5, 0.1], [0.0, 0.1, 0.2]])
    q = np.array([0.0, 0.4, 0.0]), np.diag([0.3, 0.7, 1.1])
    exact = _kernel_mean(*p, *p) + _kernel_mean(*q, *q) - 2 * _kernel_mean(*p, *q)
    found = [squared_mmd(_gaussian(random, *p, 20), _gaussian(random, *q, 30)) for _ in range(3000)]
    error = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - exact) < 3 * error and error < 0.02 * exact


def test_the_kernel_distance_is_unbiased_between_equal_distributions():
    random = np.random.default_rng(1)
    p = np.array([0.5, -1.0]), np.array([[1.0, 0.3], [0.3, 0.5]])
    found = np.array([squared_mmd(_gaussian(random, *p, 10), _gaussian(random, *p, 15)) for _ in range(4000)])
    assert abs(found.mean()) < 3 * found.std() / math.sqrt(len(found))
    assert (found < 0).mean() > 0.3, "a biased estimate would not be negative"


def test_subsets_of_the_whole_set_are_the_estimate_itself():
    random = np.random.default_rng(2)
    x, y = random.normal(size=(30, 4)), random.normal(size=(30, 4)) + 0.3
    found = kernel_distance(x, y, subsets=3)
    assert found.mean == pytest.approx(squared_mmd(x, y), rel=1e-12)
    assert found.std == pytest.approx(0, abs=1e-12)
    halves = kernel_distance(x, y, subsets=400, subset_size=15)
    assert abs(halves.mean - found.mean) < 4 * halves.std / math.sqrt(400)
    assert kernel_distance(x, y, subset_size=5, seed=1) == kernel_distance(x, y, subset_size=5, seed=1)
    assert kernel_distance(x, y, subset_size=5, seed=1) != kernel_distance(x, y, subset_size=5, seed=2)


def test_the_score_of_certain_predictions_is_the_number_of_classes():
    certain = 1000.0 * np.eye(8).repeat(25, axis=0)
    assert inception_score(certain, splits=1).mean == pytest.approx(8, rel=1e-12)
    assert inception_score(certain, splits=8, seed=None) == pytest.approx((1, 0)), "sorted by class"
    assert inception_score(certain, splits=8, seed=0).mean > 5
    assert inception_score(np.ones((50, 8))) == pytest.approx((1, 0))
    p, q = 0.9, 0.1  # two classes, each seen with certainty p
    logits = np.log([[p, q], [q, p]]).repeat(10, axis=0)
    information = math.log(2) + p * math.log(p) + q * math.log(q)
    assert inception_score(logits + 7.0, splits=1).mean == pytest.approx(math.exp(information), rel=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: squared_mmd(np.zeros((1, 3)), np.zeros((4, 3))),
            r"x must be \[n, d\] with n >= 2, got shape \(1, 3\)",
        ),
        (lambda: squared_mmd(np.zeros((4, 3)), np.zeros((4, 2))), "same dimension, got 3 and 2"),
        (lambda: squared_mmd(np.zeros((4, 3)), np.full((4, 3), np.nan)), "y must be finite"),
        (lambda: kernel_distance(np.zeros((4, 3)), np.zeros((4, 3)), subset_size=1), "subset_size=1"),
        (lambda: kernel_distance(np.zeros((4, 3)), np.zeros((4, 3)), subsets=0), "subsets=0"),
        (lambda: inception_score(np.zeros((0, 3))), "n >= 1"),
        (lambda: inception_score(np.full((2, 3), np.inf)), "finite"),
        (lambda: inception_score(np.zeros((2, 3)), splits=0), "splits must be at least 1, got 0"),
    ],
)
def test_bad_features_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
