"""Degraded images of Palette's tasks: without colour, with holes, a part of a larger picture, compressed by JPEG."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Mapping

import numpy as np
import PIL.Image
import PIL.ImageDraw
from jaxtyping import Bool, Float32

from diffusion_jax.data.derived import Derived, generators
from diffusion_jax.data.image_edits import EDITS

_BOX = (0.4, 0.5)  # sides of the box of inpainting, as shares of the picture's, and its distance from the edge
_MARGIN = 0.08
_STROKES, _VERTICES = (1, 3), (4, 11)  # numbers of brush strokes, and of the points of each
_WIDTH = (0.05, 0.15)  # of a stroke, as a share of the side

Image = Float32[np.ndarray, "h w c"]
# corrupt(x, rng, quality) -> (image, unknown): the degraded image, 0 where `unknown` hides it, None for no such pixels
Corruption = Callable[[Image, np.random.Generator, tuple[int, int]], tuple[Image, Bool[np.ndarray, "h w"] | None]]


def colourless(x: Image, rng: np.random.Generator, quality: tuple[int, int]) -> tuple[Image, None]:
    """The grey value of each pixel in all three channels."""
    return EDITS["grey"].apply(x), None


def with_hole(x: Image, rng: np.random.Generator, quality: tuple[int, int]) -> tuple[Image, np.ndarray]:
    """A box of about a fifth of the picture is unknown, or, as often, brush strokes."""
    height, width, _ = x.shape
    unknown = np.zeros((height, width), bool)
    if rng.random() < 0.5:
        unknown = brush_strokes(height, width, rng)
    if not unknown.any() or unknown.all():
        unknown = np.zeros((height, width), bool)
        sides = [max(1, round(rng.uniform(*_BOX) * side)) for side in (height, width)]
        edges = [math.floor(_MARGIN * side) for side in (height, width)]
        starts = [
            rng.integers(edge, side - edge - length + 1)
            for edge, side, length in zip(edges, (height, width), sides, strict=True)
        ]
        unknown[starts[0] : starts[0] + sides[0], starts[1] : starts[1] + sides[1]] = True
    return np.where(unknown[..., None], 0, x).astype(np.float32), unknown


def brush_strokes(height: int, width: int, rng: np.random.Generator) -> Bool[np.ndarray, "h w"]:
    """Free-form masks: zigzag lines of a brush, at angles of about 2/5 pi and -2/5 pi in turn.

    The masks of gated convolution (arXiv:1806.03589), with widths as shares of the picture.
    """
    canvas = PIL.Image.new("L", (width, height), 0)
    draw, radius = PIL.ImageDraw.Draw(canvas), math.hypot(height, width) / 8
    for _ in range(rng.integers(_STROKES[0], _STROKES[1] + 1)):
        number = rng.integers(_VERTICES[0], _VERTICES[1] + 1)
        angles = rng.uniform(2 / 5 - 2 / 15, 2 / 5 + 2 / 15, number) * math.pi
        angles[::2] *= -1
        lengths = np.clip(rng.normal(radius, radius / 2, number), 0, 2 * radius)
        steps = lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
        points = [rng.uniform(0, (width, height))]
        for step in steps:
            points.append(np.clip(points[-1] + step, 0, (width, height)))
        thickness = max(1, round(rng.uniform(*_WIDTH) * min(height, width)))
        draw.line([tuple(point) for point in points], fill=1, width=thickness, joint="curve")
    mask = np.asarray(canvas) > 0
    turned = mask[:, ::-1] if rng.random() < 0.5 else mask
    return turned[::-1] if rng.random() < 0.5 else turned


def uncropped(x: Image, rng: np.random.Generator, quality: tuple[int, int]) -> tuple[Image, np.ndarray]:
    """Half of the picture is unknown: one of its four halves, or, as often, what surrounds its centre."""
    height, width, _ = x.shape
    unknown = np.ones((height, width), bool)
    if rng.random() < 0.5:
        tall, wide = (max(1, round(side / math.sqrt(2))) for side in (height, width))
        top, left = (height - tall) // 2, (width - wide) // 2
        unknown[top : top + tall, left : left + wide] = False
    else:
        halves = (
            np.s_[: height // 2],
            np.s_[(height + 1) // 2 :],
            np.s_[:, : width // 2],
            np.s_[:, (width + 1) // 2 :],
        )
        unknown[halves[rng.integers(4)]] = False
    return np.where(unknown[..., None], 0, x).astype(np.float32), unknown


def compressed(x: Image, rng: np.random.Generator, quality: tuple[int, int]) -> tuple[Image, None]:
    """The picture as a JPEG file of a quality that is uniform in the range `quality`."""
    pixels = np.round((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)
    channels, file = x.shape[-1], io.BytesIO()
    image = PIL.Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    image.save(file, "JPEG", quality=int(rng.integers(quality[0], quality[1] + 1)))
    decoded = np.asarray(PIL.Image.open(file), np.float32).reshape(x.shape)
    return decoded / np.float32(127.5) - 1, None


CORRUPTIONS: Mapping[str, Corruption] = {
    "colorization": colourless,
    "inpainting": with_hole,
    "uncropping": uncropped,
    "jpeg": compressed,
}


def corrupted(tasks: tuple[str, ...], quality: tuple[int, int]) -> Derived:
    """Conditions of examples with a random one of `tasks`, names of `CORRUPTIONS`.

    "image" is the degraded x, which is 0 where it is unknown; "mask" [n, h, w, 1] is 1 where x is unknown and -1 where
    the image is x itself, and 1 everywhere for tasks without holes; "task" is the number of the task in `tasks`.
    """
    return Derived(functools.partial(_corrupted, tasks=tasks, quality=quality), draws=2)


def _corrupted(x: np.ndarray, u: np.ndarray, tasks: tuple[str, ...], quality: tuple[int, int]) -> dict[str, np.ndarray]:
    made = {
        "image": np.empty(x.shape, np.float32),
        "mask": np.ones((*x.shape[:-1], 1), np.float32),
        "task": np.empty(len(x), np.int32),
    }
    for i, rng in enumerate(generators(u)):
        made["task"][i] = rng.integers(len(tasks))
        made["image"][i], unknown = CORRUPTIONS[tasks[made["task"][i]]](x[i], rng, quality)
        if unknown is not None:
            made["mask"][i] = np.where(unknown, 1, -1)[..., None]
    return made
