"""Sets of pictures that other data is made of: an array file with `images`, or a folder, in its splits."""

from __future__ import annotations

import pathlib
from collections.abc import Collection, Mapping

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from diffusion_jax.data import images
from diffusion_jax.data.sources import archives, files
from diffusion_jax.types import check

Rows = dict[str, Int64[np.ndarray, "_"]]  # by split


def read_file(path: pathlib.Path, others: Collection[str] = ()) -> tuple[dict[str, np.ndarray], Rows]:
    """The arrays of an .npz file, `images` uint8 [n, h, w, 3] and those of `others` that it has, and rows of splits.

    Where the file has `split` [n], 2 is the test split; else a tenth of the images, chosen at random, is held out.
    Raises ValueError for a file that cannot be read or has other images, or fewer than two.
    """
    try:
        arrays = archives.read_npz(path, {"images", "split", *others})
    except Exception as error:  # a broken archive can raise from zipfile, zlib or the header parser
        raise ValueError(f"{path} is not an .npz file with `images`: {error}") from error
    pictures = arrays.get("images")
    if pictures is None or pictures.dtype != np.uint8 or pictures.shape[3:] != (3,):
        found = "none" if pictures is None else f"{pictures.dtype} {pictures.shape}"
        raise ValueError(f"{path}: `images` must be uint8 [n, height, width, 3], and there are {found}")
    return arrays, rows_of(arrays, len(pictures), path)


def rows_of(arrays: Mapping[str, np.ndarray], num: int, path: pathlib.Path) -> Rows:
    """The rows of "train" and "test" among `num` images, see `read_file`. Raises ValueError."""
    if "split" not in arrays:
        if num < 2:
            raise ValueError(f"there is {num} image in {path}; at least 2 are needed, one of them to be held out")
        return files.divided(num)
    test = arrays["split"] == 2
    if test.shape != (num,) or test.all() or not test.any():
        raise ValueError(f"{path}: `split` {test.shape} must be 2 for some of the {num} images")
    return {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}


def pictures(path: pathlib.Path) -> dict[str, list[UInt8[np.ndarray, "h w 3"]]]:
    """The pictures of an .npz file, see `read_file`, or of a folder, or of its folders train/ and test/, by split.

    Without splits of its own a tenth of a folder, chosen at random, is held out. Raises ValueError.
    """
    if not path.is_dir():
        arrays, rows = read_file(path)
        return {split: list(arrays["images"][chosen]) for split, chosen in rows.items()}
    if (path / "train").is_dir() and (path / "test").is_dir():
        return {split: [read_colours(file) for file in image_files(path / split)] for split in ("train", "test")}
    found = image_files(path)
    return {split: [read_colours(found[i]) for i in rows] for split, rows in rows_of({}, len(found), path).items()}


def image_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The image files in a folder, at any depth, sorted. Raises ValueError if there are none."""
    suffixes = images.readable_suffixes()
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in suffixes)
    if not found:
        raise ValueError(f"{folder} has no image files")
    return found


def read_colours(file: pathlib.Path) -> UInt8[np.ndarray, "h w 3"]:
    """An image file in three channels. Raises ValueError if it cannot be read."""
    return images.convert(images.read_image(file), size=None, channels=3)


def squares(
    arrays: list[Shaped[np.ndarray, "h w *c"]], size: int, path: pathlib.Path
) -> Shaped[np.ndarray, "n size size *c"]:
    """All squares of `size` pixels of all arrays, evenly spaced and overlapping where that is needed to cover them.

    With size 0 the arrays are squares of one size. Raises ValueError if they are not, or smaller than a square.
    """
    sizes = sorted({array.shape[:2] for array in arrays})
    if not size and (len(sizes) > 1 or sizes[0][0] != sizes[0][1]):
        raise ValueError(
            f"{path}: images of {sizes[0]}{f' and {sizes[-1]}' if len(sizes) > 1 else ''} pixels are no squares of one "
            "size; --size=N cuts squares of N pixels out of them"
        )
    check(size >= 0, "--size", size, "at least 0, where 0 takes whole images")
    if size and min(map(min, sizes)) < size:
        raise ValueError(f"{path}: an image of {min(sizes, key=min)} pixels is smaller than --size={size}")
    size = size or sizes[0][0]
    return np.stack(
        [
            array[top : top + size, left : left + size]
            for array in arrays
            for top in starts(array.shape[0], size)
            for left in starts(array.shape[1], size)
        ]
    )


def starts(length: int, size: int) -> list[int]:
    """Where squares of `size` begin along a side."""
    return np.round(np.linspace(0, length - size, -(-length // size))).astype(int).tolist()
