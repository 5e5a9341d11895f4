"""JPEG as an operator of inverse problems: y is the decoded picture, and decoding is its pseudo-inverse."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.guidance.operators import Operator, Shape, need_image
from diffusion_jax.types import check

# The tables of ITU-T T.81, annex K, for luminance and chrominance.
LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    float,
)
CHROMINANCE = np.full((8, 8), 99.0)
CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
TABLES = {1: [LUMINANCE], 3: [LUMINANCE, CHROMINANCE, CHROMINANCE]}  # by number of channels
# Y, Cb, Cr of red, green and blue (JFIF).
TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
_HALF = 127.5  # of 0..255, which is [-1, 1]


def quantization(table: np.ndarray, quality: int) -> Float[np.ndarray, "8 8"]:
    """A table at a quality of 1 to 100, as libjpeg scales it."""
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    return np.clip(np.floor((table * scale + 50) / 100), 1, 255)


def cosines() -> Float[np.ndarray, "8 8"]:
    """The orthonormal discrete cosine transform of 8 numbers, DCT-II."""
    k, n = np.mgrid[:8, :8]
    matrix = np.cos(np.pi * k * (2 * n + 1) / 16) / 2
    matrix[0] /= np.sqrt(2)
    return matrix


def jpeg(shape: Shape, quality: int = 10, noise: float = 0.0) -> Operator:
    """JPEG at `quality` 1 to 100, with its colours at full resolution and without rounding to 8 bits.

    Not linear and without a useful derivative, but h(h(x)) = h(x): its pseudo-inverse is the identity. Raises
    ValueError for another quality, noise, images that are neither grey nor RGB, or sides that 8 does not divide.
    """
    height, width, channels = need_image(shape)
    check(1 <= quality <= 100, "quality", quality, "in 1..100")
    check(noise == 0, "noise", noise, "0: what JPEG loses is not noise")
    check(channels in TABLES, "channels", channels, "1 or 3 for JPEG")
    if height % 8 or width % 8:
        raise ValueError(f"8 must divide the sides of images for JPEG; they are {height} x {width}")
    steps = jnp.asarray(np.stack([quantization(table, quality) for table in TABLES[channels]], -1), jnp.float32)
    dct = jnp.asarray(cosines(), jnp.float32)
    colours = jnp.asarray(TO_YCC if channels == 3 else np.eye(1), jnp.float32)
    back = jnp.asarray(np.linalg.inv(TO_YCC) if channels == 3 else np.eye(1), jnp.float32)

    zero = jnp.asarray([0.5, 0.0, 0.0][:channels], jnp.float32)  # 0..255 less 128, or 127.5 x less a half

    def apply(x: Array, mask: None) -> Array:
        y = jnp.einsum("bhwc,dc->bhwd", _HALF * x, colours, precision="highest") - zero
        blocks = y.reshape(-1, height // 8, 8, width // 8, 8, channels)
        frequencies = jnp.einsum("ki,bhiwjc,lj->bhkwlc", dct, blocks, dct, precision="highest")
        kept = jnp.round(frequencies / steps[:, None]) * steps[:, None]
        y = jnp.einsum("ki,bhkwlc,lj->bhiwjc", dct, kept, dct, precision="highest").reshape(y.shape) + zero
        return jnp.einsum("bhwd,cd->bhwc", y, back, precision="highest") / _HALF

    return Operator(shape=shape, apply=apply, inverse=lambda y, mask: y, linear=False, differentiable=False)
