"""The figures that config.evaluation.metrics names, as functions of samples and of the data's two splits."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.config.sections import ConfigError, lookup
from diffusion_jax.evaluation import density, features, retrieval, suite
from diffusion_jax.evaluation import feature_classifier as classifiers
from diffusion_jax.evaluation import metrics as evaluation

Metric = Callable[[dict[str, np.ndarray], data.Source, data.Source], dict[str, Any]]


def metrics(
    config: ConfigDict, source: data.Source, directory: pathlib.Path | None = None, *, levels: int = 256
) -> list[Metric]:
    """Functions (samples, training split, evaluation split) -> figures, named by config.evaluation.metrics.

    Statistics of the training split that take long are kept in `directory`. `levels` are those of the data. Raises
    ConfigError for a metric that the data or the config cannot give.
    """
    found = [lookup(METRICS, "evaluation.metrics", name) for name in config.evaluation.metrics]
    if found and config.data.name == "latents":
        raise ConfigError(
            f"config.evaluation.metrics={config.evaluation.metrics!r} are figures of images, which config.data.name="
            "'latents' has not: train with config.evaluation.metrics=(), and evaluate with the data set of the images"
        )
    images = len(source.shape) == 3
    if _classifier in found and not (images and source.num_classes):
        raise ConfigError("config.evaluation.metrics: 'classifier' needs images with labels; () asks for no metric")
    if _retrieval in found and not (images and "tokens" in source.batch(np.zeros(1, np.int64))):
        raise ConfigError(
            "config.evaluation.metrics: 'retrieval' needs images with captions that the network reads; () asks for no "
            "metric"
        )
    if _toy in found and images:
        raise ConfigError("config.evaluation.metrics: 'toy' needs points in the plane; () asks for no metric")
    found = [functools.partial(metric, levels=levels) if metric is _density_baseline else metric for metric in found]
    compared = tuple(name for name in config.evaluation.metrics if name in suite.METRICS)
    if not compared:
        return found

    @functools.cache
    def judge() -> classifiers.Classifier:
        examples = data.arrays(source)
        return classifiers.train_classifier(examples["x"], examples["label"], num_classes=source.num_classes)

    found = [metric for metric in found if metric not in suite.METRICS.values()]
    found = [functools.partial(_classifier, judge=judge) if metric is _classifier else metric for metric in found]
    return [*found, _compared(config, compared, source, judge, directory)]


def _compared(
    config: ConfigDict,
    names: tuple[str, ...],
    source: data.Source,
    judge: Callable[[], classifiers.Classifier],
    directory: pathlib.Path | None,
) -> Metric:
    """The figures of evaluation.suite, all from features that are computed once."""
    inception, reference = config.evaluation.inception, config.evaluation.reference
    if len(source.shape) != 3 or source.shape[-1] not in (1, 3):
        raise ConfigError(f"config.evaluation.metrics: {', '.join(names)} need images of 1 or 3 channels")
    if not inception and not source.num_classes:
        raise ConfigError(
            f"config.evaluation.metrics: {', '.join(names)} need config.evaluation.inception=FILE, the weights of "
            "FID's network, or a data set with labels, which a small classifier can be trained on"
        )
    try:
        suite.check_metrics(names, "" if inception else "classifier_", reference or source)
        extractor = features.inception(inception, resize=config.evaluation.resize) if inception else None
    except (ValueError, OSError) as error:
        raise ConfigError(f"config.evaluation (metrics, inception={inception!r}, {reference=}): {error}") from error
    cache = None
    if extractor and not reference and directory is not None:
        key = json.dumps([config.data.to_dict(), len(source), inception, pathlib.Path(inception).stat().st_size])
        cache = (directory / "statistics" / f"{extractor.name}.npz", key)

    def metric(drawn: dict[str, np.ndarray], train: data.Source, test: data.Source) -> dict[str, Any]:
        return suite.compare(
            np.clip(drawn["samples"], -1, 1),
            reference or train,
            features=extractor or features.classifier_features(judge()),
            metrics=names,
            train=train if reference else None,
            test=test,
            cache=cache,
        )

    return metric


def _classifier(
    drawn: dict[str, np.ndarray],
    train: data.Source,
    test: data.Source,
    judge: Callable[[], classifiers.Classifier] | None = None,
) -> dict[str, Any]:
    # Clipped as they are when saved.
    samples = np.clip(drawn["samples"], -1, 1)
    splits = (data.arrays(train), data.arrays(test))
    return evaluation.classifier_metrics(samples, *splits, judge=judge and judge(), labels=drawn.get("label"))


def _retrieval(drawn: dict[str, np.ndarray], train: data.Source, test: data.Source) -> dict[str, Any]:
    splits = (data.arrays(train), data.arrays(test))
    return retrieval.retrieval(np.clip(drawn["samples"], -1, 1), drawn["tokens"], splits[0], test=splits[1])


def _toy(drawn: dict[str, np.ndarray], train: data.Source, test: data.Source) -> dict[str, Any]:
    return evaluation.toy_metrics(drawn["samples"], data.arrays(test, 2 * len(drawn["samples"]))["x"])


def _density_baseline(
    drawn: dict[str, np.ndarray], train: data.Source, test: data.Source, levels: int = 256
) -> dict[str, Any]:
    # On the held-out examples that the likelihood of the model is evaluated on.
    x_test = data.shuffled(test, len(drawn["samples"]))["x"]
    return density.density_baseline(data.arrays(train)["x"], x_test, levels=levels)


METRICS = {
    "classifier": _classifier,
    "retrieval": _retrieval,
    "toy": _toy,
    "density_baseline": _density_baseline,
    **suite.METRICS,
}
