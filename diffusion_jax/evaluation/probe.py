"""Linear classifiers of codes: how much of a class is in a code, and along which direction it changes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.optimize import minimize
from scipy.special import log_softmax


class Probe(NamedTuple):
    """The classifier with the logits z @ weights.T + bias."""

    weights: Float[np.ndarray, "classes d"]
    bias: Float[np.ndarray, "classes"]

    def logits(self, z: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n classes"]:
        """One logit per class."""
        return z @ self.weights.T + self.bias

    def accuracy(self, z: Float[np.ndarray, "n d"], labels: Int[np.ndarray, "n"]) -> float:
        """The share of codes with the largest logit at their class."""
        return float(np.mean(self.logits(z).argmax(1) == labels))

    def direction(self, source: int, target: int) -> Float[np.ndarray, "d"]:
        """The unit vector along which log p(target) - log p(source) grows fastest."""
        w = self.weights[target] - self.weights[source]
        return w / np.linalg.norm(w)


def fit(z: Shaped[np.ndarray, "n d"], labels: Int[np.ndarray, "n"], num_classes: int, decay: float = 1e-3) -> Probe:
    """The logistic regression of the classes on the codes: minimises the mean of -log p(label | z) + decay |W|^2 / 2.

    The problem is convex; L-BFGS solves it in float64. Codes should be standardised. Raises ValueError if codes and
    labels do not fit each other, a label is not in 0..num_classes - 1, or a code is not finite.
    """
    z, labels = np.asarray(z, np.float64), np.asarray(labels)
    if z.ndim != 2 or labels.shape != z.shape[:1] or not len(z):
        raise ValueError(f"codes {z.shape} and labels {labels.shape} must be [n, d] and [n], n > 0")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}; they must be in 0..{num_classes - 1}")
    if not np.isfinite(z).all():
        raise ValueError("codes must be finite")
    hot, (n, d) = np.eye(num_classes)[labels], z.shape

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(num_classes, d + 1)
        log_p = log_softmax(z @ w[:, :d].T + w[:, d], axis=1)
        error = (np.exp(log_p) - hot) / n
        gradient = np.concatenate([error.T @ z + decay * w[:, :d], error.sum(0)[:, None]], 1)
        return -(hot * log_p).sum() / n + decay / 2 * np.square(w[:, :d]).sum(), gradient.ravel()

    found = minimize(loss, np.zeros(num_classes * (d + 1)), jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x
    w = found.reshape(num_classes, d + 1)
    return Probe(weights=w[:, :d], bias=w[:, d])


def mean_difference(z: Float[np.ndarray, "n d"], labels: Int[np.ndarray, "n"], source: int, target: int) -> np.ndarray:
    """The difference of the mean codes of two classes: a direction, with the length of the whole way [d]."""
    return z[labels == target].mean(0) - z[labels == source].mean(0)


def principal_components(train: Shaped[np.ndarray, "n *shape"], x: Shaped[np.ndarray, "m *shape"], num: int):
    """The baseline of a code: (codes of `train`, codes of x, reconstructions of x) by PCA with `num` components."""
    flat, rows = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (train, x))
    mean = flat.mean(0)
    axes = np.linalg.svd(flat - mean, full_matrices=False)[2][:num]
    codes, own = (flat - mean) @ axes.T, (rows - mean) @ axes.T
    scale = codes.std(0)
    return codes / scale, own / scale, (mean + own @ axes).reshape(np.shape(x)).astype(np.float32)
