"""Folders and zip archives of image files, and the splits of files and folders."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from diffusion_jax.data import images
from diffusion_jax.data.derived import Derived
from diffusion_jax.data.source import NOTHING, Source, Tokenize
from diffusion_jax.data.sources import classes, crops, metadata, trees
from diffusion_jax.data.sources import images as sources
from diffusion_jax.data.sources.classes import Classes
from diffusion_jax.data.sources.trees import Root
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
    order = np.arange(size) if split == named(split) else np.random.default_rng(0).permutation(size)
    return order[bounds(split, size)]


def divided(size: int) -> dict[str, Int64[np.ndarray, "_"]]:
    """The rows of "test", a tenth of `size` examples, chosen at random and at least one, and the others as "train"."""
    order = np.random.default_rng(0).permutation(size)
    held_out = max(round(size / 10), 1)
    return {"train": np.sort(order[held_out:]), "test": np.sort(order[:held_out])}


def bounds(split: str, size: int) -> slice:
    """Which part of `size` examples a split such as "train[:90%]" is. ValueError as in `select`."""
    match = _parse(split)

    def bound(text: str | None, default: int) -> int:
        if text is None:
            return default
        position = round(size * int(text[:-1]) / 100) if text.endswith("%") else int(text)
        return position + size if text.startswith("-") else position

    start, stop = bound(match["start"], 0), bound(match["stop"], size)
    if not 0 <= start < stop <= size:
        raise ValueError(f"The split {split!r} is empty or out of bounds: there are {size} examples.")
    return slice(start, stop)


def named(split: str) -> str:
    """The name of a split without its slice: "train" of "train[:90%]". ValueError: it cannot be parsed."""
    return _parse(split)["name"]


def locate(path: pathlib.Path, split: str, suffixes: tuple[str, ...]) -> pathlib.Path:
    """`path/<split>` if there is such an entry, else `path` itself, which holds "train" only."""
    path, name = path.expanduser(), named(split)
    if not path.exists():
        raise ValueError(f"data.path = {str(path)!r} does not exist.")
    for suffix in suffixes:
        if (path / f"{name}{suffix}").exists():
            return path / f"{name}{suffix}"
    if name != "train":
        raise _unknown_split(name, str(path), suffixes)
    return path


def training_split(split: str, training: str, present: Callable[[str], bool]) -> str | None:
    """The split whose classes number those of `split`; None if that is `split` itself.

    It is `training`, by default "train" or "training", if `present` says that there are data of this name.
    """
    for name in (named(training),) if training else ("train", "training"):
        if name == named(split):
            return None
        if present(name):
            return name
    return None


def _unknown_split(name: str, path: str, suffixes: tuple[str, ...]) -> ValueError:
    return ValueError(
        f"Unknown split {name!r}: {path} has no {' or '.join(f'{name}{suffix}' for suffix in suffixes)} in it. "
        "Add it, or cut it off the training data: 'train[:90%]' and 'train[90%:]'."
    )


class _Place(NamedTuple):
    """Where the files of a split are: a folder, or a zip archive or folder in it, and what it is in."""

    root: Root
    above: tuple[Root, str] | None = None  # the folder of all splits, and the name of this one's


def _place(path: pathlib.Path, split: str) -> _Place:
    """`path/<split>`, as a folder or .zip archive, else `path` itself, which holds "train" only.

    Raises:
        ValueError: there is no such path or split, or `path` has folders named like splits and none for this one.
    """
    path, name = path.expanduser(), named(split)
    if not path.exists():
        raise ValueError(f"data.path = {str(path)!r} does not exist.")
    trees.check_readable(path)
    if path.is_dir() and (path / f"{name}.zip").is_file() and not (path / name).is_dir():
        return _Place(trees.open_zip(path / f"{name}.zip"))
    whole = path if path.is_dir() else trees.open_zip(path)
    within = trees.folders(whole)
    if name in within:
        return _Place(whole / name if isinstance(whole, pathlib.Path) else whole.below(name), (whole, name))
    if name != "train":
        raise _unknown_split(name, str(whole), ("", ".zip"))
    if others := [folder for folder in within if folder.lower() in trees.SPLITS]:
        raise ValueError(
            f"{whole} has no folder {name!r}, but {', '.join(others)}, which are named like splits. Set data.split, "
            "move the training images into a folder 'train', or rename what are classes."
        )
    return _Place(whole)


class _Listed(NamedTuple):
    """The images of a split, and what says their classes."""

    place: _Place
    names: list[str]  # examples, relative to the split's root
    table: metadata.Table | None
    values: np.ndarray | None  # the class of each, a string or an integer
    where: str  # the classes come from
    unlabelled: str = ""  # why there are none
    empty: str = ""  # a folder that would be a class, but has no image


def _listed(path: pathlib.Path, split: str, keys: Mapping[str, str]) -> _Listed:
    place = _place(path, split)
    root, suffixes = place.root, images.readable_suffixes()
    everything = trees.names(root)
    names = found = [name for name in everything if pathlib.PurePosixPath(name).suffix.lower() in suffixes]
    fields = {kind: key for kind, key in keys.items() if not key.startswith(".")}
    places = [(root, ""), *([place.above] if place.above else [])]
    table = metadata.table(places, _has, everything) if fields else None
    conditions = [fields[kind] for kind in images.CONDITIONS if kind in fields]
    if conditions:
        conditions_only = set().union(*(table.named_files(key) for key in conditions))
        names = [name for name in names if name not in conditions_only]
    if not names:
        raise ValueError(f"No image file in {root}{trees.unread(root)}.")
    values, where, unlabelled, empty = None, str(root), "", ""
    if "label" in keys:
        values, where = table.labels(names, keys["label"]), f"{table.file}, {keys['label']!r}:"
    elif classes.LABELS in everything:
        where = str(root / classes.LABELS)
        values = classes.of_dataset_tool(_content(root / classes.LABELS), names, where)
        unlabelled = "" if values is not None else f"the labels in {where} are null"
    elif stray := [name for name in names if "/" not in name]:
        unlabelled = f"{stray[0]} lies in {root} itself and not in a folder of its class"
    else:
        values = np.array([name.split("/")[0] for name in names])
        empty = min({*trees.folders(root)} - {name.split("/")[0] for name in found}, default="")
    return _Listed(place, names, table, values, where, unlabelled, empty)


def _content(file: pathlib.Path | trees.Member) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"Cannot read {file}: {error}.") from error


def _has(root: Root, name: str) -> bool:
    return name in root.members if isinstance(root, trees.Archive) else (root / name).is_file()


def _classes_of_training(path: pathlib.Path, split: str, keys: Mapping[str, str], training: str) -> Classes | None:
    """The classes of the training split where `split` is another one; None where it is not, or has no classes."""

    def present(name: str) -> bool:
        try:
            return _place(path, name).above is not None or (path.expanduser() / f"{name}.zip").is_file()
        except ValueError:
            return False

    reference = training_split(split, training, present)
    if reference is None:
        return None
    listed = _listed(path, reference, keys)
    return None if listed.values is None else classes.numbered(listed.values, listed.where)[1]


def folder_images(
    path: pathlib.Path, split: str, keys: Mapping[str, str] = NOTHING, training: str = ""
) -> images.Images:
    """All image files below `path/<split>` (or `path`), folders or zip archives, sorted by path.

    If every image is in a sub-folder, the sorted names of the first level of sub-folders are the classes, as in
    torchvision's ImageFolder; a file dataset.json, as EDM's and StyleGAN's dataset_tool writes it, has the classes
    instead. Files without the suffix of an image format that PIL reads, and hidden files and folders, are ignored;
    links are followed. `keys` says where captions, other classes and conditions that are images are, each by its kind:
    see `metadata`. Files of conditions without a line of their own are no examples. Names of classes have the numbers
    of the split `training`, see `training_split`.

    Raises:
        ValueError: no such path or split, or no image in it, or no caption, class or condition for one, or a class
            that the training split does not have, or that has no image there.
    """
    listed = _listed(path, split, keys)
    root, names = listed.place.root, listed.names
    labels, numbering = np.full(len(names), -1), Classes(0)
    if listed.values is not None:
        known = _classes_of_training(path, split, keys, training)
        if known is None and listed.empty:
            raise ValueError(f"The folder {root / listed.empty} is a class without an image file: remove or fill it.")
        labels, numbering = classes.numbered(listed.values, listed.where, known)
    captions: list[str] = []
    if key := keys.get("caption"):
        suffix = key.startswith(".")
        captions = metadata.first_lines(root, names, key) if suffix else listed.table.captions(names, key)
    values = {kind: listed.table.values(names, keys[kind]) for kind in images.CONDITIONS if kind in keys}
    chosen = select(split, len(names))
    files, labels = [root / names[i] for i in chosen], labels[chosen]
    return images.Images(
        get=lambda i: (images.read_image(files[i]), int(labels[i])),
        size=len(files),
        num_classes=numbering.size,
        classes=numbering.names,
        unlabelled=listed.unlabelled,
        describe=lambda i: str(files[i]),
        captions=tuple(captions[i] for i in chosen) if captions else (),
        labels=labels if numbering.size else None,
        files={kind: lambda i, value=value: (listed.table.root, value[chosen[i]]) for kind, value in values.items()},
    )


def open_folder(
    *,
    split: str = "train",
    wanted: Mapping[str, Spec] = NOTHING,
    tokenize: Tokenize | None = None,
    derive: Derived | None = None,
    training: str = "",
    path: str | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    crop: int | str | None = None,
    resize: tuple = (),
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
    skip_damaged: bool = False,
) -> Source:
    """One split of a folder or zip archive of image files, see `folder_images`. Other arguments as in `data.load`."""
    if not path:
        raise ValueError("data.path must be set for data.name = 'folder'.")
    smaller_side = crops.check(crop, image_size, resize)
    centre = None if crop == crops.RANDOM else crop
    sources.check(image_size=image_size, channels=channels, crop=centre, levels=levels)
    keys = {"caption": caption_key, "label": label_key, "image": image_key, "control": control_key}
    examples = folder_images(pathlib.Path(path), split, {kind: key for kind, key in keys.items() if key}, training)
    examples = examples._replace(files={kind: file for kind, file in examples.files.items() if kind in wanted})
    if examples.files and (flip or crop):
        raise ValueError(
            f"{flip=}, {crop=}: {path} holds images as conditions, which are not changed with the examples."
        )
    centred = dict(crop=crop, cache_bytes=cache_bytes, wanted=wanted)
    cut = dict(resize=smaller_side) if crop == crops.RANDOM else centred
    source = (crops if crop == crops.RANDOM else sources).decoded(
        examples,
        image_size=image_size,
        channels=channels,
        **cut,
        flip=flip,
        dequantize=dequantize,
        levels=levels,
        derive=derive,
        num_workers=num_workers,
        skip_damaged=skip_damaged,
    )
    source = sources.balanced(source, balance, examples.labels, examples.captions or None)
    others = {"caption": examples.captions} if examples.captions else {}
    source = sources.with_conditions(source, others, captions=captions, wanted=wanted, tokenize=tokenize)
    return sources.skipping(source, examples.describe) if skip_damaged else source
