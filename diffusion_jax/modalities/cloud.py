"""Point clouds: saved as .ply files, drawn as turntables, compared with held-out clouds and completions."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from diffusion_jax import data
from diffusion_jax.data import ply
from diffusion_jax.evaluation import clouds, turntables
from diffusion_jax.modalities.base import Drawn, Evaluation, Metric, MetricMaker, Modality, Views, Words, held_out, need

_SHOWN = 12  # clouds in a picture
_KNOWN = "known"  # condition: the points that are given, NaN for the others


def stored(samples: np.ndarray) -> Float32[np.ndarray, "n points 3"]:
    """Samples as float32. Raises ValueError for values that are not finite."""
    samples = np.asarray(samples, np.float32)
    if not np.isfinite(samples).all():
        raise ValueError("point clouds must be finite, got NaN or infinity")
    return samples


def picture(drawn: Drawn, words: Words, views: Views) -> UInt8[np.ndarray, "height width 3"] | None:
    """Turntables of the first 12 clouds with their words; given points of completions are orange, the truth follows.

    None for samples that are not finite.
    """
    samples = np.asarray(drawn["samples"])
    if not np.isfinite(samples).all():
        return None
    if _KNOWN not in drawn:
        labels = words and words[:_SHOWN]
        return turntables.turntable(samples[:_SHOWN], labels=labels, up=views.get("up", 1))
    panels = [samples, *([np.asarray(drawn["original"])] if "original" in drawn else [])]
    given = np.isfinite(np.asarray(drawn[_KNOWN])).all(-1)
    number = max(_SHOWN // len(panels), 1)
    rows = np.stack([panel[:number] for panel in panels], 1).reshape(-1, *samples.shape[1:])
    marks = np.repeat(given[:number], len(panels), 0)
    return turntables.turntable(rows, known=marks, up=views.get("up", 1))


def files(path: pathlib.Path, drawn: Drawn, words: Words, views: Views) -> list[pathlib.Path]:
    """With the format "ply" one file of each cloud, in the folder `path`."""
    samples = np.asarray(drawn["samples"])
    if views.get("format") != "ply" or not np.isfinite(samples).all():
        return []
    digits = max(5, len(str(len(samples) - 1)))
    for i, cloud in enumerate(samples):
        ply.write(path / f"{i:0{digits}}.ply", cloud)
    return [path]


def _generation(kind: clouds.Kind) -> MetricMaker:
    """1-NNA, MMD and COV by one distance, next to those of training clouds."""

    def make(evaluation: Evaluation) -> Metric:
        need(evaluation, "cloud", "point clouds")
        if _KNOWN in evaluation.conditions:
            raise ValueError("samples are completions of held-out clouds, which 'completion' compares with the truth")

        def metric(drawn: Drawn) -> dict[str, Any]:
            samples = stored(drawn["samples"])
            return clouds.generation(samples, *_compared(evaluation, len(samples)), kind)

        return metric

    return make


def _memorisation(evaluation: Evaluation) -> Metric:
    """Distances to the nearest training cloud, and the divergence of densities from that of held-out clouds."""
    need(evaluation, "cloud", "point clouds")
    if _KNOWN in evaluation.conditions:
        raise ValueError("samples are completions of held-out clouds, which 'completion' compares with the truth")

    def metric(drawn: Drawn) -> dict[str, Any]:
        samples = stored(drawn["samples"])
        references, train = _compared(evaluation, len(samples))
        everything = data.arrays(evaluation.train)["x"]
        values = clouds.memorisation(samples, references, everything)
        values["jsd"] = clouds.jensen_shannon_divergence(samples, references)
        values["jsd_train"] = clouds.jensen_shannon_divergence(train, references)
        return values

    return metric


def _compared(evaluation: Evaluation, num: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `num` held-out and training clouds."""
    references, train = (data.shuffled(source, num)["x"] for source in (held_out(evaluation), evaluation.train))
    return references, train


def _completion(evaluation: Evaluation) -> Metric:
    """Chamfer distances of completions of held-out clouds to the truth, next to retrieval and a mirror image."""
    need(evaluation, "cloud", "point clouds")
    condition = evaluation.conditions.get(_KNOWN)
    if condition is None:
        raise ValueError("it needs samples under known points, those of config.system.name='cloud_completion'")

    def metric(drawn: Drawn) -> dict[str, Any]:
        samples, known = stored(drawn["samples"]), np.asarray(drawn[_KNOWN])
        truth = data.shuffled(held_out(evaluation), len(samples))["x"]
        # Samples cycle through as many held-out clouds as there are for config.evaluation.samples_per_condition.
        measured = condition.operator.measure(truth)
        order = {row.tobytes(): i for i, row in enumerate(measured)}
        places = [order.get(row.tobytes()) for row in known]
        if None in places:
            raise ValueError("the given points are not those of held-out clouds: leave config.sampling.cond empty")
        return clouds.completion(samples, truth[places], known, data.arrays(evaluation.train)["x"])

    return metric


CLOUD = Modality(
    stored=stored,
    picture=picture,
    files=files,
    formats=("ply",),
    shown=_SHOWN,
    metrics={
        "chamfer": _generation(clouds.CD),
        "earth_mover": _generation(clouds.EMD),
        "nearest_train": _memorisation,
        "completion": _completion,
    },
    usual=("chamfer", "nearest_train", "completion"),
)
