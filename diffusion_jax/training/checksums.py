"""Checksums of arrays, which tell a checkpoint whose bytes have changed on disk."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, UInt32

from diffusion_jax.training import mesh as mesh_lib


def checksums(tree: PyTree[Any]) -> dict[str, int]:
    """{path: sum_i (2 i + 1) c w_i mod 2^32} over the words w_i of every array, c odd.

    All factors are odd, so one changed word, and thus any single bit, always changes the sum; other damage goes
    unseen with probability 2^-32. The sum does not depend on how an array is laid out over devices, and is taken there.
    """
    names = [mesh_lib.path_name(keys) for keys, _ in jax.tree.leaves_with_path(tree)]
    sums = jax.device_get(_sums(jax.tree.leaves(tree)))
    return dict(zip(names, map(int, sums), strict=True))


@jax.jit
def _sums(leaves: list[Any]) -> list[UInt32[Array, ""]]:
    return [_sum(leaf) for leaf in leaves]


def _sum(x: Any) -> UInt32[Array, ""]:
    words = _words(x)
    index = jnp.zeros((), jnp.uint32)
    for axis, stride in enumerate(np.cumprod([1, *words.shape[:0:-1]])[::-1]):
        if words.ndim:
            index = index + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
    return jnp.sum((2 * index + 1) * jnp.uint32(0x9E3779B1) * words, dtype=jnp.uint32)


def _words(x: Any) -> UInt32[Array, "*shape"]:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], axis=-1)
    bits = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32)
