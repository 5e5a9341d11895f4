"""One split of a data set as a random-access type, whatever kind of data it holds and however it is stored."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, Int64, Integer

from diffusion_jax.types import Spec

Batch = dict[str, np.ndarray]  # entries of examples by name, each [n, ...]
Uniform = Float32[np.ndarray, "n draws"]  # in [0, 1)
Tokenize = Callable[[Sequence[str]], Int32[np.ndarray, "n max_tokens"]]
NOTHING: Mapping[str, Any] = types.MappingProxyType({})


def as_stored(batch: Batch, uniform: Uniform | None) -> Batch:
    """The `ready` of data that is stored as networks take it."""
    return batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """One split of a data set, read by index.

    Attributes:
        entries: shape, dtype and kind of "x" and of every condition in a batch; the `values` of "label" are the number
            of classes.
        size: number of examples.
        read: int [n] -> the examples as they are stored.
        ready: (stored examples, uniform numbers [n, draws]) -> a batch: scaled and, at random, flipped, dequantized or
            whatever augmentation the kind of data has. Without numbers (None, for evaluation) nothing is random.
        draws: uniform numbers that `ready` takes for one example, an even number.
        groups: the group of each example; training draws evenly from groups. None to draw evenly from the examples.
        num_workers: threads that should read ahead.
        facts: what is known about the data beyond its examples, such as "levels" (grey levels of images),
            "log_density" (of a toy, a function of points) or "sample_rate".
    """

    entries: Mapping[str, Spec]
    size: int
    read: Callable[[np.ndarray], Batch]
    ready: Callable[[Batch, Uniform | None], Batch] = as_stored
    draws: int = 0
    groups: Int64[np.ndarray, "n"] | None = None
    num_workers: int = 0
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.draws % 2:
            raise ValueError(f"draws must be even, got {self.draws}.")

    def __len__(self) -> int:
        return self.size

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one x, (height, width, channels) for images."""
        return self.entries["x"].shape

    @property
    def num_classes(self) -> int:
        """Labels are in 0..num_classes - 1; 0 if there are none."""
        return self.entries["label"].values if "label" in self.entries else 0

    def batch(self, indices: Integer[np.ndarray, "n"], rng: np.random.Generator | None = None) -> Batch:
        """Examples {"x": [n, *shape], ...}, augmented with numbers from `rng`; without it nothing is random."""
        uniform = None if rng is None else rng.random((len(indices), self.draws), dtype=np.float32)
        return self.ready(self.read(indices), uniform)


def entry(value: np.ndarray, modality: str = "array", values: int = 0) -> Spec:
    """The spec of one example of `value`, [n, ...]."""
    return Spec(value.shape[1:], value.dtype.name, modality, values)


def in_memory(arrays: Mapping[str, np.ndarray]) -> Callable[[np.ndarray], Batch]:
    """The `read` of examples that are arrays in memory, [n, ...] by name."""
    return lambda indices: {name: value[indices] for name, value in arrays.items()}


def even(draws: int) -> int:
    """`draws` rounded up to an even number, see `Source.draws`."""
    return draws + draws % 2
