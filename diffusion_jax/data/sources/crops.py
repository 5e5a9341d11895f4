"""Random crops of images in training: the smaller side is resized, then a square is cut out at random."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Float32, UInt8

from diffusion_jax.data import images
from diffusion_jax.data.source import Batch, Source, Uniform
from diffusion_jax.data.sources import images as sources

RANDOM = "random"  # the value of config.data.crop
_DRAWS = 4  # the size, the two offsets, and one that is unused, as their number must be even


def check(crop: int | str | None, image_size: int | None, resize: tuple[int, ...]) -> tuple[int, int]:
    """Returns the bounds of the smaller side, by default `image_size`. Raises ValueError for what does not fit."""
    if crop != RANDOM:
        if isinstance(crop, str):
            raise ValueError(f"data.crop={crop!r} must be a number of pixels, or {RANDOM!r}.")
        if resize:
            raise ValueError(f"data.resize={resize!r} is for data.crop={RANDOM!r} only; data.crop is {crop!r}.")
        return (0, 0)
    if image_size is None:
        raise ValueError(f"data.crop={crop!r} needs data.image_size, the side of what is cut out.")
    low, high = tuple(resize) or (image_size, image_size) if len(resize) in (0, 2) else (0, 0)
    if not image_size <= low <= high:
        raise ValueError(
            f"data.resize={resize!r} must be the least and the largest smaller side in pixels, of at least "
            f"data.image_size={image_size}."
        )
    return low, high


def decoded(
    files: images.Images,
    *,
    image_size: int,
    channels: int | None,
    resize: tuple[int, int],
    skip_damaged: bool = False,
    **options: Any,
) -> Source:
    """Image files, of which squares of `image_size` are cut out at random, anew in each epoch.

    The smaller side is first resized to a whole number of pixels that is uniform in `resize`, (least, largest). What is
    drawn depends on the seed and the position in the order of training alone. In evaluation the smaller side is the
    least, and the centre is cut out. `options` are those of `images.source`; images are decoded each time.
    """
    start = sources.first_readable(files) if skip_damaged else 0
    channels = channels or images.native_channels(files.get(start)[0])

    def read(indices: np.ndarray) -> Batch:
        x, label = np.empty(len(indices), object), np.empty(len(indices), np.int32)
        for row, i in enumerate(indices):
            image, label[row] = files.get(int(i))
            try:
                x[row] = images.convert(image, size=None, channels=channels)
            except ValueError as error:
                raise ValueError(f"{files.describe(int(i))}: {error}.") from error
        return {"x": x, "label": label} if files.num_classes else {"x": x}

    shape = (image_size, image_size, channels)
    source = sources.source(read, size=files.size, shape=shape, num_classes=files.num_classes, **options)

    def ready(batch: Batch, uniform: Uniform | None) -> Batch:
        own, rest = (None, None) if uniform is None else (uniform[:, :_DRAWS], uniform[:, _DRAWS:])
        crops = [
            cut_out(pixels, image_size, resize, None if own is None else own[row])
            for row, pixels in enumerate(batch["x"])
        ]
        return source.ready(batch | {"x": np.stack(crops)}, rest)

    made = dataclasses.replace(source, ready=ready, draws=source.draws + _DRAWS)
    return sources.with_facts(made, classes=tuple(files.classes), unlabelled=files.unlabelled)


def cut_out(
    pixels: UInt8[np.ndarray, "height width channels"],
    size: int,
    resize: tuple[int, int],
    uniform: Float32[np.ndarray, "draws"] | None,
) -> UInt8[np.ndarray, "{size} {size} channels"]:
    """A square of side `size`; without `uniform` numbers in [0, 1) the centre of the image at its least size."""
    u = np.zeros(_DRAWS) if uniform is None else uniform
    smaller = resize[0] + int(u[0] * (resize[1] - resize[0] + 1))
    height, width, channels = pixels.shape
    scale = smaller / min(height, width)
    sides = max(round(width * scale), smaller), max(round(height * scale), smaller)
    if sides != (width, height):
        resized = images.from_array(pixels).resize(sides, PIL.Image.Resampling.LANCZOS)
        pixels = np.asarray(resized, np.uint8).reshape(sides[1], sides[0], channels)
    free = sides[1] - size, sides[0] - size
    top, left = [int(n / 2) if uniform is None else int(part * (n + 1)) for n, part in zip(free, u[1:3], strict=True)]
    return pixels[top : top + size, left : left + size]
