"""The condition "image" where it is made of the example itself: a smaller picture, or one with a mask."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

_BOXES = 4  # at most, in a mask
_WHOLE = 0.25  # of the masks cover everything
_SIDES = (0.1, 0.6)  # of a box, as shares of the picture's


class Derived(NamedTuple):
    """`make(x, u)` gives the conditions of examples x [n, height, width, channels] in [-1, 1]; u [n, draws] is uniform
    in [0, 1)."""

    make: Callable[[Float32[np.ndarray, "n h w c"], Float32[np.ndarray, "n d"]], Float32[np.ndarray, "n h2 w2 c2"]]
    draws: int = 0


def averaged(side: int) -> Derived:
    """Images of `side` pixels, each the average of a square of those of x."""
    return Derived(functools.partial(_averaged, side=side))


def _averaged(x: np.ndarray, u: np.ndarray, side: int) -> np.ndarray:
    n, height, width, channels = x.shape
    if height % side or width % side:
        raise ValueError(f"network.low_res={side} must divide the sides of images, which are {height} x {width}.")
    return x.reshape(n, side, height // side, side, width // side, channels).mean((2, 4), dtype=np.float32)


def _with_mask(x: np.ndarray, u: np.ndarray) -> np.ndarray:
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
    return np.concatenate([x, np.where(mask, 1, -1)[..., None].astype(x.dtype)], axis=-1)


# As Stable Diffusion was made one that paints over: a quarter of its masks covered everything.
WITH_MASK = Derived(_with_mask, draws=2 + 4 * _BOXES)
