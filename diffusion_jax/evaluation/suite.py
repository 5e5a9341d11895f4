"""Metrics that compare a set of images with a reference set, from features that are computed once."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from diffusion_jax import data
from diffusion_jax.data.images import SeveralSizes
from diffusion_jax.evaluation.features import Extractor, Features, ImageSet, collect, image_source, read_uint8
from diffusion_jax.evaluation.frechet import frechet_distance
from diffusion_jax.evaluation.metrics import MAX_DISTANCE_COST
from diffusion_jax.evaluation.neighbours import (
    closer_probability,
    density_coverage,
    nearest_distances,
    precision_recall,
)
from diffusion_jax.evaluation.reference import (
    Statistics,
    cached_statistics,
    has_images,
    has_statistics,
    read_statistics,
    statistics_of,
)
from diffusion_jax.evaluation.scores import inception_score, kernel_distance

USUAL_SAMPLES = 50_000  # that published Frechet distances are computed from
KEEP = 50_000  # activations kept of a larger set
_NEEDS_INCEPTION = ("fid", "sfid")
_NEEDS_IMAGES = ("kid", "precision_recall", "density_coverage")


class Compared(NamedTuple):
    """What a metric may be computed from."""

    prefix: str
    samples: Features
    statistics: Statistics | None
    reference: Features | None
    train: Features | None
    test: Features | None
    neighbours: int
    seed: int


def compare(
    samples: ImageSet,
    reference: ImageSet | Statistics | None,
    *,
    features: Extractor,
    metrics: Sequence[str] = ("fid",),
    train: ImageSet | None = None,
    test: ImageSet | None = None,
    batch_size: int = 64,
    neighbours: int = 10_000,
    seed: int = 0,
    cache: tuple[str | os.PathLike, str] | None = None,
) -> dict[str, float | int]:
    """Metrics of `samples` against `reference`, both of which may come from any model.

    Args:
      samples: images; see `features.image_source`.
      reference: images, statistics, or the path of a file of them; the training set as a rule. None will do for the
        Inception Score.
      features: from `features.inception` or `features.classifier_features`.
      metrics: names in `METRICS`: "fid", "sfid", "kid", "inception_score", "precision_recall", "density_coverage",
        "memorization".
      train: the training set, in which memorised images are searched for; by default the reference.
      test: real images that the generator has not seen; at most as many as there are samples are used, and every
        metric of them is given as `<name>_real`.
      batch_size: images that go through the network at once, over all devices.
      neighbours: examples of each set that precision, recall, density and coverage are computed from, at most.
      seed: of subsets and of the order in the Inception Score.
      cache: a file for the statistics of `reference`, and a key of all that they depend on.

    Returns:
      The metrics, and for each of them the number of samples it used as `<name>_num`. With an Inception network these
      are `fid`, `sfid`, `kid` and `kid_std`, `inception_score` and `inception_score_std`, `precision`, `recall`,
      `density`, `coverage`, `memorization_distance`, `memorization_probability`; with a classifier their names begin
      with "classifier_". `num_samples`, `num_reference` and `num_real` count the sets, and `num_reference_images` the
      images that a file of statistics keeps, if they are fewer than those behind the statistics. See docs/metrics.md.

    Raises:
      ValueError: an unknown metric, one that the features or the reference cannot give, images that do not fit,
        or statistics of other features.
    """
    check_metrics(metrics, features.prefix, reference)
    sample_source = image_source(samples, features.takes.shape[-1])
    statistics, source = _reference(reference, features)
    train_source = source if train is None else image_source(train, features.takes.shape[-1])
    needs_images = any(name in _NEEDS_IMAGES for name in metrics)
    needs_moments = any(name in _NEEDS_INCEPTION for name in metrics)
    if "memorization" in metrics and train_source is None:
        raise ValueError("memorization needs the training images")
    collected = None

    def features_of(source: data.Source, *, most: int | None = None, spatial: bool = "sfid" in metrics) -> Features:
        source = source if most is None else _subset(source, most, seed)
        return collect(features, source, batch_size=batch_size, keep=KEEP, spatial=spatial, seed=seed)

    if needs_moments and statistics is None:

        def compute() -> Statistics:
            nonlocal collected
            # A cached file must serve later runs that ask for other metrics.
            collected = features_of(source, spatial=cache is not None or "sfid" in metrics)
            return statistics_of(collected)

        statistics = compute() if cache is None else cached_statistics(*cache, compute)
    if needs_moments:
        _check_statistics(statistics, features, "sfid" in metrics)
    remembers = "memorization" in metrics
    if collected is None and (needs_images or (remembers and train is None)):
        collected = features_of(source, most=KEEP)
    test_source = None
    if test is not None:
        test_source = _subset(image_source(test, features.takes.shape[-1]), len(sample_source), seed)
    sets = Compared(
        prefix=features.prefix,
        samples=features_of(sample_source),
        statistics=statistics,
        reference=collected,
        train=features_of(train_source, most=KEEP) if remembers and train is not None else collected,
        test=None if test_source is None else features_of(test_source),
        neighbours=neighbours,
        seed=seed,
    )
    results: dict[str, float | int] = {"num_samples": len(sample_source), **_num_reference(sets, source)}
    results |= {} if test_source is None else {"num_real": len(test_source)}
    for name in metrics:
        results |= METRICS[name](sets)
    if remembers:
        results |= _pixel_distances(sample_source, train_source, test_source)
    return results


def check_metrics(metrics: Sequence[str], prefix: str, reference: ImageSet | Statistics | None) -> None:
    """Raises ValueError for metrics that do not exist, or that features of this prefix or the reference cannot give.

    Nothing but the list of what an .npz file holds is read.
    """
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f"metric {name!r} is unknown; choose among {', '.join(METRICS)}")
        if prefix and name in _NEEDS_INCEPTION:
            raise ValueError(
                f"{name!r} needs the weights of FID's Inception network (pt_inception-2015-12-05-6726825d.pth of "
                "pytorch-fid); a distance between features of another network is not FID"
            )
    path = isinstance(reference, (str, os.PathLike))
    if path and not pathlib.Path(reference).expanduser().exists():
        raise ValueError(f"{reference} does not exist")
    alone = isinstance(reference, Statistics) or (path and has_statistics(reference) and not has_images(reference))
    for name in metrics:
        if name in _NEEDS_IMAGES and (alone or reference is None):
            there = "its statistics alone" if alone else "none"
            raise ValueError(f"{name!r} needs images of the reference, not {there}")
        if name in _NEEDS_INCEPTION and reference is None:
            raise ValueError(f"{name!r} needs a reference: images, or a file of their statistics")


def _reference(
    reference: ImageSet | Statistics | None, features: Extractor
) -> tuple[Statistics | None, data.Source | None]:
    if reference is None or isinstance(reference, Statistics):
        return reference, None
    if isinstance(reference, (str, os.PathLike)) and has_statistics(reference):
        images = image_source(reference, features.takes.shape[-1]) if has_images(reference) else None
        return read_statistics(reference), images
    return None, image_source(reference, features.takes.shape[-1])


def _num_reference(sets: Compared, source: data.Source | None) -> dict[str, int]:
    """The size of the reference: of the set behind its statistics, and of the images kept of it if these are fewer.

    Nothing where a file of statistics does not say.
    """
    images = {} if source is None else {"num_reference": len(source)}
    if sets.statistics is None:
        return images
    num = {} if sets.statistics.num is None else {"num_reference": sets.statistics.num}
    kept = images and sets.reference is not None and images != num
    return num | ({"num_reference_images": images["num_reference"]} if kept else {})


def _check_statistics(statistics: Statistics, features: Extractor, spatial: bool) -> None:
    if statistics.extractor not in (None, features.name):
        raise ValueError(
            f"the statistics of the reference are of {statistics.extractor!r}, those of the samples of "
            f"{features.name!r}; use the same network and resize"
        )
    if statistics.mu.size != features.num_features:
        raise ValueError(
            f"the statistics of the reference have {statistics.mu.size} dimensions, not {features.num_features}"
        )
    if spatial and statistics.mu_s is None:
        raise ValueError("sfid needs mu_s and sigma_s, which the statistics of the reference do not have")


def _subset(source: data.Source, most: int, seed: int) -> data.Source:
    """At most `most` of the images, chosen at random, in order."""
    if len(source) <= most:
        return source
    chosen = np.sort(np.random.default_rng(seed).permutation(len(source))[:most])
    return dataclasses.replace(source, read=lambda indices: source.read(chosen[indices]), size=most, groups=None)


def _metrics(
    sets: Compared, compute: Callable[[Features], dict[str, float]], num: Callable[[Features], int]
) -> dict[str, float | int]:
    """What `compute` gives for the samples and, with "_real" behind the names, for test images."""
    results = {sets.prefix + name: value for name, value in compute(sets.samples).items()}
    for name in list(results):
        if not name.endswith("_std"):
            results[f"{name}_num"] = num(sets.samples)
    if sets.test is not None:
        for name, value in compute(sets.test).items():
            if not name.endswith("_std"):
                results[f"{sets.prefix}{name}_real"] = value
    return results


def _fid(sets: Compared) -> dict[str, float | int]:
    _warn_of_bias("fid", sets)

    def compute(features: Features) -> dict[str, float]:
        own = statistics_of(features)
        return {"fid": frechet_distance(own.mu, own.sigma, sets.statistics.mu, sets.statistics.sigma)}

    return _metrics(sets, compute, lambda features: features.num)


def _sfid(sets: Compared) -> dict[str, float | int]:
    _warn_of_bias("sfid", sets)

    def compute(features: Features) -> dict[str, float]:
        own = statistics_of(features)
        return {"sfid": frechet_distance(own.mu_s, own.sigma_s, sets.statistics.mu_s, sets.statistics.sigma_s)}

    return _metrics(sets, compute, lambda features: features.num)


def _warn_of_bias(name: str, sets: Compared) -> None:
    if sets.samples.num < USUAL_SAMPLES:
        warnings.warn(
            f"{name} of {sets.samples.num:,} samples is biased upwards; published values use {USUAL_SAMPLES:,}",
            stacklevel=4,
        )


def _kid(sets: Compared) -> dict[str, float | int]:
    def compute(features: Features) -> dict[str, float]:
        distance = kernel_distance(features.features, sets.reference.features, seed=sets.seed)
        return {"kid": distance.mean, "kid_std": distance.std}

    return _metrics(sets, compute, lambda features: len(features.features))


def _inception_score(sets: Compared) -> dict[str, float | int]:
    name = "score" if sets.prefix else "inception_score"

    def compute(features: Features) -> dict[str, float]:
        score = inception_score(features.logits, seed=sets.seed)
        return {name: score.mean, f"{name}_std": score.std}

    return _metrics(sets, compute, lambda features: len(features.logits))


def _manifold(metric: Callable, sets: Compared) -> dict[str, float | int]:
    def some(features: Features) -> np.ndarray:
        # Not the first ones: files are often sorted by class.
        return np.random.default_rng(sets.seed).permutation(features.features)[: sets.neighbours]

    real = some(sets.reference)

    def compute(features: Features) -> dict[str, float]:
        return metric(real, some(features))._asdict()

    return _metrics(sets, compute, lambda features: min(len(features.features), sets.neighbours))


def _memorization(sets: Compared) -> dict[str, float | int]:
    train = sets.train.features
    distances = nearest_distances(sets.samples.features, train)
    results = {"memorization_distance": float(distances.mean()), "memorization_distance_num": len(distances)}
    if sets.test is not None:
        real = nearest_distances(sets.test.features, train)
        results |= {
            "memorization_distance_real": float(real.mean()),
            "memorization_probability": closer_probability(distances, real),
            "memorization_probability_num": len(distances),
        }
    return {sets.prefix + name: value for name, value in results.items()}


def _pixel_distances(samples: data.Source, train: data.Source, test: data.Source | None) -> dict[str, float | int]:
    """Root-mean-square distances per pixel to the nearest training image, where that does not take long."""
    sources = [source for source in (samples, test) if source is not None and source.shape == train.shape]
    if samples not in sources or sum(map(len, sources)) * len(train) * np.prod(train.shape) > MAX_DISTANCE_COST:
        return {}

    def pixels(source: data.Source) -> np.ndarray:
        return read_uint8(source, np.arange(len(source))).astype(np.float32) / 127.5 - 1

    try:
        images, others = pixels(train), [pixels(source) for source in sources]
    except SeveralSizes:
        return {}
    results: dict[str, float | int] = {}
    for suffix, other in zip(("", "_real"), others, strict=False):
        distances = nearest_distances(other, images)
        results[f"nearest_train_distance{suffix}"] = float(distances.mean())
        results[f"nearest_train_minimum{suffix}"] = float(distances.min())
    return results | {"nearest_train_distance_num": len(samples)}


METRICS: dict[str, Callable[[Compared], dict[str, float | int]]] = {
    "fid": _fid,
    "sfid": _sfid,
    "kid": _kid,
    "inception_score": _inception_score,
    "precision_recall": lambda sets: _manifold(precision_recall, sets),
    "density_coverage": lambda sets: _manifold(density_coverage, sets),
    "memorization": _memorization,
}
