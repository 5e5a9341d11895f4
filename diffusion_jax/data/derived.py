"""Conditions that are made of the example itself, such as "image": a smaller picture, or one with a mask."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Shaped

_BOXES = 4  # at most, in a mask
_WHOLE = 0.25  # of the masks cover everything
_SIDES = (0.1, 0.6)  # of a box, as shares of the picture's


class Derived(NamedTuple):
    """`make(x, u)` gives the conditions of examples x [n, height, width, channels] in [-1, 1] by name; u [n, draws] is
    uniform in [0, 1)."""

    make: Callable[[Float32[np.ndarray, "n h w c"], Float32[np.ndarray, "n d"]], dict[str, Shaped[np.ndarray, "n ..."]]]
    draws: int = 0


def averaged(side: int) -> Derived:
    """Images of `side` pixels, each the average of a square of those of x."""
    return Derived(functools.partial(_averaged, side=side))


def _averaged(x: np.ndarray, u: np.ndarray, side: int) -> dict[str, np.ndarray]:
    n, height, width, channels = x.shape
    if height % side or width % side:
        raise ValueError(f"network.low_res={side} must divide the sides of images, which are {height} x {width}.")
    blocks = x.reshape(n, side, height // side, side, width // side, channels)
    return {"image": blocks.mean((2, 4), dtype=np.float32)}


def _with_mask(x: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
    """x, and as its last channel 1 in one to four boxes, or everywhere, and -1 elsewhere."""
    _, height, width, _ = x.shape
    boxes = u[:, 2:].reshape(len(u), _BOXES, 4, 1, 1)
    sides = _SIDES[0] + (_SIDES[1] - _SIDES[0]) * boxes[:, :, :2]
    starts = (1 - sides) * boxes[:, :, 2:]
    rows = ((np.arange(height) + 0.5) / height)[:, None]
    columns = ((np.arange(width) + 0.5) / width)[None, :]
    inside = np.ones((len(u), _BOXES, height, width), bool)
    for axis, places in enumerate((rows, columns)):
        inside &= (places >= starts[:, :, axis]) & (places < starts[:, :, axis] + sides[:, :, axis])
    drawn = np.arange(_BOXES) <= np.floor(_BOXES * u[:, 1:2])
    mask = (inside & drawn[:, :, None, None]).any(1) | (u[:, 0] < _WHOLE)[:, None, None]
    return {"image": np.concatenate([x, np.where(mask, 1, -1)[..., None].astype(x.dtype)], axis=-1)}


# As Stable Diffusion was made one that paints over: a quarter of its masks covered everything.
WITH_MASK = Derived(_with_mask, draws=2 + 4 * _BOXES)


def degraded(operator: Any) -> Derived:
    """The degraded x that a bridge starts from, by a `guidance.operators.Operator`: y = A(x) with its noise.

    A smaller y is enlarged to the size of x, each pixel to a square. For inpainting unknown pixels are standard normal
    noise, as in I2SB, and the last channel is a mask, 1 where they are unknown and -1 elsewhere.
    """
    return Derived(functools.partial(_degraded, operator=operator, apply=jax.jit(operator.apply)), draws=2)


def _degraded(x: np.ndarray, u: np.ndarray, operator: Any, apply: Callable) -> dict[str, np.ndarray]:
    rngs = generators(u)
    mask = np.stack([operator.draw(rng) for rng in rngs]).astype(np.float32) if operator.draw else None
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        y = np.asarray(apply(jnp.asarray(x, jnp.float32), mask))
    noise = [np.stack([rng.standard_normal(y.shape[1:], np.float32) for rng in rngs]) for _ in range(2)]
    if mask is not None:
        y = np.where(mask == 1, y + operator.noise * noise[0], noise[1])
        return {"image": np.concatenate([y, 1 - 2 * mask], axis=-1)}
    y = y + operator.noise * noise[0]
    height, width = (large // small for large, small in zip(x.shape[1:3], y.shape[1:3], strict=True))
    return {"image": y.repeat(height, axis=1).repeat(width, axis=2)}


def generators(u: Float32[np.ndarray, "n 2"]) -> list[np.random.Generator]:
    """A random generator for each row of uniform numbers."""
    return [np.random.default_rng(row) for row in np.floor(u.astype(np.float64) * 2**24).astype(np.int64)]
