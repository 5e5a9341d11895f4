"""Figures of samples, each next to the same figure of real data that the generator has not seen."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Array

from diffusion_jax.evaluation import feature_classifier as classifiers
from diffusion_jax.evaluation.frechet import frechet_distance, statistics
from diffusion_jax.evaluation.neighbours import finite, nearest_neighbour_distance

_RANGE_TOLERANCE = 0.5  # samples may overshoot [-1, 1] by this; they are judged clipped, as they are saved
_ACCURACY = 0.97  # a classifier below this is a poor judge
MAX_DISTANCE_COST = 2e11  # multiplications spent on nearest neighbours, a few seconds
_DIRECTIONS = 180  # lines through the origin of the plane: one per degree


def classifier_metrics(
    samples: np.ndarray | Array,
    train: Mapping[str, np.ndarray | Array],
    test: Mapping[str, np.ndarray | Array],
    *,
    seed: int = 0,
    epochs: int | None = None,
    judge: classifiers.Classifier | None = None,
    labels: np.ndarray | Array | None = None,
) -> dict[str, float | int]:
    """Judge image samples with a classifier that is trained here, on the training split, unless `judge` is given.

    The Frechet distance is between features of this classifier, so it is not FID and means something only next to
    its value for real test images, at equal counts. These are random subsets of both, chosen by `seed`.

    Args:
      samples: `[n, h, w, c]` with n >= 2, floats in [-1, 1]; an overshoot of up to 0.5 is clipped.
      train, test: real data, each `x: [m, h, w, c]` in [-1, 1] and `label: [m]`, integers from 0.
      seed: of the classifier and the subsets.
      epochs: of the classifier; see `train_classifier`.
      labels: `[n]`, the classes that the samples were asked for.

    Returns:
      A dictionary with the keys

      - `classifier_test_accuracy`: on the test split; a warning is given where it is below 0.97.
      - `class_entropy`: entropy of the histogram of predicted classes, in nats; `class_entropy_max` = ln K for K
        classes, and `class_entropy_ratio` of the two.
      - `confidence`: mean probability of the predicted class; `confidence_real` for test images, and their ratio.
      - `classifier_frechet`: squared distance from the features of the training split; `classifier_frechet_real` for
        test images, and their ratio.
      - `nearest_train_distance` and `nearest_train_minimum`: see `nearest_neighbour_distance`; with `_real` for test
        images. A mean far below that of test images tells of memorised training images. Left out where the data are
        so many that it would take long.
      - `condition_accuracy`: share of the samples that the classifier takes for what was asked for; with `labels`.
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

    if judge is None:
        judge = classifiers.train_classifier(x_train, train_labels, num_classes=num_classes, seed=seed, epochs=epochs)
    predicted = classifiers.probabilities(judge, samples)
    predicted_real = classifiers.probabilities(judge, x_test)
    accuracy = float(np.mean(predicted_real.argmax(axis=1) == test_labels))
    if accuracy < _ACCURACY:
        warnings.warn(f"the judging classifier is only {accuracy:.1%} accurate on real test images", stacklevel=2)
    entropy = _entropy(np.bincount(predicted.argmax(axis=1), minlength=num_classes))
    confidence, confidence_real = float(predicted.max(axis=1).mean()), float(predicted_real.max(axis=1).mean())

    count = min(len(samples), len(x_test))
    random = np.random.default_rng(seed)
    real = statistics(classifiers.features(judge, x_train))
    frechet, frechet_real = (
        frechet_distance(*real, *statistics(classifiers.features(judge, x[random.permutation(len(x))[:count]])))
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


def sliced_wasserstein(x: np.ndarray | Array, y: np.ndarray | Array) -> float:
    """Sliced 2-Wasserstein distance of two equally large sets of points in the plane; see arXiv 1902.00434.

    The root of the mean, over directions u, of W_2(<u, x>, <u, y>)^2, where W_2 between points on a line matches them
    in order. 180 directions, one per degree, stand for all. A translation by v gives |v| / sqrt(2).

    Args:
      x, y: `[n, 2]`.

    Raises:
      ValueError: a set is empty, not finite or not in the plane, or the counts differ.
    """
    x, y = _plane("x", x), _plane("y", y)
    if len(x) != len(y):
        raise ValueError(f"x and y must hold equally many points, got {len(x)} and {len(y)}")
    angles = np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
    directions = np.stack([np.cos(angles), np.sin(angles)])
    return float(np.sqrt(np.mean((np.sort(x @ directions, axis=0) - np.sort(y @ directions, axis=0)) ** 2)))


def toy_metrics(
    samples: np.ndarray | Array,
    reference: np.ndarray | Array,
    *,
    log_density: Callable | None = None,
    means: np.ndarray | Array | None = None,
    weights: np.ndarray | Array | None = None,
) -> dict[str, float | int]:
    """Judge points in the plane against draws from their exact distribution.

    Args:
      samples: `[n, 2]`.
      reference: `[m, 2]`, exact and independent draws; 2 n of them use all samples.
      log_density: `[n, 2] -> [n]`, natural logarithm of the exact density.
      means, weights: of a mixture's modes, `[k, 2]` and `[k]` with sum 1; both or neither.

    Returns:
      A dictionary with the keys below, each also with `_real` for reference points in place of the samples.

      - `sliced_wasserstein`: from the second half of the reference, at equal counts.
      - `mean_log_density`, in nats, where `log_density` is given.
      - `mode_weight_error`: total variation, in [0, 1], between `weights` and the fractions of points that are
        nearest to each mean, where these are given.
      - `num_samples`, and `num_wasserstein`, the number of points in each set of the sliced distance.

    Raises:
      ValueError: points that are not finite or not in the plane, fewer than 2 reference points, or weights that do
        not fit the means.
    """
    samples, reference = _plane("samples", samples), _plane("reference", reference)
    if len(reference) < 2:
        raise ValueError(f"reference must hold at least 2 points, got {len(reference)}")
    if (means is None) != (weights is None):
        raise ValueError("means and weights must be given together")
    half = len(reference) // 2
    count = min(len(samples), half)
    target = reference[half : half + count]
    results: dict[str, float | int] = {
        "sliced_wasserstein": sliced_wasserstein(samples[:count], target),
        "sliced_wasserstein_real": sliced_wasserstein(reference[:count], target),
    }
    if log_density is not None:
        for suffix, x in (("", samples), ("_real", reference)):
            results["mean_log_density" + suffix] = float(np.mean(np.asarray(log_density(x.astype(np.float32)))))
    if means is not None:
        for suffix, x in (("", samples), ("_real", reference)):
            results["mode_weight_error" + suffix] = _mode_weight_error(x, means, weights)
    return results | {"num_samples": len(samples), "num_wasserstein": count}


def _mode_weight_error(x: np.ndarray, means: np.ndarray | Array, weights: np.ndarray | Array) -> float:
    means, weights = _plane("means", means), np.asarray(weights, np.float64)
    if weights.shape != (len(means),) or weights.min() < 0 or abs(weights.sum() - 1) > 1e-3:
        raise ValueError(f"weights must be {len(means)} probabilities with sum 1, got {weights.tolist()}")
    mode = np.argmin(((x[:, None] - means) ** 2).sum(axis=-1), axis=1)
    return float(np.abs(np.bincount(mode, minlength=len(means)) / len(x) - weights).sum() / 2)


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


def _plane(name: str, x: np.ndarray | Array) -> np.ndarray:
    x = finite(name, x).astype(np.float64)
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"{name} must be [n, 2], got shape {x.shape}")
    return x
