"""What synthetic examples are worth to a classifier: trained on them, tested on real ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from diffusion_jax.evaluation import probe

DECAY = 0.1  # of the weights of the classifier
Labels = Int[np.ndarray, "n"]
Examples = Mapping[str, np.ndarray]  # {"x": [n, *shape], "label": [n]}


def utility(samples: Float[np.ndarray, "n *shape"], labels: Labels, train: Examples, test: Examples) -> dict[str, Any]:
    """Balanced accuracy on real test examples of classifiers trained on synthetic and on real examples.

    The classifier is a logistic regression of standardised values with weight decay, the best of all for classes that
    are Gaussian with one covariance, and convex, so that nothing but the examples makes a difference. The accuracy is
    the mean of those of the classes. Names begin with "utility_":

    - `synthetic`: trained on the samples, the "classification accuracy score" (arXiv:1905.10887)
    - `real`: on the training split, which the generator was trained on
    - `both`: on both together; a gain over `real` is what synthetic examples add
    - `gaussian`: on as many draws of one Gaussian per class with the covariance of its training examples, which a
      generator has to beat
    - `synthetic_ratio`: `synthetic` over `real`
    - `num_synthetic`, `num_train`, `num_test`

    Test examples must be unknown to the generator too. Raises ValueError if a class has fewer than two training
    examples, or has no sample, or shapes differ.
    """
    num_classes = int(max(train["label"].max(), test["label"].max())) + 1
    sets = {"samples": (samples, labels), "train": (train["x"], train["label"]), "test": (test["x"], test["label"])}
    for name, (x, y) in sets.items():
        if np.shape(y) != (len(x),) or x.shape[1:] != train["x"].shape[1:]:
            raise ValueError(f"{name} {x.shape} with labels {np.shape(y)} do not fit training {train['x'].shape}")
    for name, needed in {"samples": 1, "train": 2}.items():
        counts = np.bincount(sets[name][1], minlength=num_classes)
        if counts.min() < needed:
            raise ValueError(
                f"{name} have {counts.min()} examples of class {int(counts.argmin())}; at least {needed} are needed"
            )
    real = (train["x"], np.asarray(train["label"]))
    made = (np.asarray(samples), np.asarray(labels))
    trained_on = {
        "synthetic": made,
        "real": real,
        "both": tuple(np.concatenate(pair) for pair in zip(made, real, strict=True)),
        "gaussian": gaussian(*real, labels=made[1]),
    }
    found = {name: accuracy(*examples, test, num_classes=num_classes) for name, examples in trained_on.items()}
    found["synthetic_ratio"] = found["synthetic"] / found["real"] if found["real"] else float("nan")
    counts = {"num_synthetic": len(samples), "num_train": len(real[0]), "num_test": len(test["x"])}
    return {f"utility_{name}": value for name, value in (found | counts).items()}


def accuracy(x: Float[np.ndarray, "n *shape"], y: Labels, test: Examples, *, num_classes: int) -> float:
    """The mean over classes of the share of test examples that a classifier of (x, y) assigns to their class.

    Examples of rare classes are repeated in training, until every class counts as much.
    """
    flat, rows = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (x, test["x"]))
    mean, std = flat.mean(0), flat.std(0) + 1e-6
    rows_of = [np.flatnonzero(y == label) for label in np.unique(y)]
    even = np.concatenate([np.resize(found, max(map(len, rows_of))) for found in rows_of])
    fitted = probe.fit((flat[even] - mean) / std, np.asarray(y)[even], num_classes, DECAY)
    right = fitted.logits((rows - mean) / std).argmax(1) == test["label"]
    return float(np.mean([right[test["label"] == label].mean() for label in np.unique(test["label"])]))


def gaussian(
    x: Float[np.ndarray, "n *shape"], y: Labels, *, labels: Labels, seed: int = 0
) -> tuple[Float[np.ndarray, "m *shape"], Labels]:
    """One draw for each of the classes `labels` from the Gaussian with mean and covariance of the examples of a class.

    mean + sum_i z_i (x_i - mean) / sqrt(n - 1) has exactly the empirical covariance, without a factorisation of it.
    """
    rng, drawn = np.random.default_rng(seed), np.empty((len(labels), *x.shape[1:]), np.float64)
    for label in np.unique(labels):
        rows, members = labels == label, np.asarray(x[y == label], np.float64)
        centred = members - members.mean(0)
        z = rng.standard_normal((rows.sum(), len(members))) / np.sqrt(len(members) - 1)
        drawn[rows] = members.mean(0) + np.tensordot(z, centred, 1)
    return drawn, labels
