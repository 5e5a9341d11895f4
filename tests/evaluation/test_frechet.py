import numpy as np
import pytest
import scipy.linalg

from diffusion_jax.evaluation.frechet import add_moments, covariance, frechet_distance, matrix_root, statistics


def _covariance(random, d, rank=None):
    factor = random.normal(size=(d, rank or d))
    return factor @ factor.T / d


def test_statistics_are_the_unbiased_moments():
    features = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    mean, covariance = statistics(features)
    assert mean.dtype == covariance.dtype == np.float64
    np.testing.assert_allclose(mean, features.mean(0, dtype=np.float64), atol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(features.astype(np.float64), rowvar=False), atol=1e-12)


def test_diagonal_gaussians_have_the_closed_form():
    mu1, mu2 = np.array([0.0, 1.0, -2.0]), np.array([1.0, 3.0, -2.0])
    std1, std2 = np.array([1.0, 2.0, 0.0]), np.array([3.0, 2.0, 0.5])
    expected = 1 + 4 + np.sum((std1 - std2) ** 2)
    assert frechet_distance(mu1, np.diag(std1**2), mu2, np.diag(std2**2)) == pytest.approx(expected, rel=1e-12)


def test_non_commuting_covariances_agree_with_a_general_matrix_root():
    random = np.random.default_rng(1)
    sigma1, sigma2 = _covariance(random, 6), _covariance(random, 6)
    assert np.abs(sigma1 @ sigma2 - sigma2 @ sigma1).max() > 0.1
    root = scipy.linalg.sqrtm(sigma1 @ sigma2).real
    expected = np.trace(sigma1 + sigma2 - 2 * root)
    assert frechet_distance(np.zeros(6), sigma1, np.zeros(6), sigma2) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(np.zeros(6), sigma2, np.zeros(6), sigma1) == pytest.approx(expected, rel=1e-9)


def test_singular_covariance_has_distance_zero_from_itself():
    random = np.random.default_rng(2)
    mu, sigma = random.normal(size=8), _covariance(random, 8, rank=3)
    assert frechet_distance(mu, sigma, mu, sigma) == pytest.approx(0, abs=1e-6)


def test_rank_deficient_covariances_have_the_closed_form():
    """Features of few samples: most eigenvalues are 0, up to rounding, and no square root is taken of that rounding."""
    random = np.random.default_rng(4)
    q = np.linalg.qr(random.normal(size=(60, 60)))[0]
    std1, std2 = np.zeros(60), np.zeros(60)
    std1[:7], std2[4:10] = random.uniform(0.5, 3, 7), random.uniform(0.5, 3, 6)
    sigma1, sigma2 = (q * std1**2) @ q.T, (q * std2**2) @ q.T
    expected = np.sum((std1 - std2) ** 2)
    found = frechet_distance(np.zeros(60), (sigma1 + sigma1.T) / 2, np.zeros(60), (sigma2 + sigma2.T) / 2)
    assert found == pytest.approx(expected, rel=1e-7)


def test_the_square_root_is_one():
    random = np.random.default_rng(5)
    for sigma in (_covariance(random, 40), _covariance(random, 40, rank=5), 1e-30 * _covariance(random, 3)):
        root = matrix_root("sigma", sigma)
        assert np.linalg.norm(root @ root - sigma) < 1e-12 * np.linalg.norm(sigma)
        np.testing.assert_allclose(root, scipy.linalg.sqrtm(sigma).real, atol=1e-7 * np.abs(root).max())


@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_running_moments_are_those_of_the_whole(batch_size):
    random = np.random.default_rng(6)
    features = (1e4 + random.normal(size=(50, 6)) * [1, 2, 3, 0.1, 0, 1]).astype(np.float32)
    moments = None
    for start in range(0, 50, batch_size):
        moments = add_moments(moments, features[start : start + batch_size])
    mean, sigma = covariance(moments)
    exact = features.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(sigma, np.cov(exact, rowvar=False), atol=1e-11)
    with pytest.raises(ValueError, match="6 dimensions like those before, got 2"):
        add_moments(moments, np.zeros((3, 2)))


def test_rotation_of_both_gaussians_changes_nothing():
    random = np.random.default_rng(3)
    mu, sigma1, sigma2 = random.normal(size=5), _covariance(random, 5), _covariance(random, 5)
    q = np.linalg.qr(random.normal(size=(5, 5)))[0]
    expected = frechet_distance(mu, sigma1, np.zeros(5), sigma2)
    rotated = frechet_distance(q @ mu, q @ sigma1 @ q.T, np.zeros(5), q @ sigma2 @ q.T)
    assert rotated == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((1, 3)), "at least 2 rows, got 1"),
        (np.zeros(3), r"shape \[n, d\]"),
        (np.full((4, 3), np.nan), "finite"),
    ],
)
def test_statistics_refuses(features, message):
    with pytest.raises(ValueError, match=message):
        statistics(features)


@pytest.mark.parametrize(
    ("mu", "sigma", "message"),
    [
        (np.zeros(3), np.eye(3), "same dimension, got 2 and 3"),
        (np.zeros(2), np.eye(3), r"mu2 must be \[d\]"),
        (np.zeros(2), np.diag([1.0, np.inf]), "finite"),
        (np.zeros(2), np.diag([1.0, -0.5]), "eigenvalue -0.5"),
        (np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
    ],
)
def test_frechet_distance_refuses(mu, sigma, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(np.zeros(2), np.eye(2), mu, sigma)
