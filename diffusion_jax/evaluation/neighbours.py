"""Precision and recall, density and coverage, and distances to the training set: metrics of nearest neighbours."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float64, Int64

_BLOCK = 2048  # training examples compared at once
_ENTRIES = 2**25  # of a block of distances


class PrecisionRecall(NamedTuple):
    """Fractions in [0, 1]."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """A density, 1 between equal distributions and possibly larger, and a fraction in [0, 1]."""

    density: float
    coverage: float


class NearestNeighbour(NamedTuple):
    """Root-mean-square distance per pixel from samples to their nearest training images."""

    mean: float
    minimum: float


def precision_recall(real: np.ndarray | Array, samples: np.ndarray | Array, *, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall; arXiv:1904.06991, section 2.

    The ball around a point of a set reaches to its k-th nearest neighbour in that set, border included. Precision is
    the fraction of samples in the ball of some real point, recall that of real points in the ball of some sample.

    Args:
      real, samples: features `[n, d]` and `[m, d]` with n, m > k.

    Raises:
      ValueError: too few rows for `k`, another shape, or values that are not finite.
    """
    real, samples = _pair(real, samples, k)
    real_radii, sample_radii = _squared_radii(real, k), _squared_radii(samples, k)
    inside, covered = [], np.zeros(len(real), bool)
    for rows, squared in _squared_distances(samples, real):
        inside.append((squared <= real_radii).any(axis=1))
        covered |= (squared <= sample_radii[rows, None]).any(axis=0)
    return PrecisionRecall(float(np.concatenate(inside).mean()), float(covered.mean()))


def density_coverage(real: np.ndarray | Array, samples: np.ndarray | Array, *, k: int = 5) -> DensityCoverage:
    """Density and coverage; arXiv:2002.09797, section 3.

    With the balls of `precision_recall` around real points, density is the number of balls that a sample lies in,
    averaged over samples and divided by k; coverage is the fraction of balls with a sample in them.

    Args:
      real, samples: features `[n, d]` and `[m, d]` with n, m > k.

    Raises:
      ValueError: too few rows for `k`, another shape, or values that are not finite.
    """
    real, samples = _pair(real, samples, k)
    radii = _squared_radii(real, k)
    balls, covered = 0, np.zeros(len(real), bool)
    for _, squared in _squared_distances(samples, real):
        inside = squared <= radii
        balls += int(inside.sum())
        covered |= inside.any(axis=0)
    return DensityCoverage(balls / (k * len(samples)), float(covered.mean()))


def nearest_distances(samples: np.ndarray | Array, train: np.ndarray | Array) -> Float64[np.ndarray, "n"]:
    """The distances of `nearest`."""
    return nearest(samples, train)[0]


def nearest(
    samples: np.ndarray | Array, train: np.ndarray | Array
) -> tuple[Float64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
    """min_j |samples_i - train_j| / sqrt(d) for every sample, over the d values of an example, and that j.

    The distance is 0 for an exact copy; of equal distances the first j counts.

    Args:
      samples, train: images or features, `[n, *shape]` and `[m, *shape]`.

    Raises:
      ValueError: either is empty or not finite, or the shapes differ.
    """
    samples, train = finite("samples", samples), finite("train", train)
    if samples.shape[1:] != train.shape[1:]:
        raise ValueError(f"samples and train must have the same shape, got {samples.shape[1:]} and {train.shape[1:]}")
    samples, train = samples.reshape(len(samples), -1), train.reshape(len(train), -1)
    best, neighbour = np.full(len(samples), np.inf), np.zeros(len(samples), np.int64)
    for start in range(0, len(train), _BLOCK):
        block = train[start : start + _BLOCK]
        squared = np.sum(block**2, axis=1) - 2 * samples @ block.T  # less |sample|^2, the same for all neighbours
        column = squared.argmin(axis=1)
        value = squared[np.arange(len(samples)), column]
        neighbour, best = np.where(value < best, start + column, neighbour), np.minimum(value, best)
    # The squares above cancel in float32 for near copies, so only the choice of neighbour is theirs.
    return np.sqrt(np.mean((samples - train[neighbour]) ** 2, axis=1, dtype=np.float64)), neighbour


def nearest_neighbour_distance(samples: np.ndarray | Array, train: np.ndarray | Array) -> NearestNeighbour:
    """Mean and minimum of `nearest_distances` over the samples; the same errors."""
    distances = nearest_distances(samples, train)
    return NearestNeighbour(float(distances.mean()), float(distances.min()))


def closer_probability(distances: np.ndarray, test_distances: np.ndarray) -> float:
    """P(d < d') + P(d = d') / 2 of a sample's distance d to the training set and a test example's distance d'.

    The Mann-Whitney statistic of data copying, arXiv:2004.05675: 1/2 for samples that are as far from the training
    set as new real data, 1 for copies, 0 for samples that are all farther away.
    """
    distances, ordered = np.asarray(distances), np.sort(np.asarray(test_distances))
    farther = len(ordered) - np.searchsorted(ordered, distances, side="right")
    equal = len(ordered) - farther - np.searchsorted(ordered, distances, side="left")
    return float(np.mean(farther + equal / 2) / len(ordered))


def _squared_distances(x: np.ndarray, y: np.ndarray):
    """(rows, |x_i - y_j|^2 for i in rows) in blocks of rows."""
    size = max(1, _ENTRIES // len(y))
    norms = np.sum(y**2, axis=1)
    for start in range(0, len(x), size):
        rows = np.arange(start, min(start + size, len(x)))
        block = x[rows]
        yield rows, np.maximum(np.sum(block**2, axis=1)[:, None] + norms - 2 * block @ y.T, 0)


def _squared_radii(x: np.ndarray, k: int) -> np.ndarray:
    """The squared distance from every row to its k-th nearest other row."""
    radii = np.empty(len(x))
    for rows, squared in _squared_distances(x, x):
        squared[np.arange(len(rows)), rows] = -1  # the row itself, which is nearer than its copies
        radii[rows] = np.partition(squared, k, axis=1)[:, k]
    return radii


def _pair(real: np.ndarray | Array, samples: np.ndarray | Array, k: int) -> tuple[np.ndarray, np.ndarray]:
    real, samples = np.asarray(real, np.float64), np.asarray(samples, np.float64)
    for name, x in (("real", real), ("samples", samples)):
        if x.ndim != 2 or len(x) <= k or k < 1:
            raise ValueError(f"{name} must be [n, d] with n > k = {k} >= 1, got shape {x.shape}")
        if not np.isfinite(x).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    if real.shape[1] != samples.shape[1]:
        raise ValueError(f"real and samples must have the same dimension, got {real.shape[1]} and {samples.shape[1]}")
    # Around a common origin |x|^2 + |y|^2 - 2 <x, y> cancels less.
    center = real.mean(axis=0)
    return real - center, samples - center


def finite(name: str, x: np.ndarray | Array) -> np.ndarray:
    """`x` in float32. Raises ValueError, naming it, where it is empty or not finite."""
    x = np.asarray(x, np.float32)
    if x.size == 0:
        raise ValueError(f"{name} must not be empty, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} must be finite, got {np.count_nonzero(~np.isfinite(x))} NaN or infinite values")
    return x
