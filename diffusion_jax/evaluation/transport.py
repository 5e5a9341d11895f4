"""How well samples of a bridge fit their pairs and their set: PSNR, cost of transport, Wasserstein distance."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from diffusion_jax.evaluation.reconstruction import ssim

LARGEST = 4000  # points of which the exact assignment is computed


def wasserstein_2(x: Float[np.ndarray, "n *shape"], y: Float[np.ndarray, "n *shape"]) -> float:
    """The 2-Wasserstein distance of two samples of equal size, by the exact assignment of least squared cost.

    Raises ValueError for samples of different sizes, or of more than `LARGEST` points.
    """
    if x.shape != y.shape or len(x) > LARGEST:
        raise ValueError(f"samples of {x.shape} and {y.shape} must be alike, of at most {LARGEST} points")
    return float(np.sqrt(assigned_cost(x, y)))


def assigned_cost(x: Float[np.ndarray, "n *shape"], y: Float[np.ndarray, "n *shape"]) -> float:
    """The least mean squared distance over all one-to-one assignments: the cost of optimal transport."""
    a, b = (np.asarray(z, np.float64).reshape(len(z), -1) for z in (x, y))
    costs = np.sum(a**2, 1)[:, None] + np.sum(b**2, 1)[None] - 2 * a @ b.T
    rows, columns = linear_sum_assignment(costs)
    return float(max(costs[rows, columns].mean(), 0))


def transport(
    samples: Float[np.ndarray, "n *shape"],
    start: Float[np.ndarray, "n *shape"],
    test: Float[np.ndarray, "m *shape"],
    train: Float[np.ndarray, "k *shape"],
) -> dict[str, Any]:
    """Metrics of samples that started from examples of another set, with names that begin with "transport_".

    `cost`: mean squared distance from start to sample; `cost_independent` that of random pairs of start and test
    example, `cost_optimal` the least of any one-to-one pairs. `w2`: 2-Wasserstein distance of samples to test examples,
    at equal counts, and `w2_real` that of as many training examples.
    """
    n = min(len(samples), len(test), len(train), LARGEST)
    samples, start, test, train = (np.asarray(x, np.float64)[:n] for x in (samples, start, test, train))
    a, b = start.reshape(n, -1), test.reshape(n, -1)
    values = {
        "cost": np.square(samples - start).reshape(n, -1).sum(1).mean(),
        "cost_independent": np.square(a).sum(1).mean() + np.square(b).sum(1).mean() - 2 * a.mean(0) @ b.mean(0),
        "cost_optimal": assigned_cost(start, test),
        "w2": wasserstein_2(samples, test),
        "w2_real": wasserstein_2(train, test),
    }
    return {"transport_num": n, **{f"transport_{name}": float(value) for name, value in values.items()}}


def paired(
    samples: Float[np.ndarray, "n h w c"], start: Float[np.ndarray, "n h2 w2 c"], truth: Float[np.ndarray, "m h w c"]
) -> dict[str, Any]:
    """Metrics of samples [k m, ...], sample i of the pair i mod m, with names that begin with "pairs_".

    `psnr` and `ssim` of single samples against the truth of their pairs, `mean_psnr` of the mean of the k samples of a
    pair, and `psnr_start` of x_1 itself. The PSNR is that of the mean squared error over all pairs, since pairs that
    are the same image have none of their own. An x_1 that is a smaller image is enlarged by bicubic interpolation, and
    `consistency` is the mean squared difference between it and the samples, averaged to its size. Raises ValueError
    unless k is whole.
    """
    num = len(truth)
    if len(samples) % num:
        raise ValueError(f"{len(samples)} samples of {num} pairs; every pair needs as many")
    rows = samples.reshape(-1, *truth.shape)
    enlarged, consistency = start[:num], {}
    if start.shape[1:] != truth.shape[1:]:
        enlarged = np.clip(jax.image.resize(start[:num], truth.shape, "bicubic"), -1, 1)
        height, width = start.shape[1:3]
        blocks = (height, truth.shape[1] // height, width, truth.shape[2] // width)
        reduced = samples.reshape(len(samples), *blocks, truth.shape[3]).mean((2, 4))
        consistency = {"consistency": np.mean(np.square(reduced - np.tile(start[:num], (len(rows), 1, 1, 1))))}

    def psnr(x: np.ndarray) -> float:
        return 10 * np.log10(4 / max(np.mean(np.square(x - truth)), 4e-10))

    values = {
        "psnr": psnr(rows),
        "ssim": np.mean([ssim(x, truth) for x in rows]),
        "mean_psnr": psnr(rows.mean(0)),
        "psnr_start": psnr(enlarged),
        **consistency,
    }
    return {"pairs_num": num, **{f"pairs_{name}": float(value) for name, value in values.items()}}
