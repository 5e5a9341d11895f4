"""How well samples restore what was measured: PSNR, SSIM, the residual, spread, and what simple estimators reach."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from diffusion_jax.evaluation.reconstruction import ssim
from diffusion_jax.guidance.operators import Operator
from diffusion_jax.guidance.scans import matrix_of

LARGEST = 2**10  # numbers in x of which covariances are inverted
Images = Float[np.ndarray, "n h w c"]


def restoration(
    samples: Images,
    truth: Images,
    measurement: Float[np.ndarray, "n *entry"],
    operator: Operator,
    train: Images,
    perceptual: Callable[[Images, Images], Float[np.ndarray, "n"]] | None = None,
) -> dict[str, Any]:
    """Metrics of restored images [k n, ...], sample i of the measurement i mod n of `truth`.

    Returns, with names that begin with "restoration_": `psnr` and `ssim` of single samples, `mean_psnr` and `mean_ssim`
    of the mean of the k samples of a measurement, `spread`, the root mean square of their standard deviation per pixel,
    `residual`, the root mean square of y - A x over the noise q (about 1 is right; without noise it is not divided),
    and the PSNR of simple estimates, `psnr_NAME` for each of `baselines`. For inpainting the PSNR is that of the
    unknown pixels. With a distance `perceptual`, LPIPS, also `lpips` of single samples, `mean_lpips`, and `lpips_NAME`
    of the estimates. A sample of the exact posterior is 3 dB below its mean. Raises ValueError unless k is whole.
    """
    num = len(truth)
    if len(samples) % num:
        raise ValueError(f"{len(samples)} samples of {num} measurements; every measurement needs as many")
    rows = samples.reshape(-1, num, *truth.shape[1:])
    y, mask = operator.split(jnp.asarray(measurement))
    error = [(y - operator(jnp.asarray(x), mask)) * operator.known(y, mask) for x in rows]
    known = float(jnp.sum(operator.known(y, mask)))
    residual = math.sqrt(sum(float(jnp.sum(e**2)) for e in error) / len(rows) / known) / (operator.noise or 1)
    unknown, found = unknown_of(measurement, operator), baselines(measurement, operator, train)
    values = {
        "num_measurements": num,
        "samples_per_measurement": len(rows),
        "psnr": np.mean([psnr(x, truth, unknown) for x in rows]),
        "ssim": np.mean([ssim(x, truth) for x in rows]),
        "mean_psnr": np.mean(psnr(rows.mean(0), truth, unknown)),
        "mean_ssim": np.mean(ssim(rows.mean(0), truth)),
        "spread": np.sqrt(np.mean(rows.var(0, ddof=1))) if len(rows) > 1 else 0.0,
        "residual": residual,
        **{f"psnr_{name}": np.mean(psnr(x, truth, unknown)) for name, x in found.items()},
    }
    if perceptual is not None:
        distance = lambda x: np.mean(perceptual(np.clip(x, -1, 1).astype(np.float32), truth))  # noqa: E731
        values |= {"lpips": np.mean([distance(x) for x in rows]), "mean_lpips": distance(rows.mean(0))}
        values |= {f"lpips_{name}": distance(x) for name, x in found.items()}
    return {f"restoration_{name}": value if isinstance(value, int) else float(value) for name, value in values.items()}


def by_task(
    samples: Images, truth: Images, start: Images, unknown: Bool[np.ndarray, "n h w 1"], tasks: Sequence[str]
) -> dict[str, Any]:
    """PSNR of restored images [k n, ...], sample i of the image i mod n, for each of the `tasks` of n images.

    Returns, with names that begin with "tasks_NAME_": `psnr` of single samples, `mean_psnr` of the mean of the k
    samples of an image, and `psnr_start` of the degraded image, all from the mean squared error over the pixels of all
    images where `unknown`; `num`, the number of images. Raises ValueError unless k is whole.
    """
    if len(samples) % len(truth):
        raise ValueError(f"{len(samples)} samples of {len(truth)} images; every image needs as many")
    rows, values = samples.reshape(-1, *truth.shape), {}
    for name in dict.fromkeys(tasks):
        chosen = np.array([task == name for task in tasks])
        where = np.broadcast_to(unknown, truth.shape)[chosen]
        found = {"psnr": rows[:, chosen], "mean_psnr": rows[:, chosen].mean(0), "psnr_start": start[chosen]}
        for key, x in found.items():
            error = np.mean(np.square(x - truth[chosen])[..., where])
            values[f"tasks_{name}_{key}"] = float(10 * np.log10(4 / max(error, 4e-10)))
        values[f"tasks_{name}_num"] = int(chosen.sum())
    return values


def psnr(x: Images, truth: Images, unknown: Float[np.ndarray, "_ _ _ _"]) -> Float[np.ndarray, "n"]:
    """Peak signal-to-noise ratio in dB, of values in [-1, 1], where `unknown` (broadcast) is 1; at most 100."""
    where = np.broadcast_to(unknown, truth.shape)
    error = (np.square(x - truth) * where).sum((1, 2, 3)) / np.maximum(where.sum((1, 2, 3)), 1)
    return 10 * np.log10(4 / np.maximum(error, 4e-10))


def unknown_of(measurement: Float[np.ndarray, "n *entry"], operator: Operator) -> Float[np.ndarray, "_ _ _ _"]:
    """1 for the pixels that are to be restored: for inpainting those without the mask, otherwise all."""
    y, mask = operator.split(np.asarray(measurement))
    inpainting = mask is not None and y.shape[1:] == operator.shape
    return 1 - mask if inpainting else np.ones((1, 1, 1, 1), np.float32)


def as_image(measurement: Float[np.ndarray, "n *entry"], operator: Operator) -> Float[np.ndarray, "n h w c"] | None:
    """A measurement as an image to look at: y if it has the shape of x, else its pseudo-inverse; None without one."""
    y, mask = operator.split(jnp.asarray(measurement))
    if y.shape[1:] == operator.shape:
        return np.asarray(y)
    return np.asarray(operator.pinv(y, mask)) if operator.has_pinv else None


def baselines(
    measurement: Float[np.ndarray, "n *entry"], operator: Operator, train: Images
) -> dict[str, Float[np.ndarray, "n h w c"]]:
    """Estimates without a model, limited to [-1, 1], by name.

    `mean`, of the training images; `pinv`, the pseudo-inverse; those of the operator, such as `back_projection`;
    `interpolation`, bilinear, of a y that is a smaller image; `lmmse`, `linear_estimate`, for a linear operator and
    images of at most 1024 numbers.
    """
    y, mask = operator.split(jnp.asarray(measurement))
    found = {"mean": np.broadcast_to(train.mean(0), (len(y), *operator.shape))}
    if operator.has_pinv:
        found["pinv"] = operator.pinv(y, mask)
    found |= {name: estimate(y, mask) for name, estimate in operator.estimates.items()}
    if len(y.shape) == 4 and y.shape[-1] == operator.shape[-1] and y.shape[1] < operator.shape[0]:
        found["interpolation"] = jax.image.resize(y, (len(y), *operator.shape), "bilinear")
    if operator.linear and math.prod(operator.shape) <= LARGEST:
        found["lmmse"] = linear_estimate(measurement, operator, train)
    return {name: np.clip(np.asarray(x), -1, 1) for name, x in found.items()}


def linear_estimate(
    measurement: Float[np.ndarray, "n *entry"], operator: Operator, train: Images
) -> Float[np.ndarray, "n h w c"]:
    """The linear estimate of least mean square error: m + C A^T (A C A^T + q^2 I)^+ (y - A m).

    m and C are mean and covariance of the training images. It is the posterior mean of a Gaussian prior, the best of
    all linear estimates, and what a generative prior has to beat.
    """
    flat = train.reshape(len(train), -1).astype(np.float64)
    mean, covariance = flat.mean(0), np.cov(flat, rowvar=False).reshape(flat.shape[1], -1)
    y, mask = operator.split(jnp.asarray(measurement))
    y = np.asarray(y, np.float64).reshape(len(y), -1)

    def estimated(y: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        of_y = matrix @ covariance @ matrix.T + operator.noise**2 * np.eye(len(matrix))
        return mean + (y - matrix @ mean) @ np.linalg.pinv(of_y, rcond=1e-9, hermitian=True) @ matrix @ covariance

    if mask is None:
        found = estimated(y, np.asarray(matrix_of(operator), np.float64))
    else:
        matrices = (np.asarray(matrix_of(operator, row[None]), np.float64) for row in mask)
        found = np.stack([estimated(row, matrix) for row, matrix in zip(y, matrices, strict=True)])
    return found.reshape(len(y), *operator.shape).astype(np.float32)
