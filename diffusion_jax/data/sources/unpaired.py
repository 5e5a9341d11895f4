"""Two data sets without pairs: "x" from one and "image" from the other, drawn independently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_jax.data.derived import Derived
from diffusion_jax.data.source import NOTHING, Batch, Source, Tokenize, Uniform
from diffusion_jax.types import Spec

_SETS = ("x", "image")
_AT_ONCE = 1024  # examples whose labels are read together


def _section(section: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = section.get(name)
    if not isinstance(value, Mapping) or "name" not in value:
        raise ValueError(f"data.{name}={value!r} must be a section of a data set, such as dict(name='digits')")
    if value["name"] == "unpaired":
        raise ValueError(f"data.{name}.name='unpaired' must be one data set")
    return dict(value)


def spec(section: Mapping[str, Any]) -> Spec:
    """An example of the set "x". Raises ValueError unless those of both sets are alike."""
    from diffusion_jax.data.load import opener  # which lists this source

    first, second = (opener(part["name"]).spec(part) for part in (_section(section, name) for name in _SETS))
    if first != second:
        raise ValueError(
            f"data.x holds examples of {first.shape} ({first.modality}) and data.image of {second.shape} "
            f"({second.modality}); a bridge needs two sets of the same size and kind"
        )
    return first


def open_source(
    *,
    split: str = "train",
    wanted: Mapping[str, Spec] = NOTHING,
    tokenize: Tokenize | None = None,
    derive: Derived | None = None,
    training: str = "",
    x: Mapping[str, Any] = NOTHING,
    image: Mapping[str, Any] = NOTHING,
) -> Source:
    """The same split of the data sets in the sections `x` and `image`.

    A section has the keys of config.data, and optionally `only`: a class, or several, to which its set is limited. In
    training every x is joined by a random example of the other set; in evaluation example i by example i, modulo the
    size of the other set. Raises ValueError for sets of different sizes of examples, or an `only` that holds none.
    """
    spec({"x": x, "image": image})
    (first, rows), (second, others) = (_opened(section, split, name) for name, section in (("x", x), ("image", image)))

    def read(indices: np.ndarray) -> Batch:
        return {"index": indices, **{f"x_{name}": value for name, value in first.read(rows[indices]).items()}}

    def ready(stored: Batch, uniform: Uniform | None) -> Batch:
        own = {name.removeprefix("x_"): value for name, value in stored.items() if name != "index"}
        if uniform is None:
            chosen, of_first, of_second = stored["index"] % len(others), None, None
        else:
            # Two numbers, since one float32 distinguishes 2^24 examples.
            u = uniform[:, 0].astype(np.float64) + uniform[:, 1].astype(np.float64) / 2**24
            chosen = np.minimum((u * len(others)).astype(np.int64), len(others) - 1)
            of_first, of_second = np.split(uniform[:, 2:], [first.draws], axis=1)
        made = first.ready(own, of_first)
        return {**made, "image": second.ready(second.read(others[chosen]), of_second)["x"]}

    return Source(
        entries={**first.entries, "image": first.entries["x"]},
        size=len(rows),
        read=read,
        ready=ready,
        draws=2 + first.draws + second.draws,
        facts=first.facts,
    )


def _opened(section: Mapping[str, Any], split: str, name: str) -> tuple[Source, np.ndarray]:
    """A data set and the indices of its examples that count."""
    from diffusion_jax.data.load import keys, open_source

    section = {key: value for key, value in section.items() if value is not None and value != ""}
    only = section.pop("only", None)
    data_set = section.pop("name")
    for key in section:
        if key not in keys(data_set):
            raise ValueError(f"data.{name}.{key}: {data_set!r} takes no {key!r}; it takes {', '.join(keys(data_set))}")
    source = open_source(data_set, split=split, **section)
    if only is None:
        return source, np.arange(len(source))
    if not source.num_classes:
        raise ValueError(f"data.{name}.only={only!r}: {data_set!r} has no classes")
    parts = np.array_split(np.arange(len(source)), -(-len(source) // _AT_ONCE))
    labels = np.concatenate([source.read(part)["label"] for part in parts])
    rows = np.flatnonzero(np.isin(labels, only))
    if not len(rows):
        raise ValueError(f"data.{name}.only={only!r}: {data_set!r} has no such example in {split!r}")
    return source, rows
