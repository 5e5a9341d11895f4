"""Folders of image files, and the splits of files and folders."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int32, Int64, Shaped

from diffusion_jax.data import images
from diffusion_jax.data.derived import Derived
from diffusion_jax.data.source import NOTHING, Source, Tokenize
from diffusion_jax.data.sources import images as sources
from diffusion_jax.data.sources import metadata
from diffusion_jax.types import Spec

_SPLIT = re.compile(r"(?P<name>[\w-]+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


def _parse(split: str) -> re.Match[str]:
    match = _SPLIT.fullmatch(split)
    if match is None:
        raise ValueError(f"Cannot read the split {split!r}; write it like 'train', 'train[:1000]' or 'train[90%:]'.")
    return match


def select(split: str, size: int) -> Int64[np.ndarray, "n"]:
    """Which of `size` examples, in which order, a split such as "train[:90%]" means.

    A whole split is in order. A slice is cut from one fixed permutation, so [:k] and [k:] are disjoint, and both are
    random subsets even if the examples are sorted by class.

    Raises:
        ValueError: the split cannot be parsed, is out of bounds or empty.
    """
    match = _parse(split)

    def bound(text: str | None, default: int) -> int:
        if text is None:
            return default
        position = round(size * int(text[:-1]) / 100) if text.endswith("%") else int(text)
        return position + size if text.startswith("-") else position

    start, stop = bound(match["start"], 0), bound(match["stop"], size)
    if not 0 <= start < stop <= size:
        raise ValueError(f"The split {split!r} is empty or out of bounds: there are {size} examples.")
    order = np.arange(size) if split == match["name"] else np.random.default_rng(0).permutation(size)
    return order[start:stop]


def locate(path: pathlib.Path, split: str, suffixes: tuple[str, ...]) -> pathlib.Path:
    """`path/<split>` if there is such an entry, else `path` itself, which holds "train" only."""
    path, name = path.expanduser(), _parse(split)["name"]
    if not path.exists():
        raise ValueError(f"data.path = {str(path)!r} does not exist.")
    for suffix in suffixes:
        if (path / f"{name}{suffix}").exists():
            return path / f"{name}{suffix}"
    if name != "train":
        raise ValueError(
            f"Unknown split {name!r}: {path} has no {' or '.join(f'{name}{suffix}' for suffix in suffixes)} in it. "
            "Add it, or cut it off the training data: 'train[:90%]' and 'train[90%:]'."
        )
    return path


def folder_images(path: pathlib.Path, split: str, keys: Mapping[str, str] = NOTHING) -> images.Images:
    """All image files below `path/<split>` (or `path`), sorted by path.

    If every image is in a sub-folder, the sorted names of the first level of sub-folders are the classes. Files
    without the suffix of an image format that PIL reads, and hidden ones, are ignored. `keys` says where captions,
    other classes and conditions that are images are, each by its kind: see `metadata.captions`, `metadata.values` and
    `metadata.named_files`. Files of conditions without a line of their own are no examples.

    Raises:
        ValueError: no such path or split, or no image in it, or no caption, class or condition for one.
    """
    root = locate(path, split, ("",))
    suffixes = images.readable_suffixes()
    paths = sorted(
        pathlib.Path(folder, file)
        for folder, _, names in os.walk(root)
        for file in names
        if pathlib.Path(file).suffix.lower() in suffixes and not file.startswith(".")
    )
    conditions = {kind: keys[kind] for kind in images.CONDITIONS if kind in keys}
    if conditions:
        conditions_only = {root / name for key in conditions.values() for name in metadata.named_files(root, key)}
        paths = [path for path in paths if path not in conditions_only]
    if not paths:
        raise ValueError(f"No image file in {root}.")
    parts = [path.relative_to(root).parts for path in paths]
    labels, num_classes = np.full(len(paths), -1), 0
    if key := keys.get("label"):
        labels, num_classes = class_ids(np.array(metadata.values(root, paths, key)), f"{root}, {key!r}:")
    elif all(len(part) > 1 for part in parts):
        labels, num_classes = class_ids(np.array([part[0] for part in parts]), str(root))
    captions = metadata.captions(root, paths, keys["caption"]) if "caption" in keys else ()
    named = {kind: metadata.values(root, paths, key) for kind, key in conditions.items()}
    chosen = select(split, len(paths))
    paths, labels = [paths[i] for i in chosen], labels[chosen]
    return images.Images(
        get=lambda i: (images.read_image(paths[i]), int(labels[i])),
        size=len(paths),
        num_classes=num_classes,
        describe=lambda i: str(paths[i]),
        captions=tuple(captions[i] for i in chosen) if captions else (),
        labels=labels if num_classes else None,
        files={kind: lambda i, value=value: (root, value[chosen[i]]) for kind, value in named.items()},
    )


def class_ids(values: Shaped[np.ndarray, "n"], where: str) -> tuple[Int32[np.ndarray, "n"], int]:
    """Labels and the number of classes: integers are labels already; of strings, which are sorted, their places.

    Raises:
        ValueError: naming `where` they come from, for anything else.
    """
    if values.dtype.kind == "U":
        values = np.unique(values, return_inverse=True)[1]
    integers = values.ndim == 1 and np.issubdtype(values.dtype, np.integer)
    if not integers or values.min() < 0 or values.max() >= 2**31:
        raise ValueError(f"{where} each label must be a string or an integer in 0..2^31 - 1, got {values.dtype}.")
    return values.astype(np.int32), int(values.max()) + 1


def open_folder(
    *,
    split: str = "train",
    wanted: Mapping[str, Spec] = NOTHING,
    tokenize: Tokenize | None = None,
    derive: Derived | None = None,
    path: str | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    crop: int | None = None,
    flip: bool = False,
    dequantize: bool = False,
    levels: int = 256,
    num_workers: int = 1,
    cache_bytes: int = 2**30,
    captions: tuple[str, ...] = (),
    caption_key: str = "",
    label_key: str = "",
    image_key: str = "",
    control_key: str = "",
    balance: str = "",
) -> Source:
    """One split of a folder of image files, see `folder_images`. Other arguments as in `data.load`."""
    if not path:
        raise ValueError("data.path must be set for data.name = 'folder'.")
    sources.check(image_size=image_size, channels=channels, crop=crop, levels=levels)
    keys = {"caption": caption_key, "label": label_key, "image": image_key, "control": control_key}
    examples = folder_images(pathlib.Path(path), split, {kind: key for kind, key in keys.items() if key})
    examples = examples._replace(files={kind: file for kind, file in examples.files.items() if kind in wanted})
    if examples.files and (flip or crop):
        raise ValueError(
            f"{flip=}, {crop=}: {path} holds images as conditions, which are not changed with the examples."
        )
    source = sources.decoded(
        examples,
        image_size=image_size,
        channels=channels,
        crop=crop,
        cache_bytes=cache_bytes,
        wanted=wanted,
        flip=flip,
        dequantize=dequantize,
        levels=levels,
        derive=derive,
        num_workers=num_workers,
    )
    source = sources.balanced(source, balance, examples.labels, examples.captions or None)
    others = {"caption": examples.captions} if examples.captions else {}
    return sources.with_conditions(source, others, captions=captions, wanted=wanted, tokenize=tokenize)
