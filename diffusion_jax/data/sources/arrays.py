"""Examples in .npz and .npy files: images, and any other floating-point arrays."""

from __future__ import annotations

import pathlib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Shaped

from diffusion_jax.data import images as pixels
from diffusion_jax.data.derived import Derived
from diffusion_jax.data.source import NOTHING, Source, Tokenize, in_memory
from diffusion_jax.data.sources import archives, files, images
from diffusion_jax.data.sources.classes import Classes, numbered
from diffusion_jax.types import Spec

_IMAGE_KEYS = ("images", "samples", "x", "arr_0")
SUFFIXES = (".npz", ".npy")
_LABEL_KEYS = ("labels", "label", "cond")
CONDITION_KEYS = ("vector", "tokens", "mask", *pixels.CONDITIONS, "caption")  # captions are strings


def spec(section: Mapping[str, Any]) -> Spec:
    """Arrays of config.data.shape, or square images of image_size and channels.

    Unless config.data.modality says what they are, arrays of 1 or 3 channels are images.
    """
    modality = section.get("modality") or ("image" if section.get("channels") in (1, 3) else "array")
    if section.get("shape"):
        return Spec(tuple(section["shape"]), modality=section.get("modality") or _usual(tuple(section["shape"])))
    return images.spec(section)._replace(modality=modality)


def _usual(shape: tuple[int, ...]) -> str:
    """What floating-point arrays of this shape are where nothing says it."""
    return "image" if len(shape) == 3 and shape[-1] in (1, 3) else "array"


def open_source(
    *,
    split: str = "train",
    wanted: Mapping[str, Spec] = NOTHING,
    tokenize: Tokenize | None = None,
    derive: Derived | None = None,
    training: str = "",
    path: str | None = None,
    modality: str = "",
    shape: tuple = (),
    range: str = "",
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
    """One split of an .npz or .npy file, see `read_arrays`. Other arguments as in `data.load`."""
    if not path:
        raise ValueError("data.path must be set for data.name = 'arrays'.")
    keys = {"caption": caption_key, "label": label_key, "image": image_key, "control": control_key}
    arrays = read_arrays(
        pathlib.Path(path),
        split,
        {kind: key for kind, key in keys.items() if key},
        modality=modality,
        range=range,
        training=training,
    )
    if flip and not arrays.others.keys().isdisjoint(pixels.CONDITIONS):
        raise ValueError(f"data.flip: {path} holds images as conditions, which are not flipped with the examples.")
    if arrays.x.dtype == np.uint8:
        if modality not in ("", "image", "mask"):
            raise ValueError(f"data.modality={modality!r}: {path} holds 8-bit values, which are images or masks.")
        images.check(image_size=image_size, channels=channels, crop=crop, levels=levels)
        source = images.decoded(
            array_images(pathlib.Path(path), arrays),
            image_size=image_size,
            channels=channels,
            crop=crop,
            cache_bytes=cache_bytes,
            wanted=wanted,
            others=arrays.others,
            modality=modality or "image",
            flip=flip,
            dequantize=dequantize,
            levels=levels,
            derive=derive,
            num_workers=num_workers,
        )
    else:
        images.check(image_size=image_size, channels=None, crop=crop, levels=levels)
        _check_as_it_is(path, arrays, image_size, channels, crop, flip, dequantize)
        source = _float_source(arrays, modality=modality, flip=flip, levels=levels, derive=derive)
    source = images.with_facts(source, classes=arrays.classes)
    source = images.balanced(source, balance, arrays.label, arrays.others.get("caption"))
    return images.with_conditions(source, arrays.others, captions=captions, wanted=wanted, tokenize=tokenize)


class Arrays(NamedTuple):
    """Examples, with labels in 0..num_classes - 1 unless `label` is None, and other conditions [n, ...] by name."""

    x: Shaped[np.ndarray, "n ..."]
    label: Int32[np.ndarray, "n"] | None
    num_classes: int
    others: Mapping[str, Shaped[np.ndarray, "n ..."]] = NOTHING
    classes: tuple[str, ...] = ()  # their names, if labels are strings


def read_arrays(
    path: pathlib.Path,
    split: str,
    keys: Mapping[str, str] = NOTHING,
    *,
    modality: str = "",
    range: str = "",
    training: str = "",
) -> Arrays:
    """Examples and labels of `path/<split>.npz` (or .npy, or the file `path` itself).

    An .npz file holds the examples under one of images, samples, x, arr_0, and optionally labels [n], integers or
    strings, under one of labels, label, cond, and further conditions under the names in `CONDITION_KEYS`, or under
    those that `keys` gives for "label", "caption" and others of these. Examples are uint8, or floating point and
    returned as float32. If `modality` is "" or "image", the latter must be in [-1, 1] as images are, except for arrays
    [n, height, width, channels] of neither 1 nor 3 channels; all others may be any finite numbers. `range` says what
    the values of floating-point images mean, see `data.images.from_range`, and strings have the numbers that they have
    in the split `training`, see `files.training_split`.

    Raises:
        ValueError: naming the file and the key, if it cannot be read or its shape, type or range is wrong.
    """
    file = files.locate(path, split, SUFFIXES)
    label_keys = (keys["label"],) if "label" in keys else _LABEL_KEYS
    condition_keys = {name: keys.get(name, name) for name in CONDITION_KEYS}
    data, names = _read(file, (_IMAGE_KEYS, label_keys), condition_keys.values())
    key = next((key for key in ("array", *_IMAGE_KEYS) if key in data), None)
    if key is None:
        raise ValueError(f"{file} has the keys {sorted(names)}; the examples must be under one of {_IMAGE_KEYS}.")
    for known, advice in ((_IMAGE_KEYS, "leave one of them"), (label_keys, "say it: data.label_key")):
        if len(present := [name for name in known if name in names]) > 1:
            raise ValueError(f"{file} has the keys {' and '.join(present)}, and only one can be meant; {advice}.")
    x = _examples(data[key], f"{file}, key {key!r}:", modality, range)
    for wanted in keys.values():
        if wanted not in data:
            raise ValueError(f"{file} has the keys {sorted(names)}, and no {wanted!r}.")
    labels, numbering = None, Classes(0)
    if key := next((key for key in label_keys if key in data), None):
        where = f"{file}, key {key!r}:"
        if data[key].shape != x.shape[:1]:
            raise ValueError(f"{where} labels must be of shape {x.shape[:1]}, got {data[key].shape}.")
        labels, numbering = numbered(data[key], where, _classes_of_training(path, split, label_keys, training))
    others = {name: data[key] for name, key in condition_keys.items() if key in data}
    for name, value in others.items():
        where = f"{file}, key {condition_keys[name]!r}:"
        if name == "caption" and value.dtype.kind != "U":
            raise ValueError(f"{where} captions must be strings, got {value.dtype}.")
        if value.shape[:1] != x.shape[:1]:
            raise ValueError(f"{where} {len(x)} examples need as many conditions, got {value.shape}.")
        if name in pixels.CONDITIONS and np.issubdtype(value.dtype, np.floating) and _usual(value.shape[1:]) == "image":
            others[name] = pixels.from_range(value, range, where)
    chosen = files.select(split, len(x))
    others = {name: value[chosen] for name, value in others.items()}
    return Arrays(x[chosen], None if labels is None else labels[chosen], numbering.size, others, numbering.names)


def _read(
    file: pathlib.Path, alternatives: Sequence[Sequence[str]], others: Iterable[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The first array of each of the `alternatives` and `others`, as far as they are there, and the names of all.

    The array of an .npy file is called "array". Raises ValueError, naming the file.
    """
    if file.is_dir():
        there = [entry.name for entry in sorted(file.iterdir()) if entry.suffix in SUFFIXES]
        raise ValueError(
            f"{file} is a folder without train.npz; it has {', '.join(there[:5]) or 'no arrays'}. Set data.path to one "
            "file, or name the files of a folder like splits; data.name='folder' reads image files."
        )
    try:
        if not zipfile.is_zipfile(file):
            return {"array": np.load(file, allow_pickle=False)}, []
        names = archives.npz_names(file)
        first = {next((key for key in known if key in names), "") for known in alternatives}
        data = archives.read_npz(file, {*first, *others})
    except Exception as error:  # a broken archive can raise from zipfile, zlib or the header parser
        raise ValueError(f"Cannot read arrays from {file}: {error}.") from error
    if file.suffix == ".zip" and not data:
        raise ValueError(f"{file} holds no arrays, but {', '.join(names[:3])}, ...: data.name='folder' reads images.")
    return data, names


def _classes_of_training(path: pathlib.Path, split: str, label_keys: Sequence[str], training: str) -> Classes | None:
    """The classes of the training split where `split` is another one; None where it is not, or has no labels."""

    def file_of(name: str) -> pathlib.Path | None:
        return next((path / f"{name}{suffix}" for suffix in SUFFIXES if (path / f"{name}{suffix}").exists()), None)

    path = path.expanduser()
    reference = files.training_split(split, training, lambda name: file_of(name) is not None)
    if reference is None:
        return None
    data, _ = _read(file_of(reference), (label_keys,), ())
    key = next((key for key in label_keys if key in data), None)
    return None if key is None else numbered(data[key], f"{file_of(reference)}, key {key!r}:")[1]


def _examples(x: np.ndarray, where: str, modality: str, range: str) -> np.ndarray:
    """uint8 as it is, floating point as float32. ValueError: another type, no example, or values out of range."""
    if x.ndim < 2 or x.size == 0:
        raise ValueError(f"{where} needs shape [n, ...] with n > 0, got {x.shape}.")
    if x.dtype == np.uint8:
        return x
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"{where} must be uint8 or floating point, got {x.dtype}.")
    if (modality or _usual(x.shape[1:])) == "image":
        return pixels.from_range(x, range, where)
    if range:
        raise ValueError(f"{where} data.range={range!r} is for images, and arrays of shape {x.shape[1:]} are none.")
    low, high = float(x.min()), float(x.max())
    bounded = modality == "mask" or (modality in ("", "image") and not (x.ndim == 4 and x.shape[-1] not in (1, 3)))
    limit = 1 if bounded else np.finfo(np.float32).max
    if not -limit <= low <= high <= limit:  # written so that NaN fails
        allowed = "in [-1, 1]" if bounded else "finite"
        raise ValueError(f"{where} floating-point values must be {allowed}, got {low:.4g} to {high:.4g}.")
    return x.astype(np.float32)


def array_images(path: pathlib.Path, arrays: Arrays) -> pixels.Images:
    """uint8 [n, height, width] or [n, height, width, 1, 3 or 4] as images.

    Raises:
        ValueError: another shape, or that of one image in colour.
    """
    x, label, num_classes, others, _ = arrays
    if x.ndim == 3 and x.shape[-1] in (3, 4) and x.shape[1] != x.shape[2]:
        raise ValueError(
            f"{path}: is {x.shape} one image [height, width, channels]? Store [n, height, width, channels], with n = 1."
        )
    if x.ndim != 3 and not (x.ndim == 4 and x.shape[-1] in (1, 3, 4)):
        raise ValueError(f"{path}: 8-bit images must be [n, height, width(, 1, 3 or 4)], got {x.shape}.")
    return pixels.Images(
        get=lambda i: (pixels.from_array(x[i]), -1 if label is None else int(label[i])),
        size=len(x),
        num_classes=num_classes,
        describe=lambda i: f"{path}, image {i}",
        captions=tuple(others.get("caption", ())),
        labels=label,
    )


def _check_as_it_is(
    path: str,
    arrays: Arrays,
    image_size: int | None,
    channels: int | None,
    crop: int | None,
    flip: bool,
    dequantize: bool,
) -> None:
    """Floating-point examples are used as they are: refuse conversions of them, and sizes that are not theirs."""
    shape = arrays.x.shape[1:]
    if crop or dequantize:
        raise ValueError(f"{path} holds floating-point examples; {crop=} and {dequantize=} need 8-bit images.")
    is_image = len(shape) == 3
    asked = (image_size or shape[0], image_size or shape[1], channels or shape[2]) if is_image else shape
    if asked != shape or (not is_image and (image_size or channels or flip)):
        raise ValueError(
            f"{path} holds floating-point examples of shape {shape}, which are used as they are; "
            f"they do not fit {image_size=}, {channels=}, {flip=}."
        )


def _float_source(arrays: Arrays, *, modality: str, flip: bool, levels: int, derive: Derived | None) -> Source:
    stored = {"x": arrays.x} | ({} if arrays.label is None else {"label": arrays.label})
    shape = arrays.x.shape[1:]
    return images.source(
        in_memory(stored),
        size=len(arrays.x),
        shape=shape,
        num_classes=arrays.num_classes,
        others=arrays.others,
        modality=modality or _usual(shape),
        flip=flip,
        levels=levels,
        derive=derive,
    )
