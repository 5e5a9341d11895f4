"""Metrics of images by a small classifier, each next to its value for real images that the generator has not seen."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import numpy as np
from jaxtyping import Array

from diffusion_jax.evaluation import feature_classifier as classifiers
from diffusion_jax.evaluation.frechet import frechet_distance, statistics
from diffusion_jax.evaluation.neighbours import finite, nearest_neighbour_distance

_RANGE_TOLERANCE = 0.5  # samples may overshoot [-1, 1] by this; they are evaluated clipped, as they are saved
_ACCURACY = 0.97  # below this, metrics by a classifier mean little
MAX_DISTANCE_COST = 2e11  # multiplications spent on nearest neighbours, a few seconds


def classifier_metrics(
    samples: np.ndarray | Array,
    train: Mapping[str, np.ndarray | Array],
    test: Mapping[str, np.ndarray | Array],
    *,
    seed: int = 0,
    epochs: int | None = None,
    classifier: classifiers.Classifier | None = None,
    labels: np.ndarray | Array | None = None,
) -> dict[str, float | int]:
    """Evaluate image samples with a classifier, which is trained here, on the training split, unless it is given.

    The Frechet distance is between features of this classifier, so it is not FID and means something only next to
    its value for real test images, at equal counts. These are random subsets of both, chosen by `seed`.

    Args:
      samples: `[n, h, w, c]` with n >= 2, floats in [-1, 1]; an overshoot of up to 0.5 is clipped.
      train, test: real data, each `x: [m, h, w, c]` in [-1, 1] and `label: [m]`, integers from 0.
      seed: of the classifier and the subsets.
      epochs: of the classifier; see `train_classifier`.
      classifier: a trained one.
      labels: `[n]`, the classes that were requested.

    Returns:
      A dictionary with the keys

      - `classifier_test_accuracy`: on the test split; a warning is given where it is below 0.97.
      - `class_entropy`: entropy of the histogram of predicted classes, in nats; `class_entropy_max` = ln K for K
        classes, and `class_entropy_ratio` of the two.
      - `confidence`: mean probability of the predicted class; `confidence_real` for test images, and their ratio.
      - `classifier_frechet`: squared distance from the features of the training split; `classifier_frechet_real` for
        test images, and their ratio.
      - `nearest_train_distance` and `nearest_train_minimum`: see `nearest_neighbour_distance`; with `_real` for test
        images. A mean far below that of test images shows that training images were memorised. Left out where the data
        are so many that it would take long.
      - `condition_accuracy`: share of the samples that the classifier assigns to the requested class; with `labels`.
      - `num_samples`, and `num_frechet`, the number of samples and of test images that the Frechet distances use.

    Raises:
      ValueError: too few samples, values that are not finite or out of range, or shapes that differ.
    """
    x_train, x_test = _in_range("train x", train["x"], 0.01), _in_range("test x", test["x"], 0.01)
    samples = np.clip(_in_range("samples", samples, _RANGE_TOLERANCE), -1, 1)
    for name, x in (("samples", samples), ("test x", x_test)):
        if x.shape[1:] != x_train.shape[1:]:
            raise ValueError(
                f"{name} must have the shape of the training images {x_train.shape[1:]}, got {x.shape[1:]}"
            )
        if len(x) < 2:
            raise ValueError(f"{name} must hold at least 2 images, got {len(x)}")
    train_labels, test_labels = np.asarray(train["label"]), np.asarray(test["label"])
    if test_labels.shape != (len(x_test),):
        raise ValueError(f"test label must have shape ({len(x_test)},), got {test_labels.shape}")
    num_classes = int(train_labels.max(initial=0)) + 1
    if num_classes < 2:
        raise ValueError("train label must hold at least 2 classes")

    if classifier is None:
        classifier = classifiers.train_classifier(
            x_train, train_labels, num_classes=num_classes, seed=seed, epochs=epochs
        )
    predicted = classifiers.probabilities(classifier, samples)
    predicted_real = classifiers.probabilities(classifier, x_test)
    accuracy = float(np.mean(predicted_real.argmax(axis=1) == test_labels))
    if accuracy < _ACCURACY:
        warnings.warn(
            f"the classifier behind these metrics is only {accuracy:.1%} accurate on real test images", stacklevel=2
        )
    entropy = _entropy(np.bincount(predicted.argmax(axis=1), minlength=num_classes))
    confidence, confidence_real = float(predicted.max(axis=1).mean()), float(predicted_real.max(axis=1).mean())

    count = min(len(samples), len(x_test))
    random = np.random.default_rng(seed)
    real = statistics(classifiers.features(classifier, x_train))
    frechet, frechet_real = (
        frechet_distance(*real, *statistics(classifiers.features(classifier, x[random.permutation(len(x))[:count]])))
        for x in (samples, x_test)
    )
    results = {
        "classifier_test_accuracy": accuracy,
        "class_entropy": entropy,
        "class_entropy_max": math.log(num_classes),
        "class_entropy_ratio": entropy / math.log(num_classes),
        "confidence": confidence,
        "confidence_real": confidence_real,
        "confidence_ratio": confidence / confidence_real,
        "classifier_frechet": frechet,
        "classifier_frechet_real": frechet_real,
        "classifier_frechet_ratio": frechet / frechet_real if frechet_real > 0 else math.inf,
        "num_samples": len(samples),
        "num_frechet": count,
    }
    if labels is not None:
        results["condition_accuracy"] = float(np.mean(predicted.argmax(axis=1) == np.asarray(labels)))
    if (len(samples) + len(x_test)) * x_train.size <= MAX_DISTANCE_COST:
        nearest, nearest_real = (nearest_neighbour_distance(x, x_train) for x in (samples, x_test))
        results |= {
            "nearest_train_distance": nearest.mean,
            "nearest_train_distance_real": nearest_real.mean,
            "nearest_train_minimum": nearest.minimum,
            "nearest_train_minimum_real": nearest_real.minimum,
        }
    return results


def _entropy(counts: np.ndarray) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-np.sum(p * np.log(p)) + 0.0)


def _in_range(name: str, x: np.ndarray | Array, tolerance: float) -> np.ndarray:
    x = finite(name, x)
    if x.ndim != 4:
        raise ValueError(f"{name} must be [n, h, w, c], got shape {x.shape}")
    if np.abs(x).max() > 1 + tolerance:
        raise ValueError(f"{name} must be in [-1, 1] up to {tolerance}, got values in [{x.min():.3g}, {x.max():.3g}]")
    return x
