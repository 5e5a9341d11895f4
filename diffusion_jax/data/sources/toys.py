"""Two-dimensional toy distributions, roughly centred and of about unit scale."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int32

from diffusion_jax.data.derived import Derived
from diffusion_jax.data.source import NOTHING, Source, Tokenize, in_memory
from diffusion_jax.types import Spec

_SPLITS = ("train", "test")  # independent draws


class Mixture(NamedTuple):
    """Density sum_k weights[k] N(x; means[k], std^2 I)."""

    weights: Float64[np.ndarray, "modes"]
    means: Float64[np.ndarray, "modes 2"]
    std: float


def mixture(modes: int = 8, radius: float = 1.4, std: float = 0.15) -> Mixture:
    """Equal Gaussians on a circle, from which the toys "gaussian_mixture" and, with std = 0.02, "narrow_mixture" draw.

    The variance per coordinate is radius^2 / 2 + std^2, about 1.
    """
    angles = 2 * np.pi * np.arange(modes) / modes
    means = radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return Mixture(np.full(modes, 1 / modes), means, std)


MIXTURES = {"gaussian_mixture": mixture(), "narrow_mixture": mixture(std=0.02)}


def _points_of(parts, rng, n):
    weights, means, std = parts
    label = rng.choice(len(weights), size=n, p=weights)
    return means[label] + std * rng.standard_normal((n, 2)), label


def _two_moons(rng, n):
    """Two interleaved half circles of radius 1 with Gaussian noise of 0.1."""
    label = rng.integers(2, size=n)
    angle = np.pi * rng.random(n)
    upper = np.stack([np.cos(angle) - 0.5, np.sin(angle) - 0.25], axis=-1)
    return np.where(label[:, None] == 0, upper, -upper) + 0.1 * rng.standard_normal((n, 2)), label


def _swiss_roll(rng, n):
    """The spiral r = angle / (3 pi) for angles between 1.5 pi and 4.5 pi, with Gaussian noise of 0.03."""
    angle = 1.5 * np.pi * (1 + 2 * rng.random(n))
    spiral = angle[:, None] / (3 * np.pi) * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    return spiral + 0.03 * rng.standard_normal((n, 2)), None


def _checkerboard(rng, n):
    """Uniform on the 8 cells of the 4 x 4 board over [-2, 2]^2 whose column and row add up to an even number."""
    column = rng.integers(4, size=n)
    row = 2 * rng.integers(2, size=n) + column % 2
    return np.stack([column, row], axis=-1) + rng.random((n, 2)) - 2, None


def _rings(rng, n):
    """Three rings of radius 0.5, 1 and 1.5, equally likely, with Gaussian noise of 0.05."""
    label = rng.integers(3, size=n)
    angle = 2 * np.pi * rng.random(n)
    ring = 0.5 * (1 + label[:, None]) * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    return ring + 0.05 * rng.standard_normal((n, 2)), label


# kind: (draw(rng, n) -> (x, label or None), number of classes)
KINDS = {
    **{name: (functools.partial(_points_of, parts), len(parts.weights)) for name, parts in MIXTURES.items()},
    "two_moons": (_two_moons, 2),
    "swiss_roll": (_swiss_roll, 0),
    "checkerboard": (_checkerboard, 0),
    "rings": (_rings, 3),
}


def draw(
    kind: str, num_examples: int, rng: np.random.Generator
) -> tuple[Float32[np.ndarray, "n 2"], Int32[np.ndarray, "n"] | None]:
    """Independent points of one of `KINDS`, and the component each came from where there are components.

    Raises:
        ValueError: unknown kind or a number of examples that is not positive.
    """
    if kind not in KINDS:
        raise ValueError(f"Unknown kind {kind!r} of toy; known: {', '.join(KINDS)}.")
    if num_examples <= 0:
        raise ValueError(f"num_examples must be positive, got {num_examples}.")
    x, label = KINDS[kind][0](rng, num_examples)
    return x.astype(np.float32), None if label is None else label.astype(np.int32)


def mixture_log_density(
    x: Float64[np.ndarray, "n 2"] | Float32[np.ndarray, "n 2"], parts: Mixture = MIXTURES["gaussian_mixture"]
) -> Float64[np.ndarray, "n"]:
    """log density of a mixture in nats."""
    weights, means, std = parts
    squared = np.sum((x[:, None] - means) ** 2, axis=-1) / std**2
    return np.logaddexp.reduce(np.log(weights / (2 * np.pi * std**2)) - squared / 2, axis=-1)


def spec(section: Mapping[str, Any]) -> Spec:
    """Points in the plane."""
    return Spec((2,), modality="points")


def facts(section: Mapping[str, Any]) -> dict[str, Any]:
    """The exact "log_density" [n, 2] -> [n], in nats, and the "mixture", of toys that are mixtures of Gaussians."""
    parts = MIXTURES.get(section.get("kind", "gaussian_mixture"))
    if parts is None:
        return {}
    return {"log_density": functools.partial(mixture_log_density, parts=parts), "mixture": parts}


def open_source(
    *,
    split: str = "train",
    wanted: Mapping[str, Spec] = NOTHING,
    tokenize: Tokenize | None = None,
    derive: Derived | None = None,
    kind: str = "gaussian_mixture",
    num_examples: int = 65536,
    seed: int = 0,
) -> Source:
    """`num_examples` points of one of `KINDS`; the splits "train" and "test" are independent draws."""
    if split not in _SPLITS:
        raise ValueError(f"Unknown split {split!r} of a toy; known: {', '.join(_SPLITS)}.")
    x, label = draw(kind, num_examples, np.random.default_rng((seed, _SPLITS.index(split))))
    entries = {"x": spec({})} | ({} if label is None else {"label": Spec((), "int32", values=KINDS[kind][1])})
    return Source(
        entries=entries,
        size=num_examples,
        read=in_memory({"x": x} | ({} if label is None else {"label": label})),
        facts=facts({"kind": kind}),
    )
