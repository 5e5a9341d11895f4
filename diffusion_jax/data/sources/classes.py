"""Classes of examples: their numbers, which are those of the training split in every split, and their names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Shaped

LABELS = "dataset.json"  # of EDM's and StyleGAN's dataset_tool
_SHOWN = 20  # classes in a message


class Classes(NamedTuple):
    """The classes of a data set: how many, and their names in the order of their numbers (none for numbers)."""

    size: int
    names: tuple[str, ...] = ()


def numbered(
    values: Shaped[np.ndarray, "n"], where: str, training: Classes | None = None
) -> tuple[Int32[np.ndarray, "n"], Classes]:
    """Labels and the classes: integers are labels already; strings have their places among the sorted ones.

    Args:
        values: one for each example.
        where: that they come from, for messages.
        training: the classes of the training split, whose numbers strings get. None if this is the training split.

    Raises:
        ValueError: neither strings nor integers, integers out of range, or a string that no training example has.
    """
    integers = values.ndim == 1 and np.issubdtype(values.dtype, np.integer)
    if values.ndim != 1 or (values.dtype.kind != "U" and not integers):
        raise ValueError(f"{where} each label must be a string or an integer, got {values.dtype} {values.shape[1:]}.")
    if training is not None and bool(training.names) == bool(integers):
        kinds = ("integers", "strings") if integers else ("strings", "integers")
        raise ValueError(f"{where} the labels are {kinds[0]}, and those of the training split {kinds[1]}.")
    if integers:
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= 2**31:
            wrong = low if low < 0 else high
            raise ValueError(f"{where} each label must be in 0..2^31 - 1, got {wrong}; classes are counted from 0.")
        size = max(high + 1, 0 if training is None else training.size)
        return values.astype(np.int32), Classes(size)
    names = tuple(np.unique(values).tolist()) if training is None else training.names
    numbers = {name: number for number, name in enumerate(names)}
    for name in np.unique(values).tolist():
        if name not in numbers:
            raise ValueError(
                f"{where} the class {name!r} is not among those of the training split: {shown(names)}. Remove it, or "
                "add it to the training split."
            )
    return np.array([numbers[name] for name in values.tolist()], np.int32), Classes(len(names), names)


def shown(names: Sequence[str]) -> str:
    """The numbers and names of classes in one line, such as "0 cat, 1 dog"; the first ones if there are many."""
    words = [f"{number} {name}" for number, name in enumerate(names[:_SHOWN])]
    return ", ".join(words) + (f", ... {len(names) - 1} {names[-1]}" if len(names) > _SHOWN else "")


def of_dataset_tool(content: bytes, names: Sequence[str], where: str) -> Int32[np.ndarray, "n"] | None:
    """The labels of the images `names` in a dataset.json, {"labels": [[name, label], ...]}; None for null labels.

    Raises:
        ValueError: naming the file `where` and the image, if it is of another form or an image has no label.
    """
    form = 'must be an object with "labels": null, or a list of [file name, class], as dataset_tool.py writes it'
    try:
        labels = json.loads(content)["labels"]
        by_name: dict[str, Any] = {} if labels is None else dict(labels)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{where} {form} ({type(error).__name__}: {error}).") from error
    if labels is None:
        return None
    values = []
    for name in names:
        value = by_name.get(name)
        if type(value) is not int or not 0 <= value < 2**31:
            problem = f"has no label for {name}" if value is None else f"gives {name} the label {value!r}"
            raise ValueError(f"{where} {problem}; each must be an integer in 0..2^31 - 1.")
        values.append(value)
    return np.array(values, np.int32)
