"""Streams of random keys that are quick to trace."""

from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array, Key


def streams(**keys: Key[Array, ""] | int) -> nnx.Rngs:
    """`nnx.Rngs(**keys)`, the same keys in the same order; a network is traced four times as fast with it.

    NNX counts the keys drawn in an array, and asks for its sharding whenever it changes. While a program is traced,
    JAX answers with an error whose message prints the program so far, so that the time grows with its square.
    """
    rngs = nnx.Rngs(**keys)
    for name in keys:
        getattr(rngs, name).count = _Count(np.zeros((), np.uint32), tag=name)
    return rngs


class _Count(nnx.RngCount):
    """A count in NumPy. Reading gives a copy, since the array changes in place while a trace refers to it."""

    def get_value(self, **index: Any) -> np.ndarray:
        return np.array(super().get_value(**index))
