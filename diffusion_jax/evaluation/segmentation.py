"""How well masks fit their images: IoU, Dice and accuracy of single draws and of their vote, and calibration."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

BINS = 10  # of probability
Masks = Float[np.ndarray, "n h w k"]


class Reliability(NamedTuple):
    """Pixels in bins of predicted probability: the mean prediction and the share of true pixels in each, and counts."""

    predicted: Float[np.ndarray, "bins"]
    observed: Float[np.ndarray, "bins"]
    count: Float[np.ndarray, "bins"]


def segmentation(samples: Masks, truth: Masks) -> dict[str, Any]:
    """Metrics of masks [k n, ...] in [-1, 1], sample i of the image i mod n; names begin with "segmentation_".

    One channel is a mask, 1 inside and -1 outside; K channels are classes, of which the true one is 1, and pixels of
    which none is 1 are not labelled and not counted. A value v means the probability (v + 1) / 2, which the k samples
    of an image are averaged to; the vote of a pixel is its most probable class.

    `iou` and `dice` of the vote are means over images, of the mask, or of the classes that are in the truth or the
    vote; `iou_single` and `dice_single` those of single samples; `miou` is the mean over classes, outside included, of
    intersection over union in all images together; `accuracy` the share of right pixels. `brier` is the mean squared
    difference between probability and truth, summed over classes. `calibration` is `brier` over the value that it has
    if the truth is one more draw from the model: with k draws of hard masks (1 + 1/k) times their unbiased variance,
    with one sample p the sum of p (1 - p). It is 1 for a calibrated model at any k, and above 1 where the model is too
    sure. `ece` is the expected calibration error of probabilities, which is not 0 for few hard draws even if these are
    exact. Raises ValueError unless k is whole.
    """
    num = len(truth)
    if len(samples) % num:
        raise ValueError(f"{len(samples)} samples of {num} images; every image needs as many")
    rows = probabilities(np.asarray(samples, np.float64)).reshape(-1, num, *truth.shape[1:3], max(truth.shape[3], 2))
    right, labelled = probabilities(np.asarray(truth, np.float64)) > 0.5, np.any(truth > 0, -1)
    labelled = labelled if truth.shape[-1] > 1 else np.ones_like(labelled)
    hard = np.stack([_votes(row) for row in rows])
    p = (hard if len(rows) > 1 else rows).mean(0)
    vote, classes = _votes(rows.mean(0)), np.arange(right.shape[-1])[right.shape[-1] == 2 and truth.shape[-1] == 1 :]
    k = len(rows)
    brier = np.sum((p - right) ** 2, -1)[labelled].mean()
    expected = np.sum(p * (1 - p), -1)[labelled].mean() * ((k + 1) / (k - 1) if k > 1 else 1)
    found = [_overlaps(one, right, labelled, classes) for one in hard]
    iou, dice = _overlaps(vote, right, labelled, classes)
    values = {
        "iou": iou,
        "dice": dice,
        "iou_single": np.mean([one[0] for one in found]),
        "dice_single": np.mean([one[1] for one in found]),
        "miou": mean_iou(vote, right, labelled),
        "accuracy": (vote & right).any(-1)[labelled].mean(),
        "brier": brier,
        "ece": calibration_error(reliability(p[labelled], right[labelled])),
        **({"calibration": brier / expected} if expected > 0 else {}),
    }
    sizes = {"num_images": num, "samples_per_image": k}
    return {
        f"segmentation_{name}": value if name in sizes else float(value) for name, value in (sizes | values).items()
    }


def probabilities(masks: Float[np.ndarray, "*n k"]) -> Float[np.ndarray, "*n classes"]:
    """The probability of each class of masks in [-1, 1]; one channel has two classes, outside and inside."""
    p = np.clip((masks + 1) / 2, 0, 1)
    return np.concatenate([1 - p, p], -1) if p.shape[-1] == 1 else p


def reliability(p: Float[np.ndarray, "n k"], right: Bool[np.ndarray, "n k"], bins: int = BINS) -> Reliability:
    """The reliability of the probabilities of all classes but the first (for masks, of inside) in equal bins."""
    p, right = p[:, 1:].ravel(), right[:, 1:].ravel()
    place = np.minimum((p * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins).astype(float)
    sums = [np.bincount(place, weights=values, minlength=bins) for values in (p, right)]
    predicted, observed = (total / np.maximum(count, 1) for total in sums)
    return Reliability(predicted, observed, count)


def calibration_error(table: Reliability) -> float:
    """The expected calibration error: the mean over pixels of |predicted - observed| of their bins."""
    return float(np.average(np.abs(table.predicted - table.observed), weights=table.count))


def mean_iou(vote: Bool[np.ndarray, "n h w k"], right: Bool[np.ndarray, "n h w k"], labelled: np.ndarray) -> float:
    """The mean over classes of intersection over union of all images together; absent classes do not count."""
    both, either = (np.sum(f(vote, right)[labelled], 0) for f in (np.logical_and, np.logical_or))
    return float(np.mean(both[either > 0] / either[either > 0]))


def _votes(p: Float[np.ndarray, "n h w k"]) -> Bool[np.ndarray, "n h w k"]:
    """The most probable class of each pixel, one-hot."""
    return np.arange(p.shape[-1]) == np.argmax(p, -1)[..., None]


def _overlaps(vote: np.ndarray, right: np.ndarray, labelled: np.ndarray, classes: np.ndarray) -> tuple[float, float]:
    """IoU and Dice of `classes`: the mean over images of the mean over those present; 1 where none is present."""
    keep = labelled[..., None]
    both = np.sum(vote & right & keep, (1, 2))[:, classes]
    sizes = [np.sum(masks & keep, (1, 2))[:, classes] for masks in (vote, right)]
    total = sizes[0] + sizes[1]
    present = np.maximum((total > 0).sum(1), 1)
    empty = (total == 0).all(1)
    iou = np.where(empty, 1, np.sum(both / np.maximum(total - both, 1), 1) / present)
    dice = np.where(empty, 1, np.sum(2 * both / np.maximum(total, 1), 1) / present)
    return float(iou.mean()), float(dice.mean())
