"""The conditions of samples, as config.sampling.cond asks for them and as files and pictures record them."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from diffusion_jax import data
from diffusion_jax.config.sections import refusal
from diffusion_jax.data import images
from diffusion_jax.data.captions import VOCABULARY, texts_of, tokens_of
from diffusion_jax.data.sources import archives
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.run.job import Job

Tokenize = Callable[[Sequence[str]], np.ndarray]  # texts -> ids [n, max_tokens]
Describe = Callable[[np.ndarray], list[str]]  # ids -> texts
_MAX_BYTES = 2**24  # of a file of requests


def requested(
    text: str, conditions: Conditions, num: int, tokenize: Tokenize | None = None
) -> dict[str, np.ndarray] | None:
    """The conditions of `num` samples that `text` asks for, repeated where it names fewer; None for an empty one.

    For class models `text` is class ids, "3" or "0,1,2"; for models of captions it is captions, "a cat|a dog". A file
    *.txt has one class id or caption per line; a file *.npz has an array [n, ...] under the name of each condition,
    see `Conditions`, or strings under "caption". A file *.json is a list of objects, one per sample, with the
    conditions by name, "caption" for a text, and the path of an image file for "image" and "control": it is cut to a
    square, resized, and its values are in [-1, 1]. Of several paths the channels lie side by side, such as
    ["photo.png", "mask.png"]. Relative paths begin where the file lies.

    Captions become ids by `tokenize`, or are the bytes of their text.

    Raises:
        ValueError: there is no such condition or file, or it does not fit the model.
    """
    if not text:
        return None
    if not conditions.shapes:
        raise ValueError("the model is unconditional and nothing steers it; there is nothing to ask for")
    path, tokenize = pathlib.Path(text), tokenize or functools.partial(_byte_tokens, conditions=conditions)
    if path.suffix == ".npz":
        cond = _from_arrays(path, conditions, tokenize)
    elif path.suffix == ".json":
        cond = _from_objects(path, conditions, tokenize)
    elif path.suffix == ".txt":
        cond = _from_lines([line.strip() for line in _lines(path) if line.strip()], conditions, tokenize)
    else:
        parts = text.split("|" if conditions.vocabulary else ",")
        cond = _from_lines([part.strip() for part in parts], conditions, tokenize)
    counts = {name: len(value) for name, value in cond.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"its conditions have {counts} rows; they need the same number, at least 1")
    conditions.check(cond)
    return cycled(cond, num)


def conditions(job: Job, num: int) -> dict[str, np.ndarray] | None:
    """The conditions of `num` samples: those of config.sampling.cond, or else of held-out examples.

    None for a system without conditions, for one of classes, which cycles through them, and for "prior".
    """
    text, wanted = job.config.sampling.cond, job.system.conditions
    if job.recipe.role == "first_stage":
        return None if text == "prior" else cycled({"x": data.shuffled(job.held_out, num)["x"]}, num)
    with refusal(f"config.sampling.cond={text!r}"):
        cond = requested(text, wanted, num, job.built.reading.tokenize)
    if cond is None and set(wanted.shapes) - {"label"}:
        examples = data.shuffled(job.held_out, num)
        # Editing starts from held-out images themselves.
        with refusal("config.sampling.cond=''"):
            cond = cycled(wanted.of({"image": examples["x"], **examples}), num)
            wanted.check(cond)
    return cond


def cycled(cond: Mapping[str, np.ndarray], num: int) -> dict[str, np.ndarray]:
    """`num` rows of `cond`, which start again where there are fewer."""
    return {name: value[np.arange(num) % len(value)] for name, value in cond.items()}


def captions(cond: Mapping[str, Any], describe: Describe = texts_of) -> list[str] | None:
    """What is written below each sample: its class, or its caption, `describe(ids)`; None if it has neither."""
    if "label" in cond:
        return [str(label) for label in np.asarray(cond["label"]).tolist()]
    if "tokens" in cond and np.issubdtype(np.asarray(cond["tokens"]).dtype, np.integer):
        return describe(np.asarray(cond["tokens"]))
    return None


def recorded(cond: Mapping[str, Any], describe: Describe = texts_of) -> dict[str, np.ndarray]:
    """The arrays of a file of samples: `cond`, the class, caption or only condition, and others as cond_<name>."""
    arrays = {name: np.asarray(value) for name, value in cond.items()}
    if "tokens" in arrays and "mask" not in arrays:
        arrays["tokens"] = np.array(describe(arrays["tokens"]))
    first = next(iter(arrays), None)
    return {"cond" if name == first else f"cond_{name}": value for name, value in arrays.items()}


def _lines(path: pathlib.Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _from_lines(parts: list[str], conditions: Conditions, tokenize: Tokenize) -> dict[str, np.ndarray]:
    kinds = set(conditions.shapes)
    if kinds == {"label"}:
        if not all(part.lstrip("-").isdecimal() for part in parts):
            raise ValueError(f"{','.join(parts)!r} must be class ids in 0..{conditions.num_classes - 1}, such as 0,1,2")
        return {"label": np.array([int(part) for part in parts], np.int32)}
    if kinds == {"tokens"}:
        return {"tokens": tokenize(parts)}
    raise ValueError(f"the model needs the conditions {', '.join(sorted(kinds))}; give them in a file *.npz, or *.json")


def _from_objects(path: pathlib.Path, conditions: Conditions, tokenize: Tokenize) -> dict[str, np.ndarray]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} must hold a list of objects, one for each sample")
    names = {name: "caption" if name == "tokens" and conditions.vocabulary else name for name in conditions.shapes}
    for i, row in enumerate(rows):
        if row.keys() != set(names.values()):
            raise ValueError(
                f"{path}: object {i} has {', '.join(row) or 'nothing'}; it needs {', '.join(names.values())}"
            )
    cond = {}
    for name, entry in conditions.shapes.items():
        values = [row[names[name]] for row in rows]
        if names[name] == "caption":
            if not all(isinstance(value, str) for value in values):
                raise ValueError(
                    f"{path}: a caption must be a string, got {next(v for v in values if type(v) is not str)!r}"
                )
            cond[name] = tokenize(values)
        elif name in ("image", "control"):
            cond[name] = np.stack([images.from_files(path.parent, value, entry.shape) for value in values])
        else:
            try:
                cond[name] = np.array(values, entry.dtype)
            except (ValueError, TypeError, OverflowError) as error:
                raise ValueError(f"{path}: {name} must be numbers of shape {entry.shape}: {error}") from error
    return cond


def _from_arrays(path: pathlib.Path, conditions: Conditions, tokenize: Tokenize) -> dict[str, np.ndarray]:
    try:
        found = archives.read_npz(path, {*conditions.shapes, "caption"})
    except Exception as error:  # a broken archive can raise from zipfile, zlib or the header parser
        raise ValueError(f"{path} cannot be read: {error}") from error
    if "caption" in found and conditions.vocabulary:
        found["tokens"] = tokenize([str(text) for text in found["caption"]])
    cond = conditions.of(found)
    cond |= {name: images.in_unit_range(cond[name]) for name in images.CONDITIONS if name in cond}
    for name, entry in conditions.shapes.items():
        if not np.can_cast(cond[name].dtype, entry.dtype, "same_kind"):
            raise ValueError(f"{path}: {name} is {cond[name].dtype}, not {entry.dtype}")
    return {name: cond[name].astype(entry.dtype) for name, entry in conditions.shapes.items()}


def _byte_tokens(texts: Sequence[str], conditions: Conditions) -> np.ndarray:
    if conditions.vocabulary < VOCABULARY:
        raise ValueError(
            f"captions need a vocabulary of {VOCABULARY}, the bytes and padding; it is {conditions.vocabulary}"
        )
    return tokens_of(texts, conditions.max_tokens)
