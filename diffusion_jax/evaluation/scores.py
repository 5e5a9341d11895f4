"""KID, the kernel distance between two sets of features, and the Inception score of one set of predicted classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Array


class Estimate(NamedTuple):
    """Mean and standard deviation (not of the mean) over subsets."""

    mean: float
    std: float


def squared_mmd(x: np.ndarray | Array, y: np.ndarray | Array) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy; arXiv:1801.01401, section 4.

        MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),    k(x, y) = (<x, y> / d + 1)^3

    Pairs of a vector with itself are left out, so that its expectation is 0 between equal distributions and single
    estimates can be negative.

    Args:
      x, y: features `[n, d]` and `[m, d]` with n, m >= 2.

    Raises:
      ValueError: too few rows, another shape, or values that are not finite.
    """
    x, y = _features("x", x), _features("y", y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must have the same dimension, got {x.shape[1]} and {y.shape[1]}")
    return _mean_of_pairs(x) + _mean_of_pairs(y) - 2 * float(_kernel(x, y).mean())


def kernel_distance(
    x: np.ndarray | Array, y: np.ndarray | Array, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> Estimate:
    """`squared_mmd` over random subsets of both sets, as KID is reported (arXiv:1801.01401).

    Args:
      x, y: features `[n, d]` and `[m, d]`.
      subsets: how many pairs of subsets are drawn.
      subset_size: rows of each, without repetition; cut down to the smaller set.
      seed: of the subsets.

    Raises:
      ValueError: as `squared_mmd`, or no positive `subsets` or fewer than 2 rows in each.
    """
    x, y = _features("x", x), _features("y", y)
    size = min(subset_size, len(x), len(y))
    if subsets < 1 or size < 2:
        raise ValueError(f"there must be at least 1 subset of 2 rows, got {subsets=} and {subset_size=}")
    random = np.random.default_rng(seed)
    estimates = [
        squared_mmd(*(z[random.choice(len(z), size, replace=False, shuffle=False)] for z in (x, y)))
        for _ in range(subsets)
    ]
    return Estimate(float(np.mean(estimates)), float(np.std(estimates)))


def inception_score(logits: np.ndarray | Array, *, splits: int = 10, seed: int | None = 0) -> Estimate:
    """exp of the mutual information between image and predicted class; arXiv:1606.03498, section 4.

        exp E_x KL(p(y | x) || p(y)),    p(y) = E_x p(y | x)

    It lies between 1 and the number of classes. It is computed on `splits` parts; a part of n images gives at most n.

    Args:
      logits: `[n, classes]`, unnormalised log-probabilities.
      splits: how many parts, cut down to n.
      seed: of the order, so that samples sorted by class are not split by class; None keeps it.

    Raises:
      ValueError: no rows, another shape, values that are not finite, or no positive `splits`.
    """
    logits = _features("logits", logits, least=1)
    if splits < 1:
        raise ValueError(f"splits must be at least 1, got {splits}")
    if seed is not None:
        logits = np.random.default_rng(seed).permutation(logits)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    scores = []
    for part in np.array_split(log_p, min(splits, len(log_p))):
        p = np.exp(part)
        # Classes that no image has are left out of the sum: their probabilities may all be 0.
        log_marginal = np.log(np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny))
        scores.append(np.exp((p * (part - log_marginal)).sum(axis=1).mean()))
    return Estimate(float(np.mean(scores)), float(np.std(scores)))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_of_pairs(x: np.ndarray) -> float:
    kernel = _kernel(x, x)
    return float((kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1)))


def _features(name: str, x: np.ndarray | Array, least: int = 2) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) < least or x.shape[1] == 0:
        raise ValueError(f"{name} must be [n, d] with n >= {least}, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return x
