"""The conditions of samples, as config.sampling.cond asks for them and as files and pictures record them."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_jax.conditions import Conditions
from diffusion_jax.data import archives
from diffusion_jax.data.captions import VOCABULARY, texts_of, tokens_of


def requested(text: str, conditions: Conditions, num: int) -> dict[str, np.ndarray] | None:
    """The conditions of `num` samples that `text` asks for, going round where it names fewer; None for an empty one.

    For class models `text` is class ids, "3" or "0,1,2"; for models of captions it is captions, "a cat|a dog". A file
    *.txt has one class id or caption per line; a file *.npz has an array [n, ...] under the name of each condition,
    see `Conditions`, or strings under "caption".

    Raises:
        ValueError: there is no such condition or file, or it does not fit the model.
    """
    if not text:
        return None
    if not conditions.shapes:
        raise ValueError("the model is unconditional and nothing steers it; there is nothing to ask for")
    path = pathlib.Path(text)
    if path.suffix == ".npz":
        cond = _from_arrays(path, conditions)
    elif path.suffix == ".txt":
        cond = _from_lines([line.strip() for line in _lines(path) if line.strip()], conditions)
    else:
        cond = _from_lines([part.strip() for part in text.split("|" if conditions.vocabulary else ",")], conditions)
    counts = {name: len(value) for name, value in cond.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"its conditions have {counts} rows; they need the same number, at least 1")
    conditions.check(cond)
    return going_round(cond, num)


def going_round(cond: Mapping[str, np.ndarray], num: int) -> dict[str, np.ndarray]:
    """`num` rows of `cond`, the first after the last."""
    return {name: value[np.arange(num) % len(value)] for name, value in cond.items()}


def captions(cond: Mapping[str, Any]) -> list[str] | None:
    """What is written below each sample: its class, or its caption; None if it has neither."""
    if "label" in cond:
        return [str(label) for label in np.asarray(cond["label"]).tolist()]
    if "tokens" in cond and np.issubdtype(np.asarray(cond["tokens"]).dtype, np.integer):
        return texts_of(cond["tokens"])
    return None


def recorded(cond: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a file of samples: `cond`, the class, caption or only condition, and others as cond_<name>."""
    arrays = {name: np.asarray(value) for name, value in cond.items()}
    if "tokens" in arrays and "mask" not in arrays:
        arrays["tokens"] = np.array(texts_of(arrays["tokens"]))
    first = next(iter(arrays), None)
    return {"cond" if name == first else f"cond_{name}": value for name, value in arrays.items()}


def _lines(path: pathlib.Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _from_lines(parts: list[str], conditions: Conditions) -> dict[str, np.ndarray]:
    kinds = set(conditions.shapes)
    if kinds == {"label"}:
        if not all(part.lstrip("-").isdecimal() for part in parts):
            raise ValueError(f"{','.join(parts)!r} must be class ids in 0..{conditions.num_classes - 1}, such as 0,1,2")
        return {"label": np.array([int(part) for part in parts], np.int32)}
    if kinds == {"tokens"}:
        return {"tokens": _tokens(parts, conditions)}
    raise ValueError(f"the model needs the conditions {', '.join(sorted(kinds))}; give them in a file *.npz")


def _from_arrays(path: pathlib.Path, conditions: Conditions) -> dict[str, np.ndarray]:
    try:
        found = archives.read_npz(path, {*conditions.shapes, "caption"})
    except Exception as error:  # a broken archive can raise from zipfile, zlib or the header parser
        raise ValueError(f"{path} cannot be read: {error}") from error
    if "caption" in found and conditions.vocabulary:
        found["tokens"] = _tokens([str(text) for text in found["caption"]], conditions)
    cond = conditions.of(found)
    for name, entry in conditions.shapes.items():
        if not np.can_cast(cond[name].dtype, entry.dtype, "same_kind"):
            raise ValueError(f"{path}: {name} is {cond[name].dtype}, not {entry.dtype}")
    return {name: cond[name].astype(entry.dtype) for name, entry in conditions.shapes.items()}


def _tokens(texts: list[str], conditions: Conditions) -> np.ndarray:
    if conditions.vocabulary < VOCABULARY:
        raise ValueError(
            f"captions need a vocabulary of {VOCABULARY}, the bytes and padding; it is {conditions.vocabulary}"
        )
    return tokens_of(texts, conditions.max_tokens)
