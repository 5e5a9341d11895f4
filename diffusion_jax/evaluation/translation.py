"""How well draws of an image given another one fit the truth: error, spread, and whether both agree."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from diffusion_jax.evaluation.reconstruction import ssim

Images = Float[np.ndarray, "n h w c"]
_POWERS = 3  # of the regression
_REACH = 2  # pixels to each side that the regression of neighbourhoods reads
_ROWS = 200_000  # pixels that a regression is fitted to, at most


def mean_and_spread(samples: Float[np.ndarray, "n *shape"], each: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every `each` consecutive samples [n // each, *shape], which share conditions.

    The deviation is that of the law they are drawn from, with each - 1 in the denominator. Raises ValueError for fewer
    than two of each.
    """
    if each < 2:
        raise ValueError(f"{each} sample of each condition has no spread; at least 2 are needed")
    rows = samples[: len(samples) // each * each].reshape(-1, each, *samples.shape[1:])
    return rows.mean(1), rows.std(1, ddof=1)


def calibration(rows: Float[np.ndarray, "k n *shape"], truth: Float[np.ndarray, "n *shape"]) -> dict[str, float]:
    """Errors of k draws for each truth, and what they are for draws from the exact posterior.

    With V = E Var[x | y], a draw from the exact posterior has the mean squared error 2 V, the mean of k draws
    V (1 + 1/k) (arXiv:2209.12104 calls these Monte-Carlo averages). Returns `mse` of single draws, `mean_mse` of their
    mean, `gain`, the ratio of both, and `gain_exact` = 2 k / (k + 1); with k > 1 also `spread`, the root mean square of
    the standard deviation of draws, sqrt(V), and `calibration`, mean_mse over spread^2 (1 + 1/k): 1 for the exact
    posterior, more for draws that are too alike.
    """
    k = len(rows)
    mse, mean_mse = (float(np.mean(np.square(x - truth))) for x in (rows, rows.mean(0)))
    least = np.finfo(np.float32).tiny
    values = {"mse": mse, "mean_mse": mean_mse, "gain": mse / max(mean_mse, least), "gain_exact": 2 * k / (k + 1)}
    if k > 1:
        variance = float(np.mean(rows.var(0, ddof=1)))
        values |= {"spread": variance**0.5, "calibration": mean_mse / max(variance * (1 + 1 / k), least)}
    return values


def regression(train_given: Images, train: Images, given: Images, *, reach: int = 0) -> Images:
    """Least squares of each pixel of x on the pixel y of `given` at its place: the baseline of a translation.

    The features are 1, y, y^2 and y^3 of every channel and, with `reach`, the pixels up to so many away. Values are
    limited to [-1, 1]. Raises ValueError for images of other sizes than those that they are given for.
    """
    if train_given.shape[:3] != train.shape[:3]:
        raise ValueError(f"images of {train_given.shape[:3]} do not lie upon those of {train.shape[:3]}")

    def features(y: Images) -> Float[np.ndarray, "m d"]:
        padded = np.pad(y, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="reflect")
        _, height, width, _ = y.shape
        around = [
            padded[:, i : i + height, j : j + width]
            for i in range(2 * reach + 1)
            for j in range(2 * reach + 1)
            if (i, j) != (reach, reach)
        ]
        parts = [np.ones_like(y[..., :1]), *(y**power for power in range(1, _POWERS + 1)), *around]
        return np.concatenate(parts, -1).reshape(-1, sum(part.shape[-1] for part in parts))

    # Whole images, so that pixels of every place are among the rows.
    step = max(1, train[..., 0].size // _ROWS)
    rows, targets = features(train_given[::step]), train[::step].reshape(-1, train.shape[-1])
    weights = np.linalg.lstsq(rows.astype(np.float64), targets.astype(np.float64), rcond=None)[0]
    return np.clip(features(given) @ weights, -1, 1).reshape(*given.shape[:3], -1).astype(np.float32)


def translation(samples: Images, truth: Images, given: Images, train: Images, train_given: Images) -> dict[str, Any]:
    """Metrics of samples [k n, ...], sample i of the image `given` i mod n, with names that begin with "translation_".

    `psnr` and `ssim` of single samples and `mean_psnr`, `mean_ssim` of the mean of the k samples of an image, from the
    mean squared error over all images; `gain`, `gain_exact`, `spread` and `calibration`, see `calibration`;
    `psnr_pixel` and `psnr_window` of the `regression` of each pixel, and of its 5 x 5 neighbourhood, if both images
    have one size; `channel_i_psnr` and `channel_i_mean_psnr` of each channel i, if there are several. Raises ValueError
    unless k is whole.
    """
    num = len(truth)
    if not len(samples) or len(samples) % num:
        raise ValueError(f"{len(samples)} samples of {num} pairs; every pair needs as many")
    rows = samples.reshape(-1, *truth.shape)
    law = calibration(rows, truth)
    values = {
        "psnr": psnr(law["mse"]),
        "ssim": float(np.mean([ssim(x, truth) for x in rows])),
        "mean_psnr": psnr(law["mean_mse"]),
        "mean_ssim": float(np.mean(ssim(rows.mean(0), truth))),
        **{name: value for name, value in law.items() if name not in ("mse", "mean_mse")},
    }
    if given.shape[:3] == truth.shape[:3]:
        for name, reach in {"pixel": 0, "window": _REACH}.items():
            found = regression(train_given, train, given, reach=reach)
            values[f"psnr_{name}"] = psnr(np.mean(np.square(found - truth)))
    channels = truth.shape[-1]
    for c in range(channels) if channels > 1 else ():
        values[f"channel_{c}_psnr"] = psnr(np.mean(np.square(rows[..., c] - truth[..., c])))
        values[f"channel_{c}_mean_psnr"] = psnr(np.mean(np.square(rows.mean(0)[..., c] - truth[..., c])))
    counts = {"num": num, "samples_per_image": len(rows)}
    return {f"translation_{name}": value for name, value in (counts | values).items()}


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of values in [-1, 1], at most 100."""
    return float(10 * np.log10(4 / max(error, 4e-10)))
