"""Square tiles of a few large images, such as scans and slides, of which a part of each is held out."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from diffusion_jax.data import images
from diffusion_jax.data.source import Batch, Source, Uniform, in_memory
from diffusion_jax.data.sources import files
from diffusion_jax.types import Spec, check

_DRAWS = 4  # uniform numbers of one tile: image, row, column, mirroring
_HELD_OUT = 0.25  # of each image, on its right
_HEAD = (slice(16, 256), slice(24, 204))  # of the embedded slice, without most of the empty border


def spec(section: Mapping[str, Any]) -> Spec:
    """Images [image_size, image_size, channels]. Raises ValueError."""
    side, channels = section.get("image_size", 16), section.get("channels", 1)
    check(isinstance(side, int) and side >= 4, "data.image_size", side, "an integer of at least 4")
    check(channels in (1, 3), "data.channels", channels, "1 or 3")
    return Spec((side, side, channels), modality="image")


def open_source(
    *,
    split: str = "train",
    path: str = "",
    image_size: int = 16,
    channels: int = 1,
    reduce: int = 1,
    log: bool = False,
) -> Source:
    """Tiles [image_size, image_size, channels] of large images, anywhere in training and side by side in evaluation.

    `path` is an image file or a folder of them; "" is `embedded`. The right quarter of each image is the split "test",
    the rest "train", so that no pixel is in both. Images are first reduced by `reduce`, by averages of squares. An
    8-bit value v becomes x = v / 127.5 - 1, or with `log` x = 1 + 2 log((v + 1) / 256) / log 256, where noise that
    multiplies v + 1 is additive: a factor exp(s n) adds 2 s n / log 256 to x.

    In training a tile is at a random place, and mirrored in half of the cases; an epoch has as many tiles as lie side
    by side. Raises ValueError for a missing path, another split, images that are smaller than a tile, or numbers out of
    range.
    """
    entry = spec(dict(image_size=image_size, channels=channels))
    check(isinstance(reduce, int) and reduce >= 1, "data.reduce", reduce, "an integer of at least 1")
    name = files.named(split)
    if name not in ("train", "test"):
        raise ValueError(f"Unknown split {split!r} of 'tiles': there are train and test.")
    parts = []
    for title, whole in _pictures(path, channels).items():
        picture = _scaled(_reduced(whole, reduce), log)
        cut = round((1 - _HELD_OUT) * picture.shape[1])
        part = picture[:, cut:] if name == "test" else picture[:, :cut]
        if min(part.shape[:2]) < image_size:
            raise ValueError(
                f"data.image_size={image_size} is larger than the part of {title} for {name!r}, {part.shape[:2]} pixels"
            )
        parts.append(part)
    tiles = np.concatenate([_side_by_side(part, image_size) for part in parts])
    tiles = tiles[files.select(split, len(tiles))]
    shares = np.cumsum([part.shape[0] * part.shape[1] for part in parts]) / sum(p.shape[0] * p.shape[1] for p in parts)

    def ready(batch: Batch, uniform: Uniform | None) -> Batch:
        if uniform is None:
            return batch
        chosen = np.minimum(np.searchsorted(shares, uniform[:, 0], side="right"), len(parts) - 1)
        return {"x": np.stack([_cut(parts[i], row, image_size) for i, row in zip(chosen, uniform, strict=True)])}

    random = split == name  # a slice has its own tiles and no others
    return Source(
        entries={"x": entry},
        size=len(tiles),
        read=in_memory({"x": tiles}),
        ready=ready if random else lambda batch, uniform: batch,
        draws=_DRAWS if random else 0,
    )


def embedded() -> UInt8[np.ndarray, "240 180 1"]:
    """A slice of a head by magnetic resonance, magnitudes in 8 bits, which matplotlib ships for its examples."""
    from matplotlib import cbook

    with cbook.get_sample_data("s1045.ima.gz") as file:
        scan = np.frombuffer(file.read(), "<u2").reshape(256, 256)
    bright = np.percentile(scan, 99.9)
    return np.uint8(np.round(np.clip(scan[_HEAD] / bright, 0, 1) * 255))[..., None]


def _pictures(path: str, channels: int) -> dict[str, UInt8[np.ndarray, "_ _ {channels}"]]:
    """The images by their names."""
    if path == "":
        return {"the embedded slice": np.repeat(embedded(), channels, -1)}
    where = pathlib.Path(path).expanduser()
    if not where.exists():
        raise ValueError(f"data.path = {path!r} does not exist; give an image file, or a folder of them.")
    suffixes = images.readable_suffixes()
    found = sorted(f for f in where.iterdir() if f.suffix.lower() in suffixes) if where.is_dir() else [where]
    if not found:
        raise ValueError(f"data.path = {path!r} has no image files.")
    return {str(file): images.convert(images.read_image(file), size=None, channels=channels) for file in found}


def _reduced(x: UInt8[np.ndarray, "h w c"], factor: int) -> Float[np.ndarray, "h2 w2 c"]:
    height, width = (side // factor for side in x.shape[:2])
    whole = x[: height * factor, : width * factor].astype(np.float64)
    return whole.reshape(height, factor, width, factor, -1).mean((1, 3))


def _scaled(v: Float[np.ndarray, "h w c"], log: bool) -> Float32[np.ndarray, "h w c"]:
    return np.float32(1 + 2 * np.log((v + 1) / 256) / math.log(256) if log else v / 127.5 - 1)


def _side_by_side(part: Float32[np.ndarray, "h w c"], side: int) -> Float32[np.ndarray, "n side side c"]:
    rows, columns = (length // side for length in part.shape[:2])
    whole = part[: rows * side, : columns * side].reshape(rows, side, columns, side, -1)
    return whole.swapaxes(1, 2).reshape(rows * columns, side, side, -1)


def _cut(
    part: Float32[np.ndarray, "h w c"], u: Float[np.ndarray, "d"], side: int
) -> Float32[np.ndarray, "side side c"]:
    top, left = (int(u[1 + axis] * (part.shape[axis] - side + 1)) for axis in (0, 1))
    tile = part[top : top + side, left : left + side]
    return tile[:, ::-1] if u[3] < 0.5 else tile
