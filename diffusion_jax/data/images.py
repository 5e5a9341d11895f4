"""From whatever an image file holds to uint8 [height, width, channels] of one size."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import IO, NamedTuple, Protocol, runtime_checkable

import numpy as np
import PIL.Image
import PIL.ImageOps
from jaxtyping import Float32, Int32, UInt8

# The formats that PIL reads by itself. EPS is not among them: it is a program, which PIL hands to Ghostscript.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
CONDITIONS = ("image", "control")  # the conditions that are images
SEVERAL = (  # the same text for every file, so that Python shows it once
    "there are image files of several pictures, animations or pages: only the first picture of each is read; "
    "python -m diffusion_jax.data.check PATH lists them"
)
_NEGATIVE = -0.05  # images in [0, 1] that were resized in floats overshoot by less
RANGES = ("", "-1..1", "0..1")  # of floating-point images
_GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")


@runtime_checkable
class File(Protocol):
    """What images are read from: a path, or a file inside an archive."""

    def open(self, mode: str) -> IO[bytes]: ...


@runtime_checkable
class Folder(Protocol):
    """What has files by their relative paths: the path of a folder, or an archive."""

    def __truediv__(self, name: str) -> File: ...


class Damaged(ValueError):
    """An image file that is missing, damaged or of a format that is not read."""


class SeveralSizes(ValueError):
    """Images of several sizes where they must have one."""


class Images(NamedTuple):
    """Images as they are stored, before conversion.

    `get(i)` returns image i and its label (-1 if `num_classes` is 0); `describe(i)` names it in error messages;
    `captions` and `labels` have the text and the label of each image, if they are known before it is read. Each of
    `files`, conditions by name, gives what `from_files` takes for image i: a folder, and one or more paths in it.
    `classes` are the names of the classes, if they have any, and `unlabelled` says why there are none.
    """

    get: Callable[[int], tuple[PIL.Image.Image, int]]
    size: int
    num_classes: int
    describe: Callable[[int], str]
    captions: Sequence[str] = ()
    labels: Int32[np.ndarray, "n"] | None = None
    files: Mapping[str, Callable[[int], tuple[Folder, object]]] = {}
    classes: Sequence[str] = ()
    unlabelled: str = ""


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


def read_image(path: File) -> PIL.Image.Image:
    """Open and decode an image file of one of `FORMATS`, whatever its name, turned as its EXIF orientation says.

    Of an animation, or a file of several pages, this is the first picture, with a warning.

    Raises:
        Damaged: naming the file, when it is missing, corrupt, truncated, of another format or has more pixels
            than PIL's limit against decompression bombs.
    """
    try:
        with path.open("rb") as file, PIL.Image.open(file, formats=readable_formats()) as image:
            if image.width * image.height > PIL.Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels exceed {PIL.Image.MAX_IMAGE_PIXELS}")
            if image.format == "TIFF" and image.mode == "I":  # in other formats these are 16 bits
                raise ValueError("pixels of 32 bits, or with a sign, have no known range; convert them to 8 or 16 bits")
            several = pictures(image) > 1
            image.load()
            turned = PIL.ImageOps.exif_transpose(image)
    except PIL.UnidentifiedImageError as error:
        raise Damaged(f"Cannot read the image {path}: it is none of {', '.join(readable_formats())}.") from error
    except Exception as error:  # PIL's plugins raise almost anything on broken files
        raise Damaged(f"Cannot read the image {path}: {error}.") from error
    if several:
        warnings.warn(SEVERAL, stacklevel=2)
    return turned


def pictures(image: PIL.Image.Image) -> int:
    """The number of pictures in an image file: frames of an animation, or pages. Previews in a JPEG do not count."""
    return 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)


def from_files(folder: Folder, paths: object, shape: tuple[int, ...]) -> Float32[np.ndarray, "height width channels"]:
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


def from_range(x: np.ndarray, range: str, where: str, overshoot: float = 0.0) -> np.ndarray:
    """Floating-point images as float32 in [-1, 1].

    Args:
        x: the images.
        range: what their values mean: "-1..1", "0..1" (then the result is 2 x - 1), or "" for "-1..1" where the values
            leave no doubt, see `in_doubt`.
        where: they come from, for messages.
        overshoot: by which the result may leave [-1, 1].

    Raises:
        ValueError: another `range`, values outside of it or not finite, or in doubt for "".
    """
    if range not in RANGES:
        raise ValueError(f"data.range={range!r} must be one of {', '.join(map(repr, RANGES))}.")
    low, high, lowest = float(x.min()), float(x.max()), 0 if range == "0..1" else -1
    beyond = overshoot * (1 - lowest) / 2
    if not lowest - beyond <= low <= high <= 1 + beyond:  # written so that NaN fails
        raise ValueError(f"{where} floating-point values must be in [{lowest}, 1], got {low:.4g} to {high:.4g}.")
    if not range and in_doubt(x, overshoot):
        raise ValueError(
            f"{where} floating-point images in [0, 1], or in [-1, 1] without dark pixels? Values are {low:.4g} to "
            f"{high:.4g}. Say it: data.range='0..1' or '-1..1' (--range of the command that evaluates), or store uint8."
        )
    x = x.astype(np.float32)
    return 2 * x - 1 if range == "0..1" else x


def in_doubt(x: np.ndarray, overshoot: float = 0.0) -> bool:
    """Whether floating-point images in [-1, 1] may be in [0, 1] as well: no value is clearly negative."""
    return bool(x.min() > _NEGATIVE and x.max() <= 1 + overshoot)


def check_range(x: np.ndarray) -> None:
    """Raises ValueError for floating-point images that may be in [0, 1] as well as in [-1, 1], see `from_range`."""
    floating = np.issubdtype(x.dtype, np.floating) and x.size
    if floating and x.shape[-1] in (1, 3) and in_doubt(x):
        raise ValueError(
            f"floating-point images in [0, 1], or in [-1, 1] without dark pixels? Values are {x.min():.4g} to "
            f"{x.max():.4g}; store 8-bit images, which leave no doubt"
        )


def check_one_size(x: np.ndarray) -> None:
    """Raises SeveralSizes for an array of arrays, which images of several sizes are read as."""
    if x.dtype == object:
        sizes = sorted({image.shape for image in x})
        raise SeveralSizes(
            f"images of several sizes, such as {sizes[0]} and {sizes[-1]}: bring them to one size first. Only the "
            "features of Inception (--inception=FILE) are of images that are resized one by one."
        )


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
