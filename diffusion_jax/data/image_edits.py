"""Edits of images that are computed exactly, each with the instruction that asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from diffusion_jax.types import LUMA

Images = Float32[np.ndarray, "n height width channels"]
_STEP = 0.5  # of brightness, in the range [-1, 1]


class Edit(NamedTuple):
    """`apply(x)` edits square images x in [-1, 1], as `instruction` says. `channels`: of x; 0: any number."""

    instruction: str
    apply: Callable[[Images], Images]
    channels: int = 0


def _windows(x: Images) -> Float32[np.ndarray, "n height width channels 9"]:
    """The 3 x 3 windows around every pixel; beyond the border the nearest pixel counts."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2)).reshape(*x.shape, 9)


def _shifted(x: Images) -> Images:
    """A quarter of the width to the left; what comes in repeats the last column."""
    step = max(x.shape[2] // 4, 1)
    return np.concatenate([x[:, :, step:], np.repeat(x[:, :, -1:], step, 2)], 2)


EDITS: dict[str, Edit] = {
    "invert": Edit("invert", lambda x: -x),
    "mirror": Edit("mirror", lambda x: x[:, :, ::-1]),
    "rotate": Edit("rotate", lambda x: np.rot90(x, axes=(1, 2))),
    "left": Edit("left", _shifted),
    "brighten": Edit("brighter", lambda x: np.minimum(x + np.float32(_STEP), 1)),
    "darken": Edit("darker", lambda x: np.maximum(x - np.float32(_STEP), -1)),
    "thicken": Edit("thicker", lambda x: _windows(x).max(-1)),
    "thin": Edit("thinner", lambda x: _windows(x).min(-1)),
    "blur": Edit("blur", lambda x: _windows(x).mean(-1, dtype=np.float32)),
    "grey": Edit("grey", lambda x: np.repeat((x @ np.float32(LUMA))[..., None], 3, -1), channels=3),
    "swap": Edit("red to blue", lambda x: x[..., ::-1], channels=3),
    "rotate_colours": Edit("turn the hue", lambda x: np.roll(x, 1, -1), channels=3),
}


def named(name: str, channels: int) -> Edit:
    """The edit of this name for images of so many channels. Raises ValueError."""
    if name not in EDITS:
        raise ValueError(f"the edit {name!r} is unknown; choose one of {', '.join(EDITS)}")
    edit = EDITS[name]
    if edit.channels not in (0, channels):
        raise ValueError(f"the edit {name!r} needs images of {edit.channels} channels, and these have {channels}")
    return edit
