"""Images: saved as 8-bit values, drawn as a sheet, compared with the images of the training and the held-out split."""

from __future__ import annotations

import functools
import json
import math
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from diffusion_jax import data
from diffusion_jax.data.captions import texts_of
from diffusion_jax.evaluation import density, features, metrics, restoration, retrieval, sheets, suite, utility
from diffusion_jax.evaluation import feature_classifier as classifiers
from diffusion_jax.evaluation import translation as translations
from diffusion_jax.evaluation import transport as transports
from diffusion_jax.evaluation.reference import has_statistics
from diffusion_jax.modalities.base import Drawn, Evaluation, Metric, Modality, Views, Words, held_out, need, transport
from diffusion_jax.networks.lpips import lpips
from diffusion_jax.weights.lpips import load_lpips

_SHOWN = 256  # images on a sheet, at most
_IMAGES, _PER_IMAGE = 16, 8  # of them inpainted images, and samples of each


def picture(drawn: Drawn, words: Words, views: Views) -> UInt8[np.ndarray, "height width 3"] | None:
    """A sheet of the first 256 images with their words; original, measurement and sample next to each other.

    Of several samples of one image or measurement, one row for each: the original, what is given, its samples, their
    mean and their standard deviation. Of editing with a mask, one row per image: the image, what is known of it, its
    samples and their mean. Of interpolation, one row per pair: both images and the samples between them. None if a
    value is not finite.
    """
    samples = np.asarray(drawn["samples"])
    masked = "mask" in drawn and "measured" not in drawn
    if masked and np.shape(drawn.get("image")) == samples.shape and np.isfinite(samples).all():
        return _inpainted(samples, np.asarray(drawn["image"]), np.asarray(drawn["mask"]) >= 0)
    if "other" in drawn and np.shape(drawn.get("image")) == samples.shape and np.isfinite(samples).all():
        return _interpolated(samples, np.asarray(drawn["image"]), np.asarray(drawn["other"]))
    *beside, panel = panels = _panels(drawn)
    if beside and 1 < _length(*beside) <= len(panel) and np.isfinite(samples).all():
        return _translated(beside, panel)
    n = len(panels)
    images = np.stack(panels, axis=1).reshape(-1, *panels[0].shape[1:])[: _SHOWN // n * n]
    if not np.isfinite(images).all():
        return None
    columns = n * math.ceil(math.sqrt(len(images)) / n) if n > 1 else None
    labels = words and [word for word in words for _ in panels][: len(images)]
    return sheets.image_sheet(images, columns=columns, labels=labels)


def _panels(drawn: Drawn) -> list[np.ndarray]:
    """The original, what is given and the samples as pictures of as many channels; only those that there are."""
    given = "measured" if "measured" in drawn or "original" not in drawn else "image"
    found = [np.asarray(drawn[name]) for name in ("original", given, "samples") if name in drawn]
    shown = [sheets.as_colours(panel) for panel in found if panel.shape[1:3] == found[-1].shape[1:3]]
    channels = max(panel.shape[-1] for panel in shown)
    return [np.broadcast_to(panel, (*panel.shape[:3], channels)) for panel in shown]


def _translated(beside: list[np.ndarray], samples: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
    """Rows of original | given | samples | mean | standard deviation, for consecutive samples of one condition.

    Standard deviations are enlarged so that the largest is white.
    """
    each = _length(*beside)
    means, spreads = translations.mean_and_spread(samples, each)
    spreads = 2 * spreads / max(float(spreads.max()), 1e-6) - 1
    tiles: list[np.ndarray] = []
    for i, (mean, spread) in enumerate(zip(means[:_IMAGES], spreads[:_IMAGES], strict=True)):
        shown = samples[i * each : i * each + min(each, _PER_IMAGE)]
        tiles += [*(x[i * each] for x in beside), *shown, mean, spread]
    return sheets.image_sheet(np.stack(tiles), columns=len(tiles) // min(len(means), _IMAGES))


def _inpainted(samples: np.ndarray, image: np.ndarray, painted: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
    """Rows of truth | known | samples | mean, for consecutive samples of the same image; painted pixels are hatched."""
    each = _length(image, painted)
    shown, groups = min(each, _PER_IMAGE), min(math.ceil(len(samples) / each), _IMAGES)
    hatched = np.where(np.indices(painted.shape[1:3]).sum(0)[..., None] % 2 == 0, -0.25, 0.25)
    tiles = []
    for first in range(0, groups * each, each):
        group = samples[first : first + each]
        known = np.where(painted[first], hatched, image[first])
        row = [image[first], known, *group[:shown], *([group.mean(0)] if each > 1 else [])]
        tiles += row + [np.ones_like(image[0])] * (shown - len(group[:shown]))
    return sheets.image_sheet(np.stack(tiles), columns=2 + shown + (each > 1))


def _interpolated(samples: np.ndarray, image: np.ndarray, other: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
    """Rows of image | samples | other, for consecutive samples between the same two images."""
    each = _length(image, other)
    full = [first for first in range(0, len(samples) - each + 1, each)][:_IMAGES]
    rows = [np.stack([image[i], *samples[i : i + each], other[i]]) for i in full]
    return sheets.image_sheet(np.concatenate(rows), columns=each + 2)


def _length(*conditions: np.ndarray) -> int:
    """The number of samples at the beginning that have the same conditions."""
    same = [all((rows[i] == rows[0]).all() for rows in conditions) for i in range(len(conditions[0]))]
    return same.index(False) if False in same else len(same)


def files(path: pathlib.Path, drawn: Drawn, words: Words, views: Views) -> list[pathlib.Path]:
    """With the format "png" every sample as a file of its own in the folder `path`: 00000.png, 00001.png, ..."""
    if views.get("format") != "png":
        return []
    path.mkdir(parents=True, exist_ok=True)
    images = sheets.to_uint8(drawn["samples"])
    digits = max(5, len(str(len(images) - 1)))
    for i, image in enumerate(images):
        sheets.write_png(image[..., 0] if image.shape[-1] == 1 else image, path / f"{i:0{digits}}.png")
    return [path]


def _clipped(drawn: Drawn) -> np.ndarray:
    """Samples as they are when saved."""
    return np.clip(drawn["samples"], -1, 1)


def _both(evaluation: Evaluation) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    return data.arrays(evaluation.train), data.arrays(held_out(evaluation))


def _shared_classifier(evaluation: Evaluation) -> classifiers.Classifier:
    """A classifier that is trained on the training split, once for all metrics."""

    def train() -> classifiers.Classifier:
        examples = data.arrays(evaluation.train)
        return classifiers.train_classifier(examples["x"], examples["label"], num_classes=evaluation.train.num_classes)

    return evaluation.shared("classifier", train)


def _classifier(evaluation: Evaluation) -> Metric:
    need(evaluation, "image", "images")
    if not evaluation.train.num_classes:
        raise ValueError("it needs images with labels")

    def metric(drawn: Drawn) -> dict[str, Any]:
        trained = _shared_classifier(evaluation)
        return metrics.classifier_metrics(
            _clipped(drawn), *_both(evaluation), classifier=trained, labels=drawn.get("label")
        )

    return metric


def _retrieval(evaluation: Evaluation) -> Metric:
    need(evaluation, "image", "images")
    if "tokens" not in evaluation.train.entries:
        raise ValueError("it needs images with captions that the network reads")

    def metric(drawn: Drawn) -> dict[str, Any]:
        train, test = _both(evaluation)
        return retrieval.retrieval(_clipped(drawn), drawn["tokens"], train, test=test)

    return metric


def _restoration(evaluation: Evaluation) -> Metric:
    need(evaluation, "image", "images")
    operators = {name: c.operator for name, c in evaluation.conditions.items() if c.operator}
    if len(operators) != 1:
        names = "config.guidance.name='measurement' or config.editing.name='denoising'"
        raise ValueError(f"it needs one of {names}, whose samples have a truth to be compared with")
    num, each = (evaluation.options.get(name, 1) for name in ("num_samples", "samples_per_condition"))
    if each < 1 or num % each:
        raise ValueError(f"evaluation.samples_per_condition={each} must divide evaluation.num_samples={num}")
    ((name, operator),), perceptual = operators.items(), _perceptual(evaluation)

    def metric(drawn: Drawn) -> dict[str, Any]:
        truth = data.shuffled(held_out(evaluation), max(len(drawn["samples"]) // each, 1))["x"]
        measurement = drawn[name][: len(truth)]
        if not np.allclose(operator.measure(truth), measurement, atol=1e-4):
            raise ValueError("the measurements are not those of held-out examples: leave config.sampling.cond empty")
        train = data.arrays(evaluation.train)["x"]
        return restoration.restoration(np.asarray(drawn["samples"]), truth, measurement, operator, train, perceptual)

    return metric


def _perceptual(evaluation: Evaluation) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
    """LPIPS with the weights in evaluation.vgg and evaluation.lpips; None without these."""
    vgg, lin = (evaluation.options.get(name, "") for name in ("vgg", "lpips"))
    if not (vgg or lin):
        return None
    if not (vgg and lin):
        raise ValueError(f"evaluation.vgg={vgg!r} and evaluation.lpips={lin!r} must both be files, or both be empty")
    distance = jax.jit(lpips(evaluation.makes.shape)[1])
    try:
        params = load_lpips(vgg, lin)
    except OSError as error:
        raise ValueError(f"evaluation.vgg={vgg!r} and evaluation.lpips={lin!r} cannot be read: {error}") from error
    return lambda x, y: np.asarray(distance(params, x, y))


def _pairs(evaluation: Evaluation) -> Metric:
    need(evaluation, "image", "images")
    if not any(condition.start == "paired" for condition in evaluation.conditions.values()):
        names = "config.system.name='bridge', 'super_resolution' or 'palette'"
        raise ValueError(f"it needs {names}, whose samples belong to pairs")
    pairs_of = _held_out_pairs(evaluation)

    def metric(drawn: Drawn) -> dict[str, Any]:
        pairs = pairs_of(drawn)
        start = pairs["image"][..., : pairs["x"].shape[-1]]
        return transports.paired(_clipped(drawn), start, pairs["x"])

    return metric


def _translation(evaluation: Evaluation) -> Metric:
    need(evaluation, "image", "images")
    if "image" not in evaluation.conditions or "image" not in evaluation.train.entries:
        raise ValueError("it needs a network with the condition 'image', and data with pairs of images")
    pairs_of, train = _held_out_pairs(evaluation), evaluation.train

    def metric(drawn: Drawn) -> dict[str, Any]:
        pairs, known = pairs_of(drawn), data.arrays(train)
        return translations.translation(_clipped(drawn), pairs["x"], pairs["image"], known["x"], known["image"])

    return metric


def _utility(evaluation: Evaluation) -> Metric:
    need(evaluation, "image", "images")
    if not evaluation.train.num_classes or "label" not in evaluation.conditions:
        raise ValueError("it needs a class-conditional model, and images with labels")

    def metric(drawn: Drawn) -> dict[str, Any]:
        return utility.utility(_clipped(drawn), np.asarray(drawn["label"]), *_both(evaluation))

    return metric


def _tasks(evaluation: Evaluation) -> Metric:
    need(evaluation, "image", "images")
    if not {"mask", "task"} <= evaluation.conditions.keys():
        raise ValueError("it needs config.system.name='palette', whose samples belong to tasks")
    pairs_of, words = _held_out_pairs(evaluation), evaluation.conditions["task"].words

    def metric(drawn: Drawn) -> dict[str, Any]:
        pairs = pairs_of(drawn)
        unknown, tasks = pairs["mask"] >= 0, words(np.asarray(pairs["task"]), texts_of)
        return restoration.by_task(_clipped(drawn), pairs["x"], pairs["image"], unknown, tasks)

    return metric


def _held_out_pairs(evaluation: Evaluation) -> Callable[[Drawn], dict[str, np.ndarray]]:
    """A function from samples to the held-out pairs that they start from. ValueError: they do not, or not all."""
    num, each = (evaluation.options.get(name, 1) for name in ("num_samples", "samples_per_condition"))
    if each < 1 or num % each:
        raise ValueError(f"evaluation.samples_per_condition={each} must divide evaluation.num_samples={num}")

    def pairs_of(drawn: Drawn) -> dict[str, np.ndarray]:
        pairs = data.shuffled(held_out(evaluation), max(len(drawn["samples"]) // each, 1))
        if not np.allclose(pairs["image"], drawn["image"][: len(pairs["x"])], atol=1e-4):
            raise ValueError("the samples do not start from held-out examples: leave config.sampling.cond empty")
        return pairs

    return pairs_of


def _density_baseline(evaluation: Evaluation) -> Metric:
    need(evaluation, "image", "images")
    levels = evaluation.options.get("levels", evaluation.train.facts.get("levels", 256))

    def metric(drawn: Drawn) -> dict[str, Any]:
        # On the held-out examples that the likelihood of the model is evaluated on.
        x_test = data.shuffled(held_out(evaluation), len(drawn["samples"]))["x"]
        return density.density_baseline(data.arrays(evaluation.train)["x"], x_test, levels=levels)

    return metric


def _of_suite(evaluation: Evaluation, name: str) -> Metric:
    """One of `suite.METRICS`. All of them that were asked for are computed together, from the same features."""
    need(evaluation, "image", "images")
    inception, reference = evaluation.options.get("inception", ""), evaluation.options.get("reference", "")
    if evaluation.train.shape[-1] not in (1, 3):
        raise ValueError(f"it needs images of 1 or 3 channels, got {evaluation.train.shape}")
    if not inception and not evaluation.train.num_classes:
        raise ValueError(
            "it needs evaluation.inception=FILE, the weights of FID's Inception network, or a data set with labels, "
            "which a small classifier can be trained on"
        )
    suite.check_metrics((name,), "" if inception else "classifier_", reference or evaluation.train)
    return evaluation.shared("suite", lambda: _suite(evaluation, inception, reference))


def fingerprint(source: data.Source) -> int:
    """A number that changes with the images of a data set: the checksum of 64 of them, or of all."""
    chosen = np.unique(np.linspace(0, len(source) - 1, 64).astype(np.int64))
    return zlib.crc32(np.ascontiguousarray(source.batch(chosen)["x"]).tobytes())


def _opened(reference: str, channels: int) -> features.ImageSet:
    """The images in evaluation.reference, opened so that a fault is found now; a path if it has statistics."""
    return reference if has_statistics(reference) else features.image_source(reference, channels)


def _suite(evaluation: Evaluation, inception: str, reference: str) -> Metric:
    other = _opened(reference, 3 if inception else evaluation.train.shape[-1]) if reference else None
    extractor = features.inception(inception, resize=evaluation.options["resize"]) if inception else None
    names = tuple(name for name in evaluation.options["metrics"] if name in suite.METRICS)
    train = evaluation.train
    last: list[tuple[Drawn, dict[str, Any]]] = []

    def metric(drawn: Drawn) -> dict[str, Any]:
        if not last or last[0][0] is not drawn:
            cache = None
            if extractor and not reference and evaluation.cache is not None:
                weights = [inception, pathlib.Path(inception).stat().st_size]
                key = json.dumps([dict(evaluation.data), len(train), fingerprint(train), *weights])
                cache = (evaluation.cache / f"{extractor.name}.npz", key)
            results = suite.compare(
                sheets.to_uint8(drawn["samples"]),
                train if other is None else other,
                features=extractor or features.classifier_features(_shared_classifier(evaluation)),
                metrics=names,
                train=None if other is None else train,
                test=held_out(evaluation),
                cache=cache,
            )
            last[:] = [(drawn, results)]
        return last[0][1]

    return metric


IMAGE = Modality(
    stored=sheets.to_uint8,
    picture=picture,
    files=files,
    formats=("png",),
    shown=_SHOWN,
    averaged=True,
    metrics={
        "classifier": _classifier,
        "retrieval": _retrieval,
        "density_baseline": _density_baseline,
        "restoration": _restoration,
        "pairs": _pairs,
        "tasks": _tasks,
        "translation": _translation,
        "utility": _utility,
        "transport": transport,
        **{name: functools.partial(_of_suite, name=name) for name in suite.METRICS},
    },
    usual=("classifier", "pairs", "tasks"),
)
