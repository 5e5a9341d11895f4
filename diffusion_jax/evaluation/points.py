"""Metrics of points in the plane, each next to its value for exact draws from their distribution."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Array

from diffusion_jax.evaluation.neighbours import finite

_DIRECTIONS = 180  # lines through the origin of the plane: one per degree
_NEAR = 3.0  # standard deviations from the mean of a mode within which points count as of this mode
_LEAST = 0.01  # share of all points that a mode must have to count as covered


def sliced_wasserstein(x: np.ndarray | Array, y: np.ndarray | Array) -> float:
    """Sliced 2-Wasserstein distance of two equally large sets of points in the plane; see arXiv 1902.00434.

    The root of the mean, over directions u, of W_2(<u, x>, <u, y>)^2, where W_2 between points on a line matches them
    in order. It is computed over 180 directions, one per degree. A translation by v gives |v| / sqrt(2).

    Args:
      x, y: `[n, 2]`.

    Raises:
      ValueError: a set is empty, not finite or not in the plane, or the counts differ.
    """
    x, y = _plane("x", x), _plane("y", y)
    if len(x) != len(y):
        raise ValueError(f"x and y must hold equally many points, got {len(x)} and {len(y)}")
    angles = np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
    directions = np.stack([np.cos(angles), np.sin(angles)])
    return float(np.sqrt(np.mean((np.sort(x @ directions, axis=0) - np.sort(y @ directions, axis=0)) ** 2)))


def toy_metrics(
    samples: np.ndarray | Array,
    reference: np.ndarray | Array,
    *,
    log_density: Callable | None = None,
    means: np.ndarray | Array | None = None,
    weights: np.ndarray | Array | None = None,
    std: float | None = None,
) -> dict[str, float | int]:
    """Compare points in the plane with draws from their exact distribution.

    Args:
      samples: `[n, 2]`.
      reference: `[m, 2]`, exact and independent draws; 2 n of them use all samples.
      log_density: `[n, 2] -> [n]`, natural logarithm of the exact density.
      means, weights: of a mixture's modes, `[k, 2]` and `[k]` with sum 1; both or neither.
      std: of each coordinate within a mode; together with `means`.

    Returns:
      A dictionary with the keys below, each also with `_real` for reference points instead of the samples.

      - `sliced_wasserstein`: from the second half of the reference, at equal counts.
      - `mean_log_density`, in nats, where `log_density` is given.
      - `mode_weight_error`: total variation, in [0, 1], between `weights` and the fractions of points that are
        nearest to each mean, where these are given.
      - `near_modes` and `modes`, where `std` is given: the share of points within 3 `std` of the nearest mean
        (1 - exp(-4.5) = 0.989 for the exact mixture), and the number of modes that have at least 1 % of all points so
        near, as the rings of Gaussians are counted with which GANs are compared (arXiv:1611.02163).
      - `num_samples`, and `num_wasserstein`, the number of points in each set of the sliced distance.

    Raises:
      ValueError: points that are not finite or not in the plane, fewer than 2 reference points, or weights that do
        not fit the means.
    """
    samples, reference = _plane("samples", samples), _plane("reference", reference)
    if len(reference) < 2:
        raise ValueError(f"reference must hold at least 2 points, got {len(reference)}")
    if (means is None) != (weights is None) or (std is not None and means is None):
        raise ValueError("means and weights must be given together, and std only with them")
    half = len(reference) // 2
    count = min(len(samples), half)
    target = reference[half : half + count]
    results: dict[str, float | int] = {
        "sliced_wasserstein": sliced_wasserstein(samples[:count], target),
        "sliced_wasserstein_real": sliced_wasserstein(reference[:count], target),
    }
    if log_density is not None:
        for suffix, x in (("", samples), ("_real", reference)):
            results["mean_log_density" + suffix] = float(np.mean(np.asarray(log_density(x.astype(np.float32)))))
    if means is not None:
        for suffix, x in (("", samples), ("_real", reference)):
            results["mode_weight_error" + suffix] = _mode_weight_error(x, means, weights)
            if std is not None:
                results |= {name + suffix: value for name, value in _modes(x, means, std).items()}
    return results | {"num_samples": len(samples), "num_wasserstein": count}


def _mode_weight_error(x: np.ndarray, means: np.ndarray | Array, weights: np.ndarray | Array) -> float:
    means, weights = _plane("means", means), np.asarray(weights, np.float64)
    if weights.shape != (len(means),) or weights.min() < 0 or abs(weights.sum() - 1) > 1e-3:
        raise ValueError(f"weights must be {len(means)} probabilities with sum 1, got {weights.tolist()}")
    mode, _ = _nearest(x, means)
    return float(np.abs(np.bincount(mode, minlength=len(means)) / len(x) - weights).sum() / 2)


def _modes(x: np.ndarray, means: np.ndarray | Array, std: float) -> dict[str, float | int]:
    mode, distance = _nearest(x, means)
    near = distance <= _NEAR * std
    share = np.bincount(mode[near], minlength=len(means)) / len(x)
    return {"near_modes": float(near.mean()), "modes": int((share >= _LEAST).sum())}


def _nearest(x: np.ndarray, means: np.ndarray | Array) -> tuple[np.ndarray, np.ndarray]:
    """The nearest mean of each point, and the distance to it."""
    distances = np.sqrt(((x[:, None] - np.asarray(means)) ** 2).sum(axis=-1))
    return distances.argmin(axis=1), distances.min(axis=1)


def _plane(name: str, x: np.ndarray | Array) -> np.ndarray:
    x = finite(name, x).astype(np.float64)
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"{name} must be [n, 2], got shape {x.shape}")
    return x
