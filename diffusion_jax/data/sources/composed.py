"""Data sets that are made of other data sets: the sections within config.data that name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from diffusion_jax.data import captions
from diffusion_jax.data.source import NOTHING, Source, Tokenize
from diffusion_jax.types import Spec

_SHARED = ("image_size", "channels")
_AT_ONCE = 1024  # examples whose labels are read together


def section(data: Mapping[str, Any], name: str, composed: str) -> dict[str, Any]:
    """The section data.`name`, of a data set that is not itself a `composed` one. Raises ValueError.

    It has the size of images of `data`, unless it says another one.
    """
    value = data.get(name)
    if not isinstance(value, Mapping) or "name" not in value:
        raise ValueError(f"data.{name}={value!r} must be a section of a data set, such as dict(name='digits')")
    if value["name"] == composed:
        raise ValueError(f"data.{name}.name={composed!r} must be one data set")
    shared = {key: data[key] for key in _SHARED if data.get(key) is not None}
    return {**shared, **value}


def spec(part: Mapping[str, Any]) -> Spec:
    """One example of the data set of a section."""
    from diffusion_jax.data.load import opener  # which lists the sources that are made of others

    return opener(part["name"]).spec(part)


def facts(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is known about the data set of a section without opening it, see `Source.facts`."""
    from diffusion_jax.data.load import opener

    return opener(part["name"]).facts(part)


def opened(
    part: Mapping[str, Any],
    split: str,
    name: str,
    *,
    wanted: Mapping[str, Spec] = NOTHING,
    tokenize: Tokenize | None = None,
) -> tuple[Source, Int64[np.ndarray, "n"]]:
    """A data set and the indices of its examples that count: those of the classes `only` of its section, or all.

    A section has the keys of config.data, and optionally `only`, a class or several. Raises ValueError that begins with
    "data.`name`".
    """
    from diffusion_jax.data.load import keys, open_source

    part = {key: value for key, value in part.items() if value is not None and value != ""}
    only = part.pop("only", None)
    data_set = part.pop("name")
    for key in part:
        if key not in keys(data_set):
            raise ValueError(f"data.{name}.{key}: {data_set!r} takes no {key!r}; it takes {', '.join(keys(data_set))}")
    try:
        source = open_source(data_set, split=split, wanted=wanted, tokenize=tokenize, **part)
    except ValueError as error:
        raise ValueError(f"data.{name}: {error}") from error
    if only is None:
        return source, np.arange(len(source))
    if not source.num_classes:
        raise ValueError(f"data.{name}.only={only!r}: {data_set!r} has no classes")
    rows = np.array_split(np.arange(len(source)), -(-len(source) // _AT_ONCE))
    labels = np.concatenate([source.read(part)["label"] for part in rows])
    chosen = np.flatnonzero(np.isin(labels, only))
    if not len(chosen):
        raise ValueError(f"data.{name}.only={only!r}: {data_set!r} has no such example in {split!r}")
    return source, chosen


def tokens(
    field: str, texts: Sequence[str], wanted: Mapping[str, Spec], tokenize: Tokenize | None
) -> Int32[np.ndarray, "n max_tokens"]:
    """The ids of the texts `field` of config.data; without a tokenizer their bytes. Raises ValueError."""
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{field}={texts!r} must be a tuple of texts, such as ('a photo',)")
    if tokenize is None:
        return captions.tokens_of(texts, wanted["tokens"].shape[0], captions.Cuts())
    try:
        return tokenize(list(texts))
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error
