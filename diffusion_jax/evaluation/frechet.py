"""FID, the Frechet distance between two Gaussians fitted to features, in float64 on the host."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float64

_TOLERANCE = 1e-6  # rounding allowed in a covariance, relative to its largest entry or eigenvalue
_RESIDUAL = 1e-10  # of a square root, relative to the matrix


class Moments(NamedTuple):
    """Running first and second moments of `num` feature vectors: their mean and sum_i (x_i - mean) (x_i - mean)^T."""

    num: int
    mean: Float64[np.ndarray, "d"]
    scatter: Float64[np.ndarray, "d d"]


def add_moments(moments: Moments | None, features: np.ndarray | Array) -> Moments:
    """The moments of all rows so far and of `features: [n, d]`; begin with None.

    The scatter of two sets is the sum of theirs and of n m / (n + m) times the square of the difference of their
    means, so that nothing cancels however large the mean is.

    Raises:
      ValueError: features are not two-dimensional, empty, not finite, or of another dimension than before.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) == 0:
        raise ValueError(f"features must have shape [n, d] with n > 0, got {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError("features must be finite, got NaN or infinity")
    mean = features.mean(axis=0)
    centered = features - mean
    added = Moments(len(features), mean, centered.T @ centered)
    if moments is None:
        return added
    if mean.shape != moments.mean.shape:
        raise ValueError(f"features must have {moments.mean.size} dimensions like those before, got {mean.size}")
    num = moments.num + added.num
    step = mean - moments.mean
    return Moments(
        num,
        moments.mean + step * (added.num / num),
        moments.scatter + added.scatter + np.outer(step, step) * (moments.num * added.num / num),
    )


def covariance(moments: Moments) -> tuple[Float64[np.ndarray, "d"], Float64[np.ndarray, "d d"]]:
    """Mean and unbiased covariance. Raises ValueError for fewer than 2 rows."""
    if moments.num < 2:
        raise ValueError(f"features: a covariance needs at least 2 rows, got {moments.num}")
    return moments.mean, moments.scatter / (moments.num - 1)


def statistics(features: np.ndarray | Array) -> tuple[Float64[np.ndarray, "d"], Float64[np.ndarray, "d d"]]:
    """Mean and unbiased covariance of `features: [n, d]`.

    Raises:
      ValueError: features are not two-dimensional, not finite, or fewer than two.
    """
    return covariance(add_moments(None, features))


def frechet_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """Squared 2-Wasserstein distance between N(mu1, sigma1) and N(mu2, sigma2); arXiv 1706.08500, equation 6.

        |mu1 - mu2|^2 + tr(sigma1) + tr(sigma2) - 2 |sigma1^{1/2} sigma2^{1/2}|_*

    The last term, the sum of the singular values, is the trace of (sigma1 sigma2)^{1/2}. The square roots are of
    symmetric matrices, so covariances may be singular and nothing becomes complex, and no square root is taken of
    rounding errors of their product. The result is at least 0 and has the unit of the features squared.

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
    product = matrix_root("sigma1", sigma1) @ matrix_root("sigma2", sigma2)
    trace_root = np.linalg.svd(product, compute_uv=False).sum()
    distance = np.sum((mu1 - mu2) ** 2) + np.trace(sigma1) + np.trace(sigma2) - 2 * trace_root
    return max(float(distance), 0.0)


def matrix_root(name: str, sigma: Float64[np.ndarray, "d d"]) -> Float64[np.ndarray, "d d"]:
    """The symmetric square root of a symmetric positive semi-definite matrix called `name`.

    Raises:
      ValueError: it has a negative eigenvalue, or the square of the root found is not the matrix.
    """
    values, vectors = np.linalg.eigh(sigma)
    scale = np.abs(values).max(initial=0)
    if values.min(initial=0) < -_TOLERANCE * scale:
        raise ValueError(f"{name} must be positive semi-definite, got the eigenvalue {values.min():.3g}")
    positive = np.clip(values, 0, None)
    root = (vectors * np.sqrt(positive)) @ vectors.T
    clipped = np.linalg.norm(positive - values)
    if np.linalg.norm(root @ root - sigma) > clipped + _RESIDUAL * max(np.linalg.norm(sigma), np.finfo(float).tiny):
        raise ValueError(f"{name} has no square root of sufficient accuracy")
    return root


def _checked(index: str, mu: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mu, sigma = np.asarray(mu, np.float64), np.asarray(sigma, np.float64)
    if mu.ndim != 1 or sigma.shape != (mu.size, mu.size):
        raise ValueError(f"mu{index} must be [d] and sigma{index} [d, d], got {mu.shape} and {sigma.shape}")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"mu{index} and sigma{index} must be finite, got NaN or infinity")
    if np.abs(sigma - sigma.T).max(initial=0) > _TOLERANCE * np.abs(sigma).max(initial=0):
        raise ValueError(f"sigma{index} must be symmetric")
    return mu, (sigma + sigma.T) / 2
