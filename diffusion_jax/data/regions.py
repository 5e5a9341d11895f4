"""Masks of inpainting: named regions of an image, and masks of the user's own as image files."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping

import numpy as np
import PIL.Image
from jaxtyping import Bool, Float32

from diffusion_jax.data.images import convert, read_image

_WHITE = 128  # a pixel of an 8-bit mask from which on it is painted


def _box(height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """The centre, half as high and wide as the image."""
    inside = np.zeros((height, width), bool)
    inside[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    return inside


def _rows(height: int, width: int, painted: Callable[[np.ndarray], np.ndarray]) -> Bool[np.ndarray, "h w"]:
    return np.repeat(painted(np.arange(height))[:, None], width, axis=1)


# What is painted, by name: `region(height, width)`. All but "right_half" are symmetric or as in arXiv:2201.09865.
REGIONS: Mapping[str, Callable[[int, int], Bool[np.ndarray, "h w"]]] = {
    "box": _box,
    "lower_half": lambda height, width: _rows(height, width, lambda y: y >= height // 2),
    "right_half": lambda height, width: _rows(width, height, lambda x: x >= width // 2).T,
    "expand": lambda height, width: ~_box(height, width),  # the centre is known
    "lines": lambda height, width: _rows(height, width, lambda y: y % 2 == 1),  # every second row is known
    "pixels": lambda height, width: (  # one of four pixels is known
        (np.arange(height)[:, None] % 2 == 1) | (np.arange(width)[None, :] % 2 == 1)
    ),
}


def read_mask(mask: str, shape: tuple[int, ...], image: str = "") -> Float32[np.ndarray, "height width 1"]:
    """A mask of `shape` [height, width, 1]: 1 where an image is painted anew and -1 where it is kept.

    `mask` is one of `REGIONS`, or an image file of any size and mode, white (or transparent) where it is painted. A
    file is cut to the largest square and resized as images are; a pixel is painted if any part of it is. With `image`,
    a file as well, both must have the same size.

    Raises ValueError for a file that cannot be read, of another size than the image, or that paints nothing or
    everything.
    """
    height, width = shape[:2]
    if mask in REGIONS:
        return np.where(REGIONS[mask](height, width), 1, -1)[..., None].astype(np.float32)
    if not pathlib.Path(mask).is_file():
        raise ValueError(f"it must be an image file, or one of {', '.join(REGIONS)}")
    picture = read_image(pathlib.Path(mask))
    if image:
        size = read_image(pathlib.Path(image)).size
        if size != picture.size:
            raise ValueError(
                f"it has {picture.width} x {picture.height} pixels; it must have as many as the image {image!r}, "
                f"{size[0]} x {size[1]}"
            )
    white = convert(picture, size=None, channels=1)[..., 0] >= _WHITE
    side = min(white.shape)
    top, left = (white.shape[0] - side) // 2, (white.shape[1] - side) // 2
    square = PIL.Image.fromarray(white[top : top + side, left : left + side].astype(np.float32))
    painted = np.asarray(square.resize((width, height), PIL.Image.Resampling.BOX)) > 1e-6
    if not painted.any():
        raise ValueError("it has no white pixel in its centre square; white is painted, black is kept")
    if painted.all():
        raise ValueError(
            f"at {width} x {height} pixels all of its centre square is painted, as a pixel is if any part of it is "
            "white or transparent; black and opaque is kept"
        )
    return np.where(painted, 1, -1)[..., None].astype(np.float32)
