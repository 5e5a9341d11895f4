"""Operators of inverse problems that smooth or shrink images: averages, bicubic, blurs, grey."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.guidance.operators import Gram, Operator, Shape, isotropic, need_image
from diffusion_jax.types import LUMA, check

_CUBIC = -0.5  # the parameter a of bicubic interpolation


def separable(
    shape: Shape, rows: Float[np.ndarray, "h2 h"], columns: Float[np.ndarray, "w2 w"], noise: float
) -> Operator:
    """y = `rows` x `columns`^T for each channel. A A^T has the products of squared singular values as eigenvalues."""
    matrices = jnp.asarray(rows, jnp.float32), jnp.asarray(columns, jnp.float32)
    (left, above), (right, beside) = (np.linalg.svd(m, full_matrices=False)[:2] for m in (rows, columns))
    left, right = jnp.asarray(left, jnp.float32), jnp.asarray(right, jnp.float32)
    eigenvalues = jnp.asarray(np.multiply.outer(above**2, beside**2)[None, ..., None], jnp.float32)

    def gram(v: Array, mask: None, f: Callable[[Array], Array]) -> Array:
        return _sides(left, right, f(eigenvalues) * _sides(left.T, right.T, v))

    return Operator(shape=shape, apply=lambda x, mask: _sides(*matrices, x), gram=gram, noise=noise)


def _sides(rows: Array, columns: Array, x: Array) -> Array:
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision="highest")


def average(shape: Shape, factor: int = 2, noise: float = 0.0) -> Operator:
    """Super-resolution: the mean of each square of `factor` x `factor` pixels. Its singular values are 1 / factor.

    Raises ValueError unless the factor divides the sides.
    """
    height, width, channels = _divided(shape, factor)

    def apply(x: Array, mask: None) -> Array:
        return x.reshape(-1, height // factor, factor, width // factor, factor, channels).mean((2, 4))

    return Operator(shape=shape, apply=apply, gram=isotropic(1 / factor**2), noise=noise)


def bicubic(shape: Shape, factor: int = 4, noise: float = 0.0) -> Operator:
    """Super-resolution: antialiased bicubic interpolation (a = -0.5, 4 `factor` taps) with reflected borders.

    Raises ValueError unless the factor divides the sides.
    """
    height, width, _ = _divided(shape, factor)
    return separable(shape, cubic_matrix(height, factor), cubic_matrix(width, factor), noise)


def _divided(shape: Shape, factor: int) -> tuple[int, int, int]:
    height, width, channels = need_image(shape)
    check(factor >= 1, "factor", factor, "at least 1")
    if height % factor or width % factor:
        raise ValueError(f"factor={factor} must divide the sides of images, which are {height} x {width}")
    return height, width, channels


def cubic_matrix(side: int, factor: int) -> Float[np.ndarray, "small side"]:
    """The matrix of bicubic interpolation in one dimension: rows sum to 1."""
    taps = np.arange(-2 * factor, 2 * factor) + 0.5 * (factor % 2 == 0)
    d = np.abs(taps / factor)
    near = (_CUBIC + 2) * d**3 - (_CUBIC + 3) * d**2 + 1
    far = _CUBIC * (d**3 - 5 * d**2 + 8 * d - 4)
    weights = np.where(d <= 1, near, np.where(d < 2, far, 0))
    return _filtered(side, weights / weights.sum(), "reflect", factor)


def _filtered(side: int, weights: np.ndarray, border: str, stride: int = 1) -> np.ndarray:
    """The matrix of a correlation with `weights`, whose middle is on the pixel (odd) or between two (even)."""
    matrix = np.zeros((side // stride, side))
    first = stride // 2 - len(weights) // 2
    for i in range(side // stride):
        for j, weight in enumerate(weights):
            place = i * stride + first + j
            period = place % (2 * side)
            matrix[i, place % side if border == "circular" else min(period, 2 * side - 1 - period)] += weight
    return matrix


def gaussian_blur(
    shape: Shape, size: int = 5, std: float = 1.0, border: str = "reflect", noise: float = 0.0
) -> Operator:
    """Blur by a Gaussian of `std` pixels in a window of `size` x `size`, with a "reflect" or "circular" border.

    DPS (arXiv:2209.14687) takes size 61 and std 3 at 256 x 256. Raises ValueError for an even or too large window,
    a std that is not positive, or another border.
    """
    height, width, _ = need_image(shape)
    check(size >= 1 and size % 2 == 1, "size", size, "odd and at least 1")
    check(std > 0, "std", std, "positive")
    check(border in ("reflect", "circular"), "border", border, "reflect or circular")
    if size > 2 * min(height, width):
        raise ValueError(f"size={size} must be at most twice the sides of images, which are {height} x {width}")
    weights = np.exp(-0.5 * ((np.arange(size) - size // 2) / std) ** 2)
    weights /= weights.sum()
    return separable(shape, _filtered(height, weights, border), _filtered(width, weights, border), noise)


def motion_blur(shape: Shape, size: int = 5, intensity: float = 0.5, seed: int = 0, noise: float = 0.0) -> Operator:
    """Circular blur along a random path in a window of `size` x `size`, the same for all examples.

    The path has a direction that wanders with `intensity` in [0, 1]: 0 is a straight line. Raises ValueError for an
    even or too large window, or an intensity out of range.
    """
    height, width, _ = need_image(shape)
    check(size >= 1 and size % 2 == 1, "size", size, "odd and at least 1")
    check(0 <= intensity <= 1, "intensity", intensity, "in [0, 1]")
    if size > min(height, width):
        raise ValueError(f"size={size} must be at most the sides of images, which are {height} x {width}")
    return convolution(shape, path_kernel(size, intensity, seed), noise)


def path_kernel(size: int, intensity: float, seed: int) -> Float[np.ndarray, "size size"]:
    """A path that fills a window of `size` pixels, spread over its four nearest pixels at each point; its sum is 1."""
    rng = np.random.default_rng(seed)
    points = 20 * size
    turns = intensity * np.pi * np.cumsum(rng.standard_normal(points)) / np.sqrt(points)
    angle = rng.uniform(0, np.pi) + turns
    path = np.cumsum(np.stack([np.sin(angle), np.cos(angle)], 1), 0)
    path -= (path.max(0) + path.min(0)) / 2
    path = path / max(np.ptp(path, axis=0).max(), 1e-6) * (size - 1) + (size - 1) / 2
    kernel = np.zeros((size + 1, size + 1))
    corner = np.floor(path).astype(int)
    share = path - corner
    for down in (0, 1):
        for right in (0, 1):
            weight = np.abs(1 - down - share[:, 0]) * np.abs(1 - right - share[:, 1])
            np.add.at(kernel, (corner[:, 0] + down, corner[:, 1] + right), weight)
    kernel = kernel[:size, :size]
    return kernel / kernel.sum()


def convolution(shape: Shape, kernel: Float[np.ndarray, "a b"], noise: float) -> Operator:
    """Circular convolution with a kernel whose middle is the origin; A A^T is diagonal in the Fourier basis."""
    height, width, _ = shape
    padded = np.zeros((height, width))
    padded[: kernel.shape[0], : kernel.shape[1]] = kernel
    padded = np.roll(padded, (-(kernel.shape[0] // 2), -(kernel.shape[1] // 2)), (0, 1))
    factors = jnp.asarray(np.fft.fft2(padded)[None, ..., None], jnp.complex64)

    def filtered(x: Array, by: Array) -> Array:
        return jnp.fft.ifft2(by * jnp.fft.fft2(x, axes=(1, 2)), axes=(1, 2)).real

    gram: Gram = lambda v, mask, f: filtered(v, f(jnp.abs(factors) ** 2))  # noqa: E731
    return Operator(shape=shape, apply=lambda x, mask: filtered(x, factors), gram=gram, noise=noise)


def grey(shape: Shape, weights: str = "luma", noise: float = 0.0) -> Operator:
    """Colourisation: the weighted sum of the channels, "luma" of RGB (ITU-R BT.601) or their "mean".

    Raises ValueError for other weights, or luma of images that are not RGB.
    """
    *_, channels = need_image(shape)
    check(weights in ("luma", "mean"), "weights", weights, "luma or mean")
    if weights == "luma" and channels != 3:
        raise ValueError(f"weights='luma' are those of red, green and blue; images have {channels} channels")
    factors = np.asarray(LUMA if weights == "luma" else (1 / channels,) * channels, np.float32)
    return Operator(
        shape=shape,
        apply=lambda x, mask: jnp.sum(x * factors, -1, keepdims=True),
        gram=isotropic(float(np.sum(np.square(factors)))),
        noise=noise,
    )
