"""Distances between point clouds, and metrics of a set of clouds against a reference set (arXiv:1906.12320, section 5).

Clouds are [n, points, 3]. The Chamfer distance is of squares, both ways, and the earth mover's distance of lengths with
an exact assignment: numbers of approximate matching, as in published tables, are others. All depend on the number of
points and on how clouds are normalised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64
from scipy.optimize import linear_sum_assignment

_ENTRIES = 2**22  # squared distances that are computed at once
Clouds = Float[np.ndarray, "n points 3"]
Pairs = Float64[np.ndarray, "n m"]  # distances of each of n clouds to each of m
Distance = Callable[[Clouds, Clouds], Pairs]


def nearest(
    x: Clouds, y: Float[np.ndarray, "m others 3"]
) -> Iterator[tuple[Float64[np.ndarray, "m"], Float64[np.ndarray, "m"]]]:
    """For each cloud of x the mean squared distances of its points to their nearest in each cloud of y, and back.

    Raises ValueError for clouds of another shape, or that are not finite.
    """
    x, y = _checked("x", x), _checked("y", y)
    others, points = y.shape[1], x.shape[1]
    block = max(_ENTRIES // (points * others), 1)
    norms = np.square(y).sum(-1)
    for cloud in x:
        forth, back = [], []
        own = np.square(cloud).sum(-1)[:, None]
        for i in range(0, len(y), block):
            squared = -2 * cloud @ y[i : i + block].reshape(-1, 3).T
            squared += own
            squared += norms[i : i + block].reshape(-1)
            forth.append(squared.reshape(points, -1, others).min(2).mean(0, dtype=np.float64))
            back.append(squared.min(0).reshape(-1, others).mean(1, dtype=np.float64))
        yield np.maximum(np.concatenate(forth), 0), np.maximum(np.concatenate(back), 0)


def chamfer_distances(x: Clouds, y: Float[np.ndarray, "m others 3"]) -> Pairs:
    """CD = mean_x min_y |x - y|^2 + mean_y min_x |x - y|^2 of all pairs."""
    return np.stack([forth + back for forth, back in nearest(x, y)])


def chamfer(x: Clouds, y: Float[np.ndarray, "n others 3"]) -> Float64[np.ndarray, "n"]:
    """The Chamfer distance of each cloud of x to the same row of y."""
    return np.array([chamfer_distances(a[None], b[None])[0, 0] for a, b in zip(x, y, strict=True)])


def earth_mover_distances(x: Clouds, y: Float[np.ndarray, "m points 3"]) -> Pairs:
    """The mean distance |x - y| of the one-to-one assignment for which it is least, of all pairs.

    Exact; its time grows with the cube of the number of points. Raises ValueError for clouds of other numbers of them.
    """
    x, y = _checked("x", x), _checked("y", y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"clouds have {x.shape[1]} and {y.shape[1]} points; an assignment needs equally many")
    distances = np.empty((len(x), len(y)))
    for i, cloud in enumerate(x):
        for j, other in enumerate(y):
            lengths = np.linalg.norm(cloud[:, None] - other, axis=-1)
            distances[i, j] = lengths[linear_sum_assignment(lengths)].mean()
    return distances


def one_nn_accuracy(samples: Pairs, between: Pairs, references: Pairs) -> float:
    """1-NNA: how often the nearest other cloud of the union is of the same set; about 0.5 for samples of one law.

    The expectation for n and n such samples is (n - 1) / (2 n - 1); a set and its own copy have 0, sets far apart 1.
    The arguments are the distances within the samples, from samples to references, and within the references.
    """
    own, other = (np.where(np.eye(len(d), dtype=bool), np.inf, d) for d in (samples, references))
    right = np.concatenate([own.min(1) < between.min(1), other.min(1) < between.min(0)])
    return float(right.mean())


def coverage(between: Pairs) -> float:
    """COV: the share of references that are the nearest one of some sample; `between` is [samples, references]."""
    return len(np.unique(between.argmin(1))) / between.shape[1]


def minimum_matching_distance(between: Pairs) -> float:
    """MMD: the mean over references of the distance to the nearest sample; `between` is [samples, references]."""
    return float(between.min(0).mean())


def jensen_shannon_divergence(x: Clouds, y: Float[np.ndarray, "m others 3"], resolution: int = 28) -> float:
    """The divergence, in bits, of where points lie: in cells of a cube around the origin that holds all of them.

    In [0, 1]: 0 for equal densities, 1 for densities without a common cell. Luo & Hu (arXiv:2103.01458) count cells in
    a ball instead.
    """
    x, y = _checked("x", x), _checked("y", y)
    bound = max(np.abs(x).max(), np.abs(y).max()) or 1.0

    def density(clouds: np.ndarray) -> Float64[np.ndarray, "cells"]:
        cells = np.minimum((clouds.reshape(-1, 3) / bound + 1) / 2 * resolution, resolution - 1).astype(int)
        counts = np.bincount(np.ravel_multi_index(cells.T, (resolution,) * 3), minlength=resolution**3)
        return counts / counts.sum()

    def entropy(p: np.ndarray) -> float:
        return float(-np.sum(p[p > 0] * np.log2(p[p > 0])))

    p, q = density(x), density(y)
    return max(entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2, 0.0)


class Kind(NamedTuple):
    """A distance of clouds, and the ending of the names of its metrics."""

    suffix: str
    distances: Distance


CD = Kind("cd", chamfer_distances)
EMD = Kind("emd", earth_mover_distances)


def generation(samples: Clouds, references: Clouds, train: Clouds, kind: Kind) -> dict[str, float | int]:
    """1-NNA, MMD and COV of samples against held-out clouds, at equal counts, by one distance.

    Each also with the ending `_train`, that of as many training clouds in place of the samples: what real clouds
    reach. `num_clouds_<kind>` are compared in each set.
    """
    n = min(len(samples), len(references), len(train))
    samples, references, train = samples[:n], references[:n], train[:n]
    within = kind.distances(references, references)
    values: dict[str, float | int] = {f"num_clouds_{kind.suffix}": n}
    for name, clouds in (("", samples), ("_train", train)):
        between = kind.distances(clouds, references)
        accuracy = one_nn_accuracy(kind.distances(clouds, clouds), between, within)
        values[f"one_nna_{kind.suffix}{name}"] = accuracy
        values[f"mmd_{kind.suffix}{name}"] = minimum_matching_distance(between)
        values[f"coverage_{kind.suffix}{name}"] = coverage(between)
    return values


def memorisation(samples: Clouds, references: Clouds, train: Clouds) -> dict[str, float]:
    """Mean Chamfer distances to the nearest training cloud, of samples and of held-out clouds, and their ratio.

    1-NNA cannot see copies of training clouds; their ratio is far below 1.
    """
    own, real = (float(chamfer_distances(clouds, train).min(1).mean()) for clouds in (samples, references))
    return {"nearest_train_cd": own, "nearest_train_cd_held_out": real, "nearest_train_ratio": own / max(real, 1e-12)}


def completion(samples: Clouds, truth: Clouds, known: Clouds, train: Clouds) -> dict[str, float]:
    """Chamfer distances of completed clouds to the truth, next to those of two simple completions.

    `known` has NaN for points that are not given. `completion_cd_retrieval` is that of the training cloud that the
    given points are nearest to; `completion_cd_mirror` that of the given points and their mirror image, in the one of
    the planes x = 0, y = 0 and z = 0 that is best for each truth, which a model cannot know.
    """
    given = [cloud[np.isfinite(cloud).all(-1)] for cloud in known]
    retrieved = [train[np.argmin(next(nearest(cloud[None], train))[0])] for cloud in given]
    mirrors = np.ones((3, 3)) - 2 * np.eye(3)

    def mirrored(cloud: np.ndarray, whole: np.ndarray) -> float:
        images = np.stack([np.concatenate([cloud, cloud * signs]) for signs in mirrors])
        return float(chamfer_distances(images, whole[None]).min())

    return {
        "completion_cd": float(chamfer(samples, truth).mean()),
        "completion_cd_retrieval": float(chamfer(np.stack(retrieved), truth).mean()),
        "completion_cd_mirror": float(np.mean([mirrored(*pair) for pair in zip(given, truth, strict=True)])),
    }


def twins(clouds: Float32[np.ndarray, "n points 3"], ratio: float) -> list[np.ndarray]:
    """Groups of clouds that are draws from one surface: indices of each, in the order of their first.

    Two clouds are twins if the Chamfer distance between the first half of the points of one and the second half of the
    other is below `ratio` times the larger of those between their own halves. Twins of twins are in one group. Colour
    variants of a model are such clouds; in both a training and a held-out split they make memorised samples look new.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    half = clouds.shape[1] // 2
    floor = chamfer(clouds[:, :half], clouds[:, half:])
    few = min(_COARSE, half)
    coarse_floor = chamfer(clouds[:, :few], clouds[:, half : half + few])
    # Few points tell most pairs apart, at a small part of the cost.
    coarse = chamfer_distances(clouds[:, :few], clouds[:, half : half + few])
    near = np.minimum(coarse, coarse.T) < _MARGIN * ratio * np.maximum.outer(coarse_floor, coarse_floor)
    rows, columns = np.nonzero(np.triu(near, 1))
    distances = chamfer(clouds[rows, :half], clouds[columns, half:]) if len(rows) else np.zeros(0)
    alike = distances < ratio * np.maximum(floor[rows], floor[columns])
    pairs = (np.ones(alike.sum()), (rows[alike], columns[alike]))
    _, group = connected_components(coo_array(pairs, shape=(len(clouds),) * 2), directed=False)
    _, first = np.unique(group, return_index=True)
    return [np.flatnonzero(group == group[i]) for i in np.sort(first)]


_COARSE, _MARGIN = 64, 1.5  # points of the first comparison of twins, and its tolerance


def _checked(name: str, clouds: np.ndarray) -> Float32[np.ndarray, "n points 3"]:
    clouds = np.asarray(clouds, np.float32)
    if clouds.ndim != 3 or clouds.shape[-1] != 3 or clouds.size == 0:
        raise ValueError(f"{name} must be clouds [n, points, 3] and not empty, got shape {clouds.shape}")
    if not np.isfinite(clouds).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return clouds
