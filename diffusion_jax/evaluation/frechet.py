"""Frechet distance between two Gaussians fitted to features, in float64 on the host."""

from __future__ import annotations

import numpy as np
from jaxtyping import Array, Float64

_TOLERANCE = 1e-6  # rounding allowed in a covariance, relative to its largest entry or eigenvalue


def statistics(features: np.ndarray | Array) -> tuple[Float64[np.ndarray, "d"], Float64[np.ndarray, "d d"]]:
    """Mean and unbiased covariance of `features: [n, d]`.

    Raises:
      ValueError: features are not two-dimensional, not finite, or fewer than two.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2:
        raise ValueError(f"features must have shape [n, d], got {features.shape}")
    if len(features) < 2:
        raise ValueError(f"features: a covariance needs at least 2 rows, got {len(features)}")
    if not np.isfinite(features).all():
        raise ValueError("features must be finite, got NaN or infinity")
    mean = features.mean(axis=0)
    centered = features - mean
    return mean, centered.T @ centered / (len(features) - 1)


def frechet_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """Squared 2-Wasserstein distance between N(mu1, sigma1) and N(mu2, sigma2); arXiv 1706.08500, equation 6.

        |mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1^{1/2} sigma2 sigma1^{1/2})^{1/2})

    Both square roots are of symmetric matrices, so covariances may be singular and nothing becomes complex.
    The result is at least 0 and has the unit of the features squared.

    Args:
      mu1, mu2: means, `[d]`.
      sigma1, sigma2: covariances, `[d, d]`, symmetric and positive semi-definite.

    Raises:
      ValueError: the shapes do not agree, or an argument is not finite, not symmetric or has a negative eigenvalue.
    """
    mu1, sigma1 = _checked("1", mu1, sigma1)
    mu2, sigma2 = _checked("2", mu2, sigma2)
    if mu1.shape != mu2.shape:
        raise ValueError(f"mu1 and mu2 must have the same dimension, got {mu1.size} and {mu2.size}")
    values, vectors = np.linalg.eigh(sigma1)
    root = (vectors * np.sqrt(_non_negative("sigma1", values))) @ vectors.T
    _non_negative("sigma2", np.linalg.eigvalsh(sigma2))
    product = root @ sigma2 @ root
    trace_root = np.sqrt(np.clip(np.linalg.eigvalsh((product + product.T) / 2), 0, None)).sum()
    distance = np.sum((mu1 - mu2) ** 2) + np.trace(sigma1) + np.trace(sigma2) - 2 * trace_root
    return max(float(distance), 0.0)


def _checked(index: str, mu: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mu, sigma = np.asarray(mu, np.float64), np.asarray(sigma, np.float64)
    if mu.ndim != 1 or sigma.shape != (mu.size, mu.size):
        raise ValueError(f"mu{index} must be [d] and sigma{index} [d, d], got {mu.shape} and {sigma.shape}")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"mu{index} and sigma{index} must be finite, got NaN or infinity")
    if np.abs(sigma - sigma.T).max(initial=0) > _TOLERANCE * np.abs(sigma).max(initial=0):
        raise ValueError(f"sigma{index} must be symmetric")
    return mu, sigma


def _non_negative(name: str, eigenvalues: np.ndarray) -> np.ndarray:
    if eigenvalues.min(initial=0) < -_TOLERANCE * np.abs(eigenvalues).max(initial=0):
        raise ValueError(f"{name} must be positive semi-definite, got the eigenvalue {eigenvalues.min():.3g}")
    return np.clip(eigenvalues, 0, None)
