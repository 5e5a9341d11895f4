"""From whatever an image file holds to uint8 [height, width, channels] of one size."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
from jaxtyping import Float32, Int32, UInt8

# The formats that PIL reads by itself. EPS is not among them: it is a program, which PIL hands to Ghostscript.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
CONDITIONS = ("image", "control")  # the conditions that are images
_GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")


class Images(NamedTuple):
    """Images as they are stored, before conversion.

    `get(i)` returns image i and its label (-1 if `num_classes` is 0); `describe(i)` names it in error messages;
    `captions` and `labels` have the text and the label of each image, if they are known before it is read. Each of
    `files`, conditions by name, gives what `from_files` takes for image i: a folder, and one or more paths in it.
    """

    get: Callable[[int], tuple[PIL.Image.Image, int]]
    size: int
    num_classes: int
    describe: Callable[[int], str]
    captions: Sequence[str] = ()
    labels: Int32[np.ndarray, "n"] | None = None
    files: Mapping[str, Callable[[int], tuple[pathlib.Path, object]]] = {}


def readable_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that the installed PIL reads."""
    PIL.Image.init()
    return tuple(format for format in FORMATS if format in PIL.Image.OPEN)


def readable_suffixes() -> set[str]:
    """File suffixes such as ".png" of `readable_formats`, and of JPEG files with several pictures."""
    formats = (*readable_formats(), "MPO")
    return {suffix for suffix, format in PIL.Image.registered_extensions().items() if format in formats}


def from_array(pixels: UInt8[np.ndarray, "..."]) -> PIL.Image.Image:
    """uint8 [height, width], or [height, width, channels] with 1, 3 or 4 channels, as an image."""
    return PIL.Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def read_image(path: pathlib.Path) -> PIL.Image.Image:
    """Open and decode an image file of one of `FORMATS`, whatever its name, turned as its EXIF orientation says.

    Raises:
        ValueError: naming the file, when it is missing, corrupt, truncated, of another format or has more pixels
            than PIL's limit against decompression bombs.
    """
    try:
        with PIL.Image.open(path, formats=readable_formats()) as image:
            if image.width * image.height > PIL.Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels exceed {PIL.Image.MAX_IMAGE_PIXELS}")
            image.load()
            return PIL.ImageOps.exif_transpose(image)
    except Exception as error:  # PIL's plugins raise almost anything on broken files
        raise ValueError(f"Cannot read the image {path}: {error}.") from error


def from_files(
    folder: pathlib.Path, paths: object, shape: tuple[int, ...]
) -> Float32[np.ndarray, "height width channels"]:
    """The image file that `paths` names, cut to the largest square, resized to `shape` and in [-1, 1].

    The channels of several are concatenated. They have 3 channels each, and the last one what is left; so the last of 4
    channels is a mask.

    Raises:
        ValueError: an image cannot be read, or their number or the shape does not fit.
    """
    names = paths if isinstance(paths, list) else [paths]
    channels = [3] * (shape[-1] // 3) + [1] * (shape[-1] % 3)
    if not all(isinstance(name, str) for name in names) or len(names) != len(channels) or shape[0] != shape[1]:
        raise ValueError(
            f"{paths!r} must be {len(channels)} path(s) of image files, of {channels} channels, for {shape}"
        )
    files = [read_image(folder / name) for name in names]
    parts = [convert(image, size=shape[0], channels=c) for image, c in zip(files, channels, strict=True)]
    return np.concatenate(parts, axis=-1) / np.float32(127.5) - np.float32(1)


def in_unit_range(pixels: np.ndarray) -> np.ndarray:
    """8-bit pixels in [-1, 1]; anything else as it is.

    Raises ValueError for 8-bit values that are not pixels: neither 1 nor 3 nor 4 channels (colours and a mask).
    """
    if pixels.dtype == np.uint8 and pixels.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"8-bit values are pixels of 1, 3 or 4 channels, got shape {pixels.shape}; give maps as floats"
        )
    return pixels / np.float32(127.5) - np.float32(1) if pixels.dtype == np.uint8 else pixels


def native_channels(image: PIL.Image.Image) -> int:
    """1 for gray modes, 3 for all others."""
    return 1 if image.mode in _GRAY_MODES else 3


def _to_8_bit(image: PIL.Image.Image) -> PIL.Image.Image:
    """Scale 16-bit gray to 8-bit gray; refuse floating-point and wider integer pixels, whose range is unknown."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"pixels of mode {image.mode!r} have no known range; convert them to 8 or 16 bits")
    return PIL.Image.fromarray(np.round(pixels / 257).astype(np.uint8))


def convert(
    image: PIL.Image.Image, *, size: int | None, channels: int, crop: int | None = None
) -> UInt8[np.ndarray, "height width {channels}"]:
    """Crop to the centre square, resize with an antialiasing Lanczos filter and convert the colours.

    Transparent pixels are laid over white. RGB becomes gray by ITU-R 601-2 luma.

    Args:
        image: of any mode except floating point.
        size: side of the result; `None` leaves the size (after the crop) as it is.
        channels: 1 or 3.
        crop: side of the centre square to keep before resizing; `None` keeps the largest one if `size` is given.

    Raises:
        ValueError: the crop is larger than the image, or the pixels have no known range.
    """
    image = _to_8_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    width, height = image.size
    if crop is not None and crop > min(width, height):
        raise ValueError(f"crop = {crop} is larger than the image of {width} x {height} pixels")
    side = crop or (min(width, height) if size else None)
    if side:
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if size and image.size != (size, size):
        image = image.resize((size, size), PIL.Image.Resampling.LANCZOS)
    return np.asarray(image, np.uint8).reshape(image.height, image.width, channels)
