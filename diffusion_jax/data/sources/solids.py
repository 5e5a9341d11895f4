"""Synthetic point clouds: uniform draws from the surfaces of solids of random proportions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Float64, Int32

Points = Float64[np.ndarray, "n 3"]
_LEAST, _MOST = 0.4, 1.0  # of half a side, a radius or half a height


def _box(rng: np.random.Generator, n: int) -> Points:
    """The six faces of a box."""
    half = rng.uniform(_LEAST, _MOST, 3)
    areas = half[[1, 2, 0]] * half[[2, 0, 1]]  # of the faces across each axis
    axis = rng.choice(3, n, p=areas / areas.sum())
    points = rng.uniform(-1, 1, (n, 3))
    points[np.arange(n), axis] = rng.choice([-1.0, 1.0], n)
    return points * half


def _cylinder(rng: np.random.Generator, n: int) -> Points:
    """The side and both ends of an upright cylinder of radius r and height 2 h."""
    r, h = rng.uniform(_LEAST, _MOST, 2)
    side = rng.random(n) < 2 * h / (2 * h + r)
    radius = np.where(side, r, r * np.sqrt(rng.random(n)))
    height = np.where(side, rng.uniform(-h, h, n), rng.choice([-h, h], n))
    return _turned(rng, radius, height)


def _cone(rng: np.random.Generator, n: int) -> Points:
    """The side and the base of an upright cone of radius r and height 2 h."""
    r, h = rng.uniform(_LEAST, _MOST, 2)
    slant = np.hypot(r, 2 * h)
    side = rng.random(n) < slant / (slant + r)
    part = np.sqrt(rng.random(n))  # of the way from the apex, or from the centre of the base
    return _turned(rng, r * part, np.where(side, h - 2 * h * part, -h))


def _ellipsoid(rng: np.random.Generator, n: int) -> Points:
    """The surface of an ellipsoid: of a sphere's points those are kept with the chance of their stretch of area."""
    half = rng.uniform(_LEAST, _MOST, 3)

    def candidates(k: int) -> tuple[Points, Float64[np.ndarray, "k"]]:
        u = rng.standard_normal((k, 3))
        u /= np.linalg.norm(u, axis=1, keepdims=True)
        return u * half, np.linalg.norm(u / half, axis=1) * half.min()

    return _kept(rng, n, candidates)


def _torus(rng: np.random.Generator, n: int) -> Points:
    """The surface of a ring of radius R whose tube has the radius r; its outer side is wider than its inner one."""
    R, r = rng.uniform(0.6, 1.0), rng.uniform(0.15, 0.45)

    def candidates(k: int) -> tuple[Points, Float64[np.ndarray, "k"]]:
        angle = 2 * np.pi * rng.random(k)
        radius = R + r * np.cos(angle)
        return _turned(rng, radius, r * np.sin(angle)), radius / (R + r)

    return _kept(rng, n, candidates)


KINDS: dict[str, Callable[[np.random.Generator, int], Points]] = {
    "box": _box,
    "cylinder": _cylinder,
    "cone": _cone,
    "ellipsoid": _ellipsoid,
    "torus": _torus,
}


def draw(
    num_examples: int, points: int, rng: np.random.Generator
) -> tuple[Float32[np.ndarray, "n points 3"], Int32[np.ndarray, "n"]]:
    """Clouds of solids, and which of `KINDS` each one is. The solids stand upright, along the third axis."""
    kinds = rng.integers(len(KINDS), size=num_examples)
    makers = list(KINDS.values())
    return np.stack([makers[kind](rng, points) for kind in kinds]).astype(np.float32), kinds.astype(np.int32)


def _turned(rng: np.random.Generator, radius: np.ndarray, height: np.ndarray) -> Points:
    """Points at these distances from the third axis and heights, at random angles around it."""
    angle = 2 * np.pi * rng.random(len(radius))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), height], -1)


def _kept(rng: np.random.Generator, n: int, candidates: Callable) -> Points:
    """n of the points of `candidates(k) -> (points, chance)`, each kept with its chance."""
    points = np.empty((0, 3))
    while len(points) < n:
        drawn, chance = candidates(2 * n)
        points = np.concatenate([points, drawn[rng.random(len(drawn)) < chance]])
    return points[:n]
