"""Compressed files from outside, read without letting them grow beyond what they should hold."""

from __future__ import annotations

import gzip
import io
import pathlib
import sys
import tarfile
import zipfile
from collections.abc import Collection

import numpy as np

# Deflate makes a file up to 1032 times smaller. Pictures and weights never come near; whatever swells by more than
# this, and to more than that, is a bomb.
MAX_GROWTH = 100
SMALL = 2**30


def read_npz(path: pathlib.Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, or those of `names` that are in it. Nothing in it is unpickled.

    Raises:
        ValueError: a member is damaged or holds Python objects, or the members announce more than `MAX_GROWTH` times
            the size of the file (and than `SMALL` bytes).
        OSError, zipfile.BadZipFile, zlib.error: it cannot be read at all.
    """
    check_growth(path)
    with np.load(path, allow_pickle=False) as file:
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array, not a collection of named ones")
        arrays = {key: file[key] for key in file.files if names is None or key in names}
    for key, value in arrays.items():
        if not isinstance(value, np.ndarray):
            raise ValueError(f"its member {key!r} is not an array")
        if value.dtype.kind == "U" and value.dtype.itemsize:  # Python fails on such text when it is looked at
            codes = np.ascontiguousarray(value).view(value.dtype.byteorder + "u4")
            if (codes > sys.maxunicode).any():
                raise ValueError(f"its member {key!r} holds text of characters that do not exist")
    return arrays


def npz_names(path: pathlib.Path) -> list[str]:
    """The names of the arrays in an .npz file. Raises what `read_npz` raises for one that cannot be read."""
    with zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def check_growth(path: pathlib.Path) -> None:
    """Raises ValueError for a zip file whose members announce too many bytes; zipfile reads no more than announced."""
    with zipfile.ZipFile(path) as archive:
        check_announced(path, archive)


def check_announced(path: pathlib.Path, archive: zipfile.ZipFile) -> None:
    """As `check_growth`, for a file that is open."""
    size = path.stat().st_size
    announced = sum(member.file_size for member in archive.infolist())
    if announced > max(SMALL, MAX_GROWTH * size):
        raise ValueError(f"its {size:,} bytes announce {announced:,}, which no data set of this library does")


def gunzip(path: pathlib.Path, limit: int = SMALL) -> bytes:
    """The content of a gzip file of at most `limit` bytes.

    Raises:
        ValueError: naming the file, if it is missing, damaged or holds more.
    """
    try:
        with gzip.open(path) as file:
            return _at_most(file, limit)
    except Exception as error:  # gzip, zlib and the file system each have their own types
        raise ValueError(f"Cannot read {path}: {error}.") from error


def read_tar(path: pathlib.Path, name: str, limit: int = SMALL) -> bytes:
    """The file `name` of at most `limit` bytes in a tar archive, compressed or not. Nothing is extracted to disk.

    Raises:
        ValueError: naming the archive, if it is damaged or has no such file, or one that holds more.
    """
    try:
        with tarfile.open(path) as archive, archive.extractfile(name) as file:
            return _at_most(file, limit)
    except Exception as error:  # a damaged archive can raise from tarfile, gzip or zlib
        raise ValueError(f"Cannot read {pathlib.PurePath(name).name} from {path}: {error}.") from error


def _at_most(file: io.BufferedIOBase, limit: int) -> bytes:
    content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it holds more than {limit:,} bytes")
    return content
