"""Read every image of a data set once and list the damaged ones: `python -m diffusion_jax.data.check PATH`.

PATH is a folder or zip archive of image files, all splits of which are read, or an .npz or .npy file, or a folder of
them. Exit codes: 0 all can be read; 1 some are damaged; 2 there is nothing to read.

Training stops at a damaged image, unless config.data.skip_damaged=True reads the next one in its place.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import sys
import warnings
from collections.abc import Iterator
from concurrent import futures
from typing import NamedTuple

import PIL.Image

from diffusion_jax.data import images
from diffusion_jax.data.sources import arrays, trees

_CHUNK = 1024  # files that wait for a thread at once


class Report(NamedTuple):
    """What was found: the number of images, damaged ones with the reason, those of several pictures, and sizes."""

    num: int
    damaged: list[str]
    several: list[str]
    sizes: collections.Counter[tuple[int, int]]


def check(path: pathlib.Path) -> Report:
    """Read every image of `path`. Raises ValueError: there is no such path, or no image in it."""
    if not path.exists():
        raise ValueError(f"{path} does not exist.")
    files = [path] if path.suffix in arrays.SUFFIXES else [*path.glob("*.np[yz]")] if path.is_dir() else []
    if files:
        return _check_arrays(files)
    trees.check_readable(path)
    root = path if path.is_dir() else trees.open_zip(path)
    suffixes = images.readable_suffixes()
    names = [name for name in trees.names(root) if pathlib.PurePosixPath(name).suffix.lower() in suffixes]
    archives = [root / name for name in trees.names(root) if path.is_dir() and name.endswith(".zip")]
    inner = [opened / name for opened in map(trees.open_zip, archives) for name in trees.names(opened)]
    found = [root / name for name in names]
    found += [file for file in inner if pathlib.PurePosixPath(file.name).suffix.lower() in suffixes]
    if not found:
        raise ValueError(f"No image file in {root}{trees.unread(root)}.")
    report = Report(len(found), [], [], collections.Counter())
    for file, (problem, num, size) in zip(found, _in_threads(found), strict=True):
        if problem:
            report.damaged.append(problem)
            continue
        report.sizes[size] += 1
        if num > 1:
            report.several.append(f"{file}: {num} pictures, of which the first is read")
    return report


def _in_threads(files: list[images.File]) -> Iterator[tuple[str, int, tuple[int, int]]]:
    with futures.ThreadPoolExecutor() as pool:
        for start in range(0, len(files), _CHUNK):
            yield from pool.map(_check_image, files[start : start + _CHUNK])


def _check_image(file: images.File) -> tuple[str, int, tuple[int, int]]:
    """What is wrong ("" if nothing), the number of pictures, and width and height."""
    try:
        image = images.read_image(file)
        images.convert(image, size=None, channels=images.native_channels(image))
        with file.open("rb") as content, PIL.Image.open(content, formats=images.readable_formats()) as header:
            return "", images.pictures(header), image.size
    except images.Damaged as error:
        return str(error), 1, (0, 0)
    except ValueError as error:  # such as pixels without a known range
        return f"{file}: {error}.", 1, (0, 0)


def _check_arrays(files: list[pathlib.Path]) -> Report:
    report = Report(0, [], [], collections.Counter())
    for file in files:
        try:
            x = arrays.read_arrays(file, "train").x
        except ValueError as error:
            report.damaged.append(str(error))
            continue
        report = report._replace(num=report.num + len(x))
        if len(x.shape) > 2:
            report.sizes[x.shape[2], x.shape[1]] += len(x)
    return report


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m diffusion_jax.data.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="PATH", type=pathlib.Path, help="folder, zip archive, .npz or .npy file")
    path = parser.parse_args(arguments).path.expanduser()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", images.SEVERAL[:40])
            report = check(path)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for line in (*report.damaged, *report.several):
        print(line)
    sizes = ", ".join(f"{width} x {height} ({num:,})" for (width, height), num in report.sizes.most_common(5))
    more = f" and {len(report.sizes) - 5} other sizes" if len(report.sizes) > 5 else ""
    print(f"{report.num:,} images, {len(report.damaged):,} damaged; {sizes or 'none read'}{more}")
    sys.exit(1 if report.damaged else 0)


if __name__ == "__main__":
    main()
