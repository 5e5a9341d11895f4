"""Conditions of samples: parsed from config.sampling.cond, and written to files of samples and below pictures."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from diffusion_jax import data, modalities
from diffusion_jax.config.sections import ConfigError, refusal
from diffusion_jax.data import images
from diffusion_jax.data.captions import VOCABULARY, Cuts, texts_of, tokens_of
from diffusion_jax.data.sources import archives
from diffusion_jax.evaluation.restoration import as_image
from diffusion_jax.guidance.inversion import SOURCE
from diffusion_jax.guidance.matched_noise import NOISY
from diffusion_jax.networks.conditions import Conditions, Request
from diffusion_jax.run import edits, workdir
from diffusion_jax.run.job import Job

Tokenize = Callable[[Sequence[str]], np.ndarray]  # texts -> ids [n, max_tokens]
Describe = Callable[[np.ndarray], list[str]]  # ids -> texts
_MAX_BYTES = 2**24  # of a .json file of conditions


def requested(
    text: str,
    conditions: Conditions,
    num: int,
    tokenize: Tokenize | None = None,
    classes: Callable[[], Sequence[str]] = tuple,
) -> dict[str, np.ndarray] | None:
    """Parse the conditions of `num` samples. Fewer conditions are repeated; an empty text returns None.

    For class-conditional models `text` is class ids or names, "3" or "0,1,cat"; for text-conditional models it is
    captions, "a cat|a dog". A file *.txt has one class or caption per line. A file *.npz has an array [n, ...] under
    the name of each condition, see `Conditions`, or strings under "caption". A file *.json is a list of objects, one
    per sample, with the conditions by name: "caption" is a text, "image" and "control" are paths of image files, which
    are cropped to a square, resized, and scaled to [-1, 1]. The channels of several paths, such as ["photo.png",
    "mask.png"], are concatenated. Relative paths start from the folder of the file.

    `tokenize` maps captions to ids; by default the ids are the bytes of the text. `classes` gives the names of the
    classes in the order of their numbers. What consists of digits is a number, also where a class is called so.

    Raises:
        ValueError: the condition or file does not exist, or does not fit the model.
    """
    if not text:
        return None
    if not conditions.shapes:
        raise ValueError("the model is unconditional and has no guidance or editing with conditions; it must be empty")
    path, tokenize = pathlib.Path(text), tokenize or functools.partial(_byte_tokens, conditions=conditions)
    request = Request(path.parent, tokenize, functools.partial(_images, path.parent), classes)
    if path.suffix == ".npz":
        cond = _from_arrays(path, conditions, request)
    elif path.suffix == ".json":
        cond = _from_objects(path, conditions, request)
    elif path.suffix == ".txt":
        cond = _from_lines([line.strip() for line in _lines(path) if line.strip()], conditions, request)
    else:
        separator = next(iter(conditions.values())).separator
        parts = text.split(separator) if separator else [text]
        cond = _from_lines([part.strip() for part in parts], conditions, request)
    counts = {name: len(value) for name, value in cond.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"the conditions have {counts} rows; they need the same number, at least 1")
    conditions.check(cond)
    return cycled(cond, num)


def conditions(
    job: Job, num: int, directory: pathlib.Path | None = None, distinct: int = 0
) -> dict[str, np.ndarray] | None:
    """The conditions of `num` samples: from config.sampling.cond, or if that is empty from held-out examples.

    Of these there are `distinct`, by default as many as samples; the samples cycle through them. Measurements are made
    of the examples, each with its own noise.

    The names of classes are those of the run in `directory`, or of the data without it or if it has none yet.
    None for a system without conditions, for a class-conditional system, which cycles through the classes, and for
    "prior", samples without any condition. Images and masks of config.editing come before both. With editing, classes
    or captions in config.sampling.cond go with held-out images. config.sampling.samples_per_condition samples have the
    same conditions. Raises ConfigError.
    """
    text, files, each = (
        job.config.sampling.cond,
        job.built.parts.editing.files,
        job.config.sampling.samples_per_condition,
    )
    rows = -(-num // each)
    if files.get(NOISY) and job.config.data.get("log", False):
        raise ConfigError(
            f"config.editing.image={files[NOISY]!r} is read linearly, and config.data.log=True takes logarithms: give "
            "them as an array in an .npz file, config.sampling.cond"
        )
    own = edits.given(files, job.system.conditions, text)
    weights = edits.weights(job.system.conditions, each)
    needed = Conditions(
        {name: value for name, value in job.system.conditions.items() if name not in {**own, **weights}}
    )
    cond = _asked(job, needed, rows, directory, distinct)
    if own and cond is None and needed:
        raise ConfigError(f"config.sampling.cond is empty: {_wanted(needed)}")
    cond = {**(cond or {}), **cycled(own, rows)}
    repeated = {name: np.repeat(value, each, axis=0)[:num] for name, value in cond.items()}
    return {**repeated, **cycled(weights, num)} or None


def _asked(
    job: Job, needed: Conditions, num: int, directory: pathlib.Path | None, distinct: int
) -> dict[str, np.ndarray] | None:
    """The conditions of `num` samples that config.sampling.cond and held-out examples give, see `conditions`."""
    text, files = job.config.sampling.cond, job.built.parts.editing.files
    if text == "prior":
        if required := [name for name, condition in needed.items() if not condition.optional]:
            raise ConfigError(f"config.sampling.cond='prior': samples need the condition {', '.join(required)}")
        return None

    def names() -> Sequence[str]:
        saved = () if directory is None else workdir.read_classes(directory)
        return saved or job.source.facts.get("classes", ())

    asked, words = needed, {name: condition for name, condition in needed.items() if condition.separator}
    if files and text and words and pathlib.Path(text).suffix not in (".npz", ".json"):
        asked = Conditions(dict([next(iter(words.items()))]))
    with refusal(f"config.sampling.cond={text!r}"):
        cond = requested(text, asked, num, job.built.reading.tokenize, names)
    others = Conditions({name: condition for name, condition in needed.items() if name not in (cond or {})})
    sources = [name for name in others if name.startswith(SOURCE)]
    if sources and files.get("image"):
        raise ConfigError(
            f"config.editing.image={files['image']!r} is encoded under {', '.join(sources)}, its own; {_wanted(needed)}"
        )
    if others and (cond is not None or set(others.shapes) - {"label"}):
        try:
            examples = data.shuffled(job.held_out, distinct or num)
        except (ValueError, FileNotFoundError) as error:
            raise ConfigError(
                f"config.sampling.cond is empty: {_wanted(others)}. Held-out data has none: {error}"
            ) from error
        # Editing starts from the held-out images themselves, which are encoded under their own conditions, and leads
        # to the next ones. Measurements are made of them.
        own = {f"{SOURCE}{name}": value for name, value in examples.items()}
        own["other"] = np.roll(examples["x"], -1, axis=0)
        with refusal(f"config.sampling.cond={text!r}"):
            made = {name: c.operator.measure(examples["x"]) for name, c in others.items() if c.operator}
            found = cycled(others.of({"image": examples["x"], **own, **made, **examples}), num)
            others.check(found)
        cond = {**found, **(cond or {})}
    return cond


def compared(job: Job, cond: Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    """What a picture shows next to samples of measurements: "measured", as an image, and the "original" examples if
    the measurements are of held-out ones. Nothing for other samples."""
    starts = [name for name, c in job.system.conditions.items() if c.start]
    if starts and cond is not None:
        return _from_start(job, cond[starts[0]], job.system.conditions[starts[0]].start == "paired")
    modality = modalities.of(job.system.makes)
    paired = modality.compares or (modality.averaged and "image" in job.system.batch)  # the data holds the image
    if cond is not None and "image" in cond and paired:
        return {} if job.config.sampling.cond else {"original": _truth(job, len(cond["image"]))}
    operators = {name: c.operator for name, c in job.system.conditions.items() if c.operator}
    if not operators or cond is None:
        return {}
    name, operator = next(iter(operators.items()))
    seen = as_image(cond[name], operator)
    panels = {} if seen is None else {"measured": seen}
    if not job.config.sampling.cond and not job.built.parts.editing.files.get(name):
        panels["original"] = _truth(job, len(cond[name]))
    return panels


def _from_start(job: Job, start: np.ndarray, paired: bool) -> dict[str, np.ndarray]:
    """What a picture shows next to samples of pairs: where they start, at their size, and the held-out example."""
    *sides, channels = job.system.makes.shape
    for axis, side in enumerate(sides, 1):
        start = start.repeat(side // start.shape[axis], axis)
    panels = {"measured": start[..., :channels]}
    if paired and not job.config.sampling.cond:
        panels["original"] = _truth(job, len(start))
    return panels


def _truth(job: Job, num: int) -> np.ndarray:
    """The held-out examples that the conditions of `num` samples were taken from."""
    each = job.config.sampling.samples_per_condition
    rows = -(-num // each)
    truth = cycled({"x": data.shuffled(job.held_out, rows)["x"]}, rows)["x"]
    return np.repeat(truth, each, axis=0)[:num]


def _wanted(conditions: Conditions) -> str:
    """What config.sampling.cond may be."""
    (name, condition), *others = conditions.items()
    if others or not condition.separator:
        keys = ", ".join(condition.key or name for name, condition in conditions.items())
        return f"give {keys} of samples in a file, such as config.sampling.cond=FILE.json"
    kind = "prompts" if condition.key == "caption" else f"{name}s"
    return f"give {kind}, such as config.sampling.cond='one{condition.separator}another', or a file of them"


def cycled(cond: Mapping[str, np.ndarray], num: int) -> dict[str, np.ndarray]:
    """Returns `num` rows of `cond`, repeated if there are fewer."""
    return {name: value[np.arange(num) % len(value)] for name, value in cond.items()}


def captions(cond: Mapping[str, Any], conditions: Conditions, describe: Describe = texts_of) -> list[str] | None:
    """The text below each sample in a picture: its class, caption or another condition in words; None without one."""
    for name, condition in conditions.items():
        if name in cond and condition.words is not None:
            return condition.words(np.asarray(cond[name]), describe)
    return None


def recorded(cond: Mapping[str, Any], conditions: Conditions, describe: Describe = texts_of) -> dict[str, np.ndarray]:
    """Conditions as arrays of a file of samples: the first one is "cond", the others are "cond_<name>"."""
    arrays = {name: np.asarray(value) for name, value in cond.items()}
    for name in arrays.keys() & conditions.keys():
        if conditions[name].key and conditions[name].words is not None:
            arrays[name] = np.array(conditions[name].words(arrays[name], describe))
    first = next(iter(arrays), None)
    return {"cond" if name == first else f"cond_{name}": value for name, value in arrays.items()}


def _lines(path: pathlib.Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _from_lines(parts: list[str], conditions: Conditions, request: Request) -> dict[str, np.ndarray]:
    (name, condition), *others = conditions.items()
    if others or not condition.separator:
        raise ValueError(
            f"the model needs the conditions {', '.join(conditions)}; give them in a file *.npz, or *.json"
        )
    return {name: condition.read(request, parts, condition.spec)}


def _from_objects(path: pathlib.Path, conditions: Conditions, request: Request) -> dict[str, np.ndarray]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} must hold a list of objects, one for each sample")
    keys = {name: condition.key or name for name, condition in conditions.items()}
    for i, row in enumerate(rows):
        if row.keys() != set(keys.values()):
            raise ValueError(
                f"{path}: object {i} has {', '.join(row) or 'nothing'}; it needs {', '.join(keys.values())}"
            )
    return _read(path, {name: [row[key] for row in rows] for name, key in keys.items()}, conditions, request)


def _from_arrays(path: pathlib.Path, conditions: Conditions, request: Request) -> dict[str, np.ndarray]:
    keys = {name: condition.key for name, condition in conditions.items() if condition.key}
    try:
        arrays = archives.read_npz(path, {*conditions, *keys.values()})
    except Exception as error:  # a broken archive can raise from zipfile, zlib or the header parser
        raise ValueError(f"{path} cannot be read: {error}") from error
    arrays |= {name: arrays[key] for name, key in keys.items() if key in arrays}
    return _read(path, conditions.of(arrays), conditions, request)


def _read(
    path: pathlib.Path, values: Mapping[str, Any], conditions: Conditions, request: Request
) -> dict[str, np.ndarray]:
    cond = {}
    for name, condition in conditions.items():
        try:
            cond[name] = condition.read(request, values[name], condition.spec)
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from error
    return cond


def _images(folder: pathlib.Path, values: Any, shape: tuple[int, ...]) -> np.ndarray:
    if isinstance(values, np.ndarray):
        images.check_range(values)
        return images.in_unit_range(values).astype(np.float32)
    return np.stack([images.from_files(folder, value, shape) for value in values])


def _byte_tokens(texts: Sequence[str], conditions: Conditions) -> np.ndarray:
    if conditions.vocabulary < VOCABULARY:
        raise ValueError(
            f"captions need a vocabulary of {VOCABULARY}, the bytes and padding; it is {conditions.vocabulary}"
        )
    return tokens_of(texts, conditions.max_tokens, Cuts())
