"""Images as examples: decoded, scaled to [-1, 1], flipped, dequantized, with conditions that are derived from them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from diffusion_jax.data import captions as bytes_of
from diffusion_jax.data import images
from diffusion_jax.data.derived import Derived
from diffusion_jax.data.source import NOTHING, Batch, Source, Tokenize, Uniform, entry, even
from diffusion_jax.types import Spec


def spec(section: Mapping[str, Any]) -> Spec:
    """Square images of config.data.image_size and channels. ValueError: one of them is missing or not positive."""
    for key in ("image_size", "channels"):
        if not isinstance(section.get(key), int) or section[key] < 1:
            raise ValueError(
                f"data.{key}={section.get(key)!r} must be a positive integer for images such as those of "
                f"{section.get('name')!r}"
            )
    return Spec((section["image_size"], section["image_size"], section["channels"]), modality="image")


def facts(section: Mapping[str, Any]) -> dict[str, Any]:
    """The number of grey levels, "levels"."""
    return {"levels": section.get("levels", 256)}


def check(*, image_size: int | None, channels: int | None, crop: int | None, levels: int) -> None:
    """Refuse impossible sizes with a ValueError that names the key of config.data."""
    for key, value in {"image_size": image_size, "crop": crop}.items():
        if value is not None and value <= 0:
            raise ValueError(f"data.{key} must be positive, got {value}.")
    if channels not in (None, 1, 3):
        raise ValueError(f"data.channels must be 1 or 3, got {channels}.")
    if not 2 <= levels <= 256:
        raise ValueError(f"data.levels must be in 2..256, got {levels}.")


def source(
    read: Callable[[np.ndarray], Batch],
    *,
    size: int,
    shape: tuple[int, ...],
    num_classes: int = 0,
    conditions: Mapping[str, Spec] = NOTHING,
    others: Collection[str] = (),
    modality: str = "image",
    flip: bool = False,
    dequantize: bool = False,
    levels: int = 256,
    derive: Derived | None = None,
    num_workers: int = 0,
) -> Source:
    """A source of images `x`: uint8 or float32 [n, height, width, channels], with labels if there are classes.

    An 8-bit value v becomes x = v / 127.5 - 1 or, dequantized with u ~ U[0, 1), x = 2 (k + u) / levels - 1 with k = v
    for 256 levels. Either way x is in [-1, 1], and so are conditions that are 8-bit images.

    Args:
        read: int [n] -> {"x", "label" if there are classes, and other conditions by name}.
        size, shape, num_classes: number of examples, shape of one x, number of classes.
        conditions: specs of the other entries that `read` gives.
        others: names of those that `with_conditions` adds.
        flip: mirror half of the images at random.
        dequantize: replace grey level k of a value by a uniform draw from [k, k + 1).
        levels: number of grey levels that the 8-bit values hold, level k as round(255 k / (levels - 1)).
        derive: makes conditions such as "image" from x where `read` does not give them. What it draws is fixed by the
            index where nothing else is random.

    Raises:
        ValueError: the images do not fit `derive`, or some of the conditions that it makes are given and not all.
    """
    entries = {"x": Spec(shape, modality=modality)}
    if num_classes:
        entries["label"] = Spec((), "int32", values=num_classes)
    entries |= conditions
    if derive:
        if len(shape) != 3:
            raise ValueError(f"The condition 'image' is made of images, and examples have shape {shape}.")
        made = derive.make(np.zeros((1, *shape), np.float32), np.zeros((1, derive.draws), np.float32))
        kinds = {name: "image" if name in images.CONDITIONS else "array" for name in made}
        derived = {name: entry(value, kinds[name]) for name, value in made.items()}
        given = derived.keys() & {*conditions, *others}
        if given and given != derived.keys():
            raise ValueError(
                f"The data holds {', '.join(sorted(given))} and not {', '.join(sorted(derived.keys() - given))}, "
                "which belong together: it must hold all of them, or none, and they are made of the images."
            )
        entries = derived | entries
    pixel_draws = flip + dequantize * math.prod(shape)

    def ready(batch: Batch, uniform: Uniform | None) -> Batch:
        x = batch["x"]
        if flip and uniform is not None:
            x = np.where(uniform[:, 0, None, None, None] < 0.5, x[:, :, ::-1], x)
        if dequantize and uniform is not None:
            noise = uniform[:, flip:pixel_draws].reshape(x.shape)
            k = x if levels == 256 else np.round(x * np.float32((levels - 1) / 255))
            x = (k + noise) * np.float32(2 / levels) - np.float32(1)
        made = scaled(batch) | {"x": images.in_unit_range(x)}
        if not derive:
            return made
        indices = made.pop(_INDEX)
        if not derived.keys() <= made.keys():
            fixed = uniform is None
            u = _fixed(indices, derive.draws) if fixed else uniform[:, pixel_draws : pixel_draws + derive.draws]
            made |= derive.make(made["x"], u)
        return made

    return Source(
        entries=entries,
        size=size,
        read=(lambda indices: read(indices) | {_INDEX: indices}) if derive else read,
        ready=ready,
        draws=even(pixel_draws + (derive.draws if derive else 0)),
        num_workers=num_workers,
        facts={"levels": levels},
    )


_INDEX = "index"  # a stored entry that only `ready` sees, where it derives conditions


def _fixed(indices: np.ndarray, draws: int) -> Uniform:
    """The uniform numbers of each example that evaluation derives its condition from."""
    return np.stack([np.random.default_rng((0, int(i))).random(draws, np.float32) for i in indices])


def scaled(batch: Batch) -> Batch:
    """`batch` whose conditions that are 8-bit images are in [-1, 1]."""
    return batch | {name: images.in_unit_range(batch[name]) for name in images.CONDITIONS if name in batch}


def ready_conditions(batch: Batch, uniform: Uniform | None) -> Batch:
    """The `Source.ready` of examples that are no images themselves."""
    return scaled(batch)


def with_conditions(
    source: Source,
    others: Mapping[str, np.ndarray | Sequence[str]],
    *,
    captions: Sequence[str],
    wanted: Mapping[str, Spec],
    tokenize: Tokenize | None,
) -> Source:
    """`source` whose examples also have the conditions `others`, rows in the same order, and texts as tokens.

    Args:
        others: arrays [n, ...] by name, and under "caption" one text per example.
        captions: one text per class, for examples that have none of their own.
        wanted: texts are read if "tokens" are among these, which gives their length.
        tokenize: texts -> ids; None for the bytes of each text.
    """
    max_tokens = wanted["tokens"].shape[0] if "tokens" in wanted else 0
    tokenize = tokenize or functools.partial(bytes_of.tokens_of, max_tokens=max_tokens, cuts=bytes_of.Cuts())
    if captions and len(captions) != source.num_classes:
        reason = source.facts.get("unlabelled", "")
        raise ValueError(
            f"data.captions has {len(captions)} texts for {source.num_classes} classes"
            f"{': ' + reason if reason else ''}."
        )
    if captions and max_tokens < 1:
        raise ValueError("Captions need a network with config.network.max_tokens > 0, the length they are cut to.")
    by_class = tokenize(captions) if captions else None
    others = dict(others)
    by_example = others.pop("caption", None)
    by_example = by_example if max_tokens else None  # a model that reads no text does not need them
    if by_class is None and by_example is None and not others:
        return source

    def texts(indices: np.ndarray, labels: np.ndarray | None) -> Batch:
        if by_example is not None:
            return {"tokens": tokenize([str(by_example[i]) for i in indices])}
        return {} if by_class is None else {"tokens": by_class[labels]}

    def read(indices: np.ndarray) -> Batch:
        batch = source.read(indices)
        batch |= texts(indices, batch.get("label"))
        return batch | {name: value[indices] for name, value in others.items()}

    first = np.zeros(1, np.int64)
    added = {name: entry(value) for name, value in texts(first, first).items()}
    for name, value in others.items():
        added[name] = _condition_entry(name, value)
    return dataclasses.replace(source, read=read, entries={**source.entries, **added})


def _condition_entry(name: str, value: np.ndarray) -> Spec:
    if name not in images.CONDITIONS:
        return entry(value)
    try:
        return entry(images.in_unit_range(value[:0]), "image")
    except ValueError as error:
        raise ValueError(f"The condition {name!r}: {error}") from error


def balanced(source: Source, balance: str, labels: Sequence[Any] | None, captions: Sequence[str] | None) -> Source:
    """`source` that training draws evenly from each label or each caption, see `Source.groups`."""
    if balance not in ("", "label", "caption"):
        raise ValueError(f"data.balance must be '', 'label' or 'caption', got {balance!r}.")
    if not balance:
        return source
    values = {"label": labels, "caption": captions}[balance]
    if values is None:
        reason = source.facts.get("unlabelled", "") if balance == "label" else ""
        raise ValueError(
            f"data.balance = {balance!r}: the examples have no {balance}s of their own, see data.{balance}_key"
            f"{'; ' + reason if reason else ''}."
        )
    return dataclasses.replace(source, groups=_groups(values))


def _groups(values: Sequence[Any]) -> Int64[np.ndarray, "n"]:
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values])


def decoded(
    files: images.Images,
    *,
    image_size: int | None,
    channels: int | None,
    crop: int | None,
    cache_bytes: int,
    wanted: Mapping[str, Spec],
    skip_damaged: bool = False,
    mixed: bool = False,
    **options: Any,
) -> Source:
    """Image files (or encoded images) that are read, converted and, if they fit into `cache_bytes`, remembered.

    The conditions in `files.files` get their shapes from `wanted`. The first image fixes what is left open; `options`
    are those of `source`. With `skip_damaged` the first one that can be read does. With `mixed` images may have
    different sizes; those of one read are then an array of arrays.
    """
    start = first_readable(files) if skip_damaged else 0
    channels = channels or images.native_channels(files.get(start)[0])

    def decode(i: int) -> tuple[np.ndarray, int]:
        image, label = files.get(i)
        try:
            return images.convert(image, size=image_size, channels=channels, crop=crop), label
        except ValueError as error:
            raise ValueError(f"{files.describe(i)}: {error}.") from error

    shape = decode(start)[0].shape

    def read(indices: np.ndarray) -> Batch:
        x, pixels = np.empty((len(indices), *shape), np.uint8), []
        label = np.empty(len(indices), np.int32)
        for row, i in enumerate(indices):
            image, label[row] = decode(int(i))
            if image.shape == shape:
                x[row] = image
            elif not mixed:
                raise ValueError(
                    f"{files.describe(int(i))} has shape {image.shape}, {files.describe(start)} has {shape}. "
                    "Set data.image_size to bring all images to one size."
                )
            pixels.append(image)
        if any(image.shape != shape for image in pixels):
            x = np.empty(len(pixels), object)
            x[:] = pixels
        batch = {"x": x, "label": label} if files.num_classes else {"x": x}
        for name, file in files.files.items():
            batch[name] = np.empty((len(indices), *wanted[name].shape), np.float32)
            for row, i in enumerate(indices):
                try:
                    batch[name][row] = images.from_files(*file(int(i)), wanted[name].shape)
                except images.Damaged:
                    raise
                except ValueError as error:
                    raise ValueError(f"{files.describe(int(i))}, its condition {name!r}: {error}") from error
        return batch

    sizes = {name: value.nbytes for name, value in read(np.array([start])).items()}
    if files.size * sum(sizes.values()) <= cache_bytes:
        read = _remembered(read, files.size, start)
    conditions = {name: Spec(wanted[name].shape, modality="image") for name in files.files}
    made = source(read, size=files.size, shape=shape, num_classes=files.num_classes, conditions=conditions, **options)
    made = with_facts(made, classes=tuple(files.classes), unlabelled=files.unlabelled)
    return dataclasses.replace(made, ready=functools.partial(_of_one_size, made.ready)) if mixed else made


def _of_one_size(ready: Callable[[Batch, Uniform | None], Batch], batch: Batch, uniform: Uniform | None) -> Batch:
    images.check_one_size(batch["x"])
    return ready(batch, uniform)


def with_facts(source: Source, **facts: Any) -> Source:
    """`source` with those of `facts` that are not empty, see `Source.facts`."""
    known = {name: value for name, value in facts.items() if value}
    return dataclasses.replace(source, facts={**source.facts, **known})


def first_readable(files: images.Images) -> int:
    """The first image that is not damaged. Raises ValueError if all are."""
    for i in range(files.size):
        try:
            files.get(i)
        except images.Damaged:
            continue
        return i
    raise ValueError(f"None of the {files.size} images can be read, from {files.describe(0)} on.")


def skipping(source: Source, describe: Callable[[int], str]) -> Source:
    """`source` that reads the next readable example, in order, where the image file of one is damaged.

    Which one that is depends on the files alone, so a run that is resumed reads the same. The fact "skipped" is a
    dictionary that grows: index of a damaged example -> what `describe` says of it.
    """
    skipped: dict[int, str] = {}

    def readable(i: int) -> int:
        for j in (*range(i, source.size), *range(i)) if i in skipped else (i,):
            if j not in skipped:
                return j
        raise ValueError(f"None of the {source.size} images can be read, from {describe(0)} on.")

    def damaged(i: int) -> bool:
        try:
            source.read(np.array([i]))
        except images.Damaged:
            return True
        return False

    def read(indices: np.ndarray) -> Batch:
        while True:
            chosen = np.array([readable(int(i)) for i in indices], np.int64)
            try:
                return source.read(chosen)
            except images.Damaged:
                found = {i: describe(i) for i in np.unique(chosen).tolist() if damaged(i)}
                if not found:  # an error of the moment, not of a file
                    raise
                skipped.update(found)

    return dataclasses.replace(source, read=read, facts={**source.facts, "skipped": skipped})


def _remembered(read: Callable[[np.ndarray], Batch], size: int, start: int) -> Callable[[np.ndarray], Batch]:
    """Like `read`, but every example is read once. Threads that race for one write the same values.

    Example `start` says what the arrays of all are like.
    """
    first = read(np.array([start]))
    memory = {key: np.empty((size, *value.shape[1:]), value.dtype) for key, value in first.items()}
    known = np.zeros(size, bool)

    def remembered(indices: np.ndarray) -> Batch:
        missing = np.unique(indices[~known[indices]])
        if len(missing):
            for key, value in read(missing).items():
                memory[key][missing] = value
            known[missing] = True
        return {key: value[indices] for key, value in memory.items()}

    return remembered
