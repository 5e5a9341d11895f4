"""Isotropic Gaussian vectors of any dimension, a benchmark of Schroedinger bridges whose solution is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_jax.data.derived import Derived
from diffusion_jax.data.source import NOTHING, Source, Tokenize, in_memory
from diffusion_jax.types import Spec, check

_SPLITS = ("train", "test")  # independent draws


def spec(section: Mapping[str, Any]) -> Spec:
    """Vectors of config.data.dim numbers."""
    return Spec((section.get("dim", 5),))


def open_source(
    *,
    split: str = "train",
    wanted: Mapping[str, Spec] = NOTHING,
    tokenize: Tokenize | None = None,
    derive: Derived | None = None,
    dim: int = 5,
    mean: float = 0.0,
    std: float = 1.0,
    num_examples: int = 10_000,
    seed: int = 0,
) -> Source:
    """`num_examples` draws of N(mean 1, std^2 I) in `dim` dimensions; the splits are independent draws.

    Raises ValueError for another split, or numbers that are not positive.
    """
    check(split in _SPLITS, "split", split, "train or test")
    for name, value in (("dim", dim), ("std", std), ("num_examples", num_examples)):
        check(value > 0, f"data.{name}", value, "positive")
    rng = np.random.default_rng((seed, _SPLITS.index(split)))
    x = (mean + std * rng.standard_normal((num_examples, dim))).astype(np.float32)
    return Source(entries={"x": spec({"dim": dim})}, size=num_examples, read=in_memory({"x": x}))
