"""Metrics of points in the plane, each next to its value for exact draws from their distribution."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Array

from diffusion_jax.evaluation.neighbours import finite

_DIRECTIONS = 180  # lines through the origin of the plane: one per degree


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
) -> dict[str, float | int]:
    """Compare points in the plane with draws from their exact distribution.

    Args:
      samples: `[n, 2]`.
      reference: `[m, 2]`, exact and independent draws; 2 n of them use all samples.
      log_density: `[n, 2] -> [n]`, natural logarithm of the exact density.
      means, weights: of a mixture's modes, `[k, 2]` and `[k]` with sum 1; both or neither.

    Returns:
      A dictionary with the keys below, each also with `_real` for reference points instead of the samples.

      - `sliced_wasserstein`: from the second half of the reference, at equal counts.
      - `mean_log_density`, in nats, where `log_density` is given.
      - `mode_weight_error`: total variation, in [0, 1], between `weights` and the fractions of points that are
        nearest to each mean, where these are given.
      - `num_samples`, and `num_wasserstein`, the number of points in each set of the sliced distance.

    Raises:
      ValueError: points that are not finite or not in the plane, fewer than 2 reference points, or weights that do
        not fit the means.
    """
    samples, reference = _plane("samples", samples), _plane("reference", reference)
    if len(reference) < 2:
        raise ValueError(f"reference must hold at least 2 points, got {len(reference)}")
    if (means is None) != (weights is None):
        raise ValueError("means and weights must be given together")
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
    return results | {"num_samples": len(samples), "num_wasserstein": count}


def _mode_weight_error(x: np.ndarray, means: np.ndarray | Array, weights: np.ndarray | Array) -> float:
    means, weights = _plane("means", means), np.asarray(weights, np.float64)
    if weights.shape != (len(means),) or weights.min() < 0 or abs(weights.sum() - 1) > 1e-3:
        raise ValueError(f"weights must be {len(means)} probabilities with sum 1, got {weights.tolist()}")
    mode = np.argmin(((x[:, None] - means) ** 2).sum(axis=-1), axis=1)
    return float(np.abs(np.bincount(mode, minlength=len(means)) / len(x) - weights).sum() / 2)


def _plane(name: str, x: np.ndarray | Array) -> np.ndarray:
    x = finite(name, x).astype(np.float64)
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"{name} must be [n, 2], got shape {x.shape}")
    return x
