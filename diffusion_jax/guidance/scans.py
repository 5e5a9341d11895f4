"""Operators of inverse problems that measure all of x at once: compressed sensing, tomography, k-space, phase."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.guidance.operators import Operator, Shape, isotropic, need_image
from diffusion_jax.types import check

_MOST = 2**12  # numbers in x of which a dense matrix is kept
_RAY_STEP = 0.25  # pixels between the points of a ray


def dense(shape: Shape, matrix: Float[np.ndarray, "m n"], noise: float) -> Operator:
    """y [batch, m, channels] = matrix x, for each channel of x as one vector; the last axis of `shape` is channels."""
    left, singular, _ = np.linalg.svd(matrix, full_matrices=False)
    matrix, left = jnp.asarray(matrix, jnp.float32), jnp.asarray(left, jnp.float32)
    eigenvalues = jnp.asarray(singular[None, :, None] ** 2, jnp.float32)

    def gram(v: Array, mask: None, f: Callable[[Array], Array]) -> Array:
        return _times(left, f(eigenvalues) * _times(left.T, v))

    apply = lambda x, mask: _times(matrix, x.reshape(x.shape[0], -1, shape[-1]))  # noqa: E731
    return Operator(shape=shape, apply=apply, gram=gram, noise=noise)


def _times(matrix: Array, x: Array) -> Array:
    return jnp.einsum("mn,bnc->bmc", matrix, x, precision="highest")


def compressed(shape: Shape, num: int = 16, rows: str = "gaussian", seed: int = 0, noise: float = 0.0) -> Operator:
    """Compressed sensing: `num` orthonormal linear functions of x, the same for all examples.

    "gaussian" is a random orthonormal matrix; "hadamard" takes random rows of the Walsh-Hadamard transform of x, whose
    order and signs are random, for x of any size that is a power of 2. Singular values are 1. Raises ValueError for a
    number out of range, other rows, or an x that is too large or no power of 2.
    """
    size = math.prod(shape)
    check(1 <= num <= size, "num", num, f"in 1..{size}, the numbers in x")
    check(rows in ("gaussian", "hadamard"), "rows", rows, "gaussian or hadamard")
    rng = np.random.default_rng(seed)
    if rows == "gaussian":
        check(size <= _MOST, "rows", rows, f"'hadamard' for an x of {size} numbers, more than {_MOST}")
        matrix = jnp.asarray(np.linalg.qr(rng.standard_normal((size, num)))[0].T, jnp.float32)
        apply = lambda x, mask: _times(matrix, x.reshape(x.shape[0], -1, 1))[..., 0]  # noqa: E731
    else:
        check(size & (size - 1) == 0, "rows", rows, f"'gaussian' for an x of {size} numbers, which is no power of 2")
        order, signs = rng.permutation(size), rng.choice(np.float32([-1, 1]), size)
        chosen = rng.permutation(size)[:num]
        apply = lambda x, mask: walsh_hadamard(x.reshape(x.shape[0], -1)[:, order] * signs)[:, chosen]  # noqa: E731
    return Operator(shape=shape, apply=apply, gram=isotropic(1.0), noise=noise)


def walsh_hadamard(x: Float[Array, "batch n"]) -> Float[Array, "batch n"]:
    """The orthonormal Walsh-Hadamard transform, n a power of 2."""
    n = x.shape[1]
    for stride in (2**i for i in range(n.bit_length() - 1)):
        pairs = x.reshape(-1, n // (2 * stride), 2, stride)
        x = jnp.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2).reshape(-1, n)
    return x / math.sqrt(n)


def tomography(shape: Shape, angles: int = 8, noise: float = 0.0) -> Operator:
    """Parallel-beam tomography: integrals along rays at `angles` directions in [0, 180) degrees, one ray per pixel.

    y [angles, side, channels] is the integral over the side of the image, the mean of x along a ray through all of it.
    The usual estimate is filtered back-projection with the ramp filter, of x + 1, which is 0 outside of what is seen.
    Raises ValueError for images that are not square or too large.
    """
    side, width, channels = need_image(shape)
    check(angles >= 1, "angles", angles, "at least 1")
    if side != width or side * side > _MOST:
        raise ValueError(f"it measures square images of at most {_MOST} pixels; they are {side} x {width}")
    one = dense(shape, ray_matrix(side, angles), noise)

    def gram(v: Array, mask: None, f: Callable[[Array], Array]) -> Array:
        return one.gram(v.reshape(-1, angles * side, channels), None, f).reshape(v.shape)

    apply = lambda x, mask: one.apply(x, None).reshape(-1, angles, side, channels)  # noqa: E731
    operator = Operator(shape=shape, apply=apply, gram=gram, noise=noise)
    ramp = jnp.asarray(ramp_filter(side), jnp.float32)

    def back_projected(y: Array, mask: None) -> Array:
        filtered = jnp.einsum("ij,bkjc->bkic", ramp, y + apply(jnp.ones((1, *shape)), None), precision="highest")
        return math.pi / angles * side**2 * operator.transpose(filtered) - 1

    return dataclasses.replace(operator, estimates={"back_projection": back_projected})


def ramp_filter(side: int) -> Float[np.ndarray, "side side"]:
    """The matrix of convolution with the ramp filter of tomography, 1/4 at 0 and -1 / (pi n)^2 at odd n (Ram-Lak)."""
    n = np.abs(np.subtract.outer(np.arange(side), np.arange(side)))
    return np.where(n == 0, 0.25, np.where(n % 2 == 1, -1 / (np.pi * np.maximum(n, 1)) ** 2, 0.0))


def ray_matrix(side: int, angles: int) -> Float[np.ndarray, "rays pixels"]:
    """Integrals over `side` of an image that is interpolated bilinearly and 0 outside, one row per ray."""
    position = np.arange(side) - (side - 1) / 2
    along = np.arange(-side, side, _RAY_STEP) + _RAY_STEP / 2
    matrix = np.zeros((angles * side, side * side))
    for k, angle in enumerate(np.pi * np.arange(angles) / angles):
        down = position[:, None] * np.sin(angle) + along * np.cos(angle) + (side - 1) / 2
        right = position[:, None] * np.cos(angle) - along * np.sin(angle) + (side - 1) / 2
        rays = np.broadcast_to(k * side + np.arange(side)[:, None], down.shape)
        for i in (np.floor(down), np.floor(down) + 1):
            for j in (np.floor(right), np.floor(right) + 1):
                weight = (1 - np.abs(down - i)) * (1 - np.abs(right - j)) * _RAY_STEP / side
                inside = (i >= 0) & (i < side) & (j >= 0) & (j < side)
                np.add.at(matrix, (rays[inside], (i * side + j)[inside].astype(int)), weight[inside])
    return matrix


def k_space(shape: Shape, acceleration: int = 4, centre: float = 0.08, seed: int = 0, noise: float = 0.0) -> Operator:
    """Cartesian magnetic resonance: the orthonormal Fourier transform of x on about 1 / `acceleration` of the rows.

    The rows are the `centre` fraction of low frequencies, and random ones in pairs of k and -k, the same for all
    examples. y [rows, width, 2 channels] has real and imaginary parts; for a real x the adjoint, zero filling, is the
    pseudo-inverse. Raises ValueError for numbers out of range.
    """
    height, _, _ = need_image(shape)
    check(1 <= acceleration <= height, "acceleration", acceleration, f"in 1..{height}, the rows")
    check(0 <= centre <= 1, "centre", centre, "in [0, 1]")
    rows = measured_rows(height, acceleration, centre, seed)

    def apply(x: Array, mask: None) -> Array:
        k = jnp.fft.fft2(x, axes=(1, 2), norm="ortho")[:, rows]
        return jnp.concatenate([k.real, k.imag], -1)

    return Operator(shape=shape, apply=apply, gram=isotropic(1.0), noise=noise)


def measured_rows(height: int, acceleration: int, centre: float, seed: int) -> np.ndarray:
    """The measured frequencies, sorted: with each its negative."""
    wanted = max(1, round(height / acceleration))
    low = max(1, round(centre * height / 2))
    pairs = [*range(low), *(low + np.random.default_rng(seed).permutation(height // 2 + 1 - low))]
    chosen: set[int] = set()
    for k in pairs:
        if len(chosen) >= wanted and k >= low:
            break
        chosen |= {int(k), int(-k % height)}
    return np.array(sorted(chosen))


def phase(shape: Shape, pad: int = -1, noise: float = 0.0) -> Operator:
    """Phase retrieval: the absolute values of the orthonormal Fourier transform of x in a border of `pad` zeros.

    `pad` -1 is a quarter of the side, which oversamples by 2 in area as DPS does at 256 x 256 (arXiv:2209.14687). Not
    linear; the image rotated by 180 degrees, or shifted in its border, has the same measurement. Raises ValueError for
    another negative pad.
    """
    height, width, _ = need_image(shape)
    check(pad >= -1, "pad", pad, "at least 0, or -1 for a quarter of the side")
    border = [(side // 4, side // 4) if pad < 0 else (pad, pad) for side in (height, width)]

    def apply(x: Array, mask: None) -> Array:
        padded = jnp.pad(x, ((0, 0), *border, (0, 0)))
        return jnp.abs(jnp.fft.fft2(padded, axes=(1, 2), norm="ortho"))

    return Operator(shape=shape, apply=apply, noise=noise, linear=False)


def matrix_of(operator: Operator, mask: Array | None = None) -> Float[Array, "m n"]:
    """The matrix of a linear operator with the mask [1, h, w, 1] of one row, column by column."""
    size = math.prod(operator.shape)
    basis = jnp.eye(size).reshape(size, *operator.shape)
    rows = None if mask is None else jnp.broadcast_to(mask, (size, *mask.shape[1:]))
    return jax.jit(operator.apply)(basis, rows).reshape(size, -1).T
