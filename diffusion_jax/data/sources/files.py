"""Image folders and array files."""

from __future__ import annotations

import os
import pathlib
import re
import types
import zipfile
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, Shaped

from diffusion_jax.data import images
from diffusion_jax.data.sources import archives, metadata

_IMAGE_KEYS = ("images", "samples", "x", "arr_0")
_LABEL_KEYS = ("labels", "label", "cond")
CONDITION_KEYS = ("vector", "tokens", "mask", *images.CONDITIONS, "caption")  # captions are strings
NO_KEYS: Mapping[str, str] = types.MappingProxyType({})
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


def _locate(path: pathlib.Path, split: str, suffixes: tuple[str, ...]) -> pathlib.Path:
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


def folder_images(path: pathlib.Path, split: str, keys: Mapping[str, str] = NO_KEYS) -> images.Images:
    """All image files below `path/<split>` (or `path`), sorted by path.

    If every image is in a sub-folder, the sorted names of the first level of sub-folders are the classes. Files
    without the suffix of an image format that PIL reads, and hidden ones, are ignored. `keys` says where captions,
    other classes and conditions that are images are, each by its kind: see `metadata.captions`, `metadata.values` and
    `metadata.named_files`. Files of conditions without a line of their own are no examples.

    Raises:
        ValueError: no such path or split, or no image in it, or no caption, class or condition for one.
    """
    root = _locate(path, split, ("",))
    suffixes = images.readable_suffixes()
    paths = sorted(
        pathlib.Path(folder, file)
        for folder, _, found in os.walk(root)
        for file in found
        if pathlib.Path(file).suffix.lower() in suffixes and not file.startswith(".")
    )
    conditions = {kind: keys[kind] for kind in images.CONDITIONS if kind in keys}
    if conditions:
        taken = {root / name for key in conditions.values() for name in metadata.named_files(root, key)}
        paths = [path for path in paths if path not in taken]
    if not paths:
        raise ValueError(f"No image file in {root}.")
    parts = [path.relative_to(root).parts for path in paths]
    labels, num_classes = np.full(len(paths), -1), 0
    if key := keys.get("label"):
        labels, num_classes = class_ids(np.array(metadata.values(root, paths, key)), f"{root}, {key!r}:")
    elif all(len(part) > 1 for part in parts):
        labels, num_classes = class_ids(np.array([part[0] for part in parts]), str(root))
    captions = metadata.captions(root, paths, keys["caption"]) if "caption" in keys else ()
    found = {kind: metadata.values(root, paths, key) for kind, key in conditions.items()}
    chosen = select(split, len(paths))
    paths, labels = [paths[i] for i in chosen], labels[chosen]
    return images.Images(
        get=lambda i: (images.read_image(paths[i]), int(labels[i])),
        size=len(paths),
        num_classes=num_classes,
        describe=lambda i: str(paths[i]),
        captions=tuple(captions[i] for i in chosen) if captions else (),
        labels=labels if num_classes else None,
        files={kind: lambda i, value=value: (root, value[chosen[i]]) for kind, value in found.items()},
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


class Arrays(NamedTuple):
    """Examples, with labels in 0..num_classes - 1 unless `label` is None, and other conditions [n, ...] by name."""

    x: Shaped[np.ndarray, "n ..."]
    label: Int32[np.ndarray, "n"] | None
    num_classes: int
    others: Mapping[str, Shaped[np.ndarray, "n ..."]] = {}


def read_arrays(path: pathlib.Path, split: str, keys: Mapping[str, str] = NO_KEYS) -> Arrays:
    """Examples and labels of `path/<split>.npz` (or .npy, or the file `path` itself).

    An .npz file holds the examples under one of images, samples, x, arr_0, and optionally labels [n], integers or
    strings, under one of labels, label, cond, and further conditions under the names in `CONDITION_KEYS`, or under
    those that `keys` gives for "label", "caption" and others of these. Examples are uint8, or float in [-1, 1] and
    returned as float32; latents, which are [n, height, width, channels] with neither 1 nor 3 channels, may be any
    finite numbers.

    Raises:
        ValueError: naming the file and the key, if it cannot be read or its shape, type or range is wrong.
    """
    file = _locate(path, split, (".npz", ".npy"))
    label_keys = (keys["label"],) if "label" in keys else _LABEL_KEYS
    condition_keys = {name: keys.get(name, name) for name in CONDITION_KEYS}
    try:
        if zipfile.is_zipfile(file):
            names = archives.npz_names(file)
            wanted = {next((key for key in known if key in names), "") for known in (_IMAGE_KEYS, label_keys)}
            wanted |= {*condition_keys.values()}
            data = archives.read_npz(file, wanted)
        else:
            names, data = [], {"array": np.load(file, allow_pickle=False)}
    except Exception as error:  # a broken archive can raise from zipfile, zlib or the header parser
        raise ValueError(f"Cannot read arrays from {file}: {error}.") from error
    key = next((key for key in ("array", *_IMAGE_KEYS) if key in data), None)
    if key is None:
        raise ValueError(f"{file} has the keys {sorted(names)}; the examples must be under one of {_IMAGE_KEYS}.")
    x = data[key]
    where = f"{file}, key {key!r}:"
    if x.ndim < 2 or x.size == 0:
        raise ValueError(f"{where} needs shape [n, ...] with n > 0, got {x.shape}.")
    if np.issubdtype(x.dtype, np.floating):
        low, high = float(x.min()), float(x.max())
        latent = x.ndim == 4 and x.shape[-1] not in (1, 3)
        limit = np.finfo(np.float32).max if latent else 1
        if not -limit <= low <= high <= limit:  # written so that NaN fails
            allowed = "finite" if latent else "in [-1, 1]"
            raise ValueError(f"{where} floating-point values must be {allowed}, got {low:.4g} to {high:.4g}.")
        x = x.astype(np.float32)
    elif x.dtype != np.uint8:
        raise ValueError(f"{where} must be uint8 or floating point, got {x.dtype}.")
    for wanted in keys.values():
        if wanted not in data:
            raise ValueError(f"{file} has the keys {sorted(names)}, and no {wanted!r}.")
    label, num_classes = None, 0
    if found := next((key for key in label_keys if key in data), None):
        where = f"{file}, key {found!r}:"
        if data[found].shape != x.shape[:1]:
            raise ValueError(f"{where} labels must be of shape {x.shape[:1]}, got {data[found].shape}.")
        label, num_classes = class_ids(data[found], where)
    others = {name: data[key] for name, key in condition_keys.items() if key in data}
    for name, value in others.items():
        where = f"{file}, key {condition_keys[name]!r}:"
        if name == "caption" and value.dtype.kind != "U":
            raise ValueError(f"{where} captions must be strings, got {value.dtype}.")
        if value.shape[:1] != x.shape[:1]:
            raise ValueError(f"{where} {len(x)} examples need as many conditions, got {value.shape}.")
    chosen = select(split, len(x))
    others = {name: value[chosen] for name, value in others.items()}
    return Arrays(x[chosen], None if label is None else label[chosen], num_classes, others)


def array_images(path: pathlib.Path, arrays: Arrays) -> images.Images:
    """uint8 [n, height, width] or [n, height, width, 1, 3 or 4] as images.

    Raises:
        ValueError: another shape.
    """
    x, label, num_classes, others = arrays
    if x.ndim != 3 and not (x.ndim == 4 and x.shape[-1] in (1, 3, 4)):
        raise ValueError(f"{path}: 8-bit images must be [n, height, width(, 1, 3 or 4)], got {x.shape}.")
    return images.Images(
        get=lambda i: (images.from_array(x[i]), -1 if label is None else int(label[i])),
        size=len(x),
        num_classes=num_classes,
        describe=lambda i: f"{path}, image {i}",
        captions=tuple(others.get("caption", ())),
        labels=label,
    )
