"""The contract of a modality: how samples of one kind of data are saved, drawn and evaluated."""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, UInt8

from diffusion_jax import data
from diffusion_jax.data import Source
from diffusion_jax.evaluation import transport as transports
from diffusion_jax.types import Spec

AUTO = "auto"
Drawn = Mapping[str, np.ndarray]  # "samples" [n, ...], their conditions by name, "original" of reconstructions
Words = Sequence[str] | None  # what is written with each sample: its class or caption
Views = Mapping[str, Any]  # what a picture or file needs beyond the samples: facts of the data, functions of the model
Metric = Callable[[Drawn], dict[str, Any]]  # samples -> metrics by name


def shared() -> Callable[[str, Callable[[], Any]], Any]:
    """A function (name, make) -> `make()`, called once for each name."""
    made: dict[str, Any] = {}

    def once(name: str, make: Callable[[], Any]) -> Any:
        if name not in made:
            made[name] = make()
        return made[name]

    return once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What metrics may be computed from.

    Attributes:
        options: the keys of config.evaluation, and "levels", the number of grey levels that likelihoods count (0 for
            continuous data; by default those of the training split).
        train, test: the training split and the held-out split; the latter may be None where metrics are only made to
            see whether they can be given.
        makes: the spec of one sample.
        data: what the training split depends on, config.data: statistics that are kept on disk are those of this.
        conditions: those of the samples, by name.
        cache: folder where statistics of the training split are kept; None to keep none.
        shared: (name, make) -> `make()`, called once for each name; metrics share networks and features by it.
    """

    options: Mapping[str, Any]
    train: Source
    test: Source | None
    makes: Spec
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    conditions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cache: pathlib.Path | None = None
    shared: Callable[[str, Callable[[], Any]], Any] = dataclasses.field(default_factory=shared)


MetricMaker = Callable[[Evaluation], Metric]  # ValueError: the data or the options cannot give it


def as_it_is(samples: np.ndarray | Array) -> np.ndarray:
    """The `Modality.stored` of samples that are saved without conversion."""
    return np.asarray(samples)


def no_picture(drawn: Drawn, words: Words, views: Views) -> None:
    """The `Modality.picture` of data that nothing can be drawn of."""
    return None


def no_files(path: pathlib.Path, drawn: Drawn, words: Words, views: Views) -> list[pathlib.Path]:
    """The `Modality.files` of data that is saved as an .npz file only."""
    return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Modality:
    """One kind of data. The defaults are those of plain arrays, of which nothing more is known.

    Attributes:
        stored: samples -> the array "samples" of a file of them. Raises ValueError for samples that it cannot hold.
        picture: (drawn, words, views) -> a picture of the samples [height, width, 3], or None where there is none.
        files: (path without suffix, drawn, words, views) -> the paths of further files or folders that it wrote, such
            as .wav. views["format"] is one of `formats`, or "".
        formats: formats in which `files` writes every sample as a file of its own, if asked to.
        shown: number of samples in a picture, at most; 0: all.
        compares: whether a picture shows the examples that the condition "image" of samples belongs to, the entry
            "original".
        averaged: whether the mean and the standard deviation of several samples of one condition have a meaning, which
            are then saved with them.
        views: names of functions of the model that `picture` and `files` show, such as the "score" of points.
        metrics: makers of metrics by name.
        usual: the metrics that "auto" means, as far as the data and the options can give them.
    """

    stored: Callable[[np.ndarray | Array], np.ndarray] = as_it_is
    picture: Callable[[Drawn, Words, Views], UInt8[np.ndarray, "height width 3"] | None] = no_picture
    files: Callable[[pathlib.Path, Drawn, Words, Views], list[pathlib.Path]] = no_files
    formats: tuple[str, ...] = ()
    shown: int = 0
    compares: bool = False
    averaged: bool = False
    views: tuple[str, ...] = ()
    metrics: Mapping[str, MetricMaker] = dataclasses.field(default_factory=dict)
    usual: tuple[str, ...] = ()


def metrics(modality: Modality, evaluation: Evaluation) -> list[Metric]:
    """The metrics that the option "metrics" names, in their order; "auto" means the usual ones.

    Raises:
        ValueError: "evaluation.metrics=NAME: ...", for a name that the modality does not have, or a metric that the
            data or the options cannot give.
    """
    made = []
    for name in evaluation.options.get("metrics", (AUTO,)):
        if name == AUTO:
            made += _usual(modality, evaluation)
            continue
        if name not in modality.metrics:
            close = difflib.get_close_matches(name, modality.metrics, 1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(
                f"evaluation.metrics={name!r} is unknown for data of modality {evaluation.makes.modality!r}{hint}; "
                f"choose among {', '.join((AUTO, *modality.metrics))}"
            )
        try:
            made.append(modality.metrics[name](evaluation))
        except (ValueError, OSError) as error:
            raise ValueError(f"evaluation.metrics={name!r}: {error}; () asks for no metric") from error
    return made


def _usual(modality: Modality, evaluation: Evaluation) -> list[Metric]:
    made = []
    for name in modality.usual:
        try:
            made.append(modality.metrics[name](evaluation))
        except ValueError:  # such as a classifier of images without labels
            continue
    return made


def need(evaluation: Evaluation, modality: str, what: str) -> None:
    """Raises ValueError unless the training split is of `modality`, which the samples are compared with as `what`."""
    present = evaluation.train.entries["x"].modality
    if present != modality:
        raise ValueError(
            f"it compares samples with {what}, and the training split has data of modality {present!r}; train with "
            f"evaluation.metrics=() and evaluate with a data set of {what}"
        )


def transport(evaluation: Evaluation) -> Metric:
    """The metric "transport" of samples that start from another set, see `evaluation.transport`."""
    starts = [name for name, condition in evaluation.conditions.items() if condition.start]
    if not starts:
        raise ValueError("it needs samples that start from examples of another set, as those of a bridge do")
    if starts != ["image"]:
        raise ValueError("samples of config.system.direction='forward' are of the second set; sample 'backward'")

    def metric(drawn: Drawn) -> dict[str, Any]:
        num = len(drawn["samples"])
        start = np.asarray(drawn["image"])[..., : drawn["samples"].shape[-1]]
        test, train = (data.shuffled(source, num)["x"] for source in (held_out(evaluation), evaluation.train))
        return transports.transport(np.asarray(drawn["samples"]), start, test, train)

    return metric


def held_out(evaluation: Evaluation) -> Source:
    """The held-out split. Raises ValueError where the metrics were made without it."""
    if evaluation.test is None:
        raise ValueError("there is no held-out split to compare with")
    return evaluation.test


PLAIN = Modality(metrics={"transport": transport}, usual=("transport",))
