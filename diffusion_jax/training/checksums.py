"""Checksums of arrays, with which checkpoints detect bytes that have changed on disk.

Orbax does not: a flipped bit in a file of arrays is read as another number, without an error
(`tests/training/test_checkpoints.py`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, UInt32

from diffusion_jax.training import mesh as mesh_lib

_FACTOR = np.uint32(0x9E3779B1)
_WORDS = {1: np.uint8, 2: np.uint16}  # by the size of an entry in bytes; otherwise words of 4 bytes
_CHUNK = 2**20


def checksums(tree: PyTree[Any]) -> dict[str, int]:
    """Returns {path: sum_i (2 i + 1) c w_i mod 2^32} over the words w_i of each array, with an odd constant c.

    All factors are odd, so a change of one word, and so of any single bit, always changes the sum; other damage is
    missed with probability 2^-32. The sum does not depend on the sharding of an array. It is computed on the devices,
    or for arrays on a single CPU device by NumPy, without compilation.
    """
    names = [mesh_lib.path_name(keys) for keys, _ in jax.tree.leaves_with_path(tree)]
    leaves = jax.tree.leaves(tree)
    sums = [_host_sum(leaf) for leaf in leaves] if all(map(_on_host, leaves)) else jax.device_get(_sums(leaves))
    return dict(zip(names, map(int, sums), strict=True))


def _on_host(x: Any) -> bool:
    return isinstance(x, np.ndarray) or [device.platform for device in x.devices()] == ["cpu"]


def _host_sum(x: Any) -> int:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    x = np.asarray(x)
    words = np.ascontiguousarray(x).reshape(-1).view(_WORDS.get(x.dtype.itemsize, np.uint32))
    total = np.uint32(0)
    with np.errstate(over="ignore"):
        for start in range(0, words.size, _CHUNK):
            part = words[start : start + _CHUNK].astype(np.uint32)
            index = np.arange(start, start + part.size, dtype=np.uint64).astype(np.uint32)
            total += np.dot(2 * index + np.uint32(1), part)
        return int(total * _FACTOR)


@jax.jit
def _sums(leaves: list[Any]) -> list[UInt32[Array, ""]]:
    return [_sum(leaf) for leaf in leaves]


def _sum(x: Any) -> UInt32[Array, ""]:
    words = _words(x)
    index = jnp.zeros((), jnp.uint32)
    for axis, stride in enumerate(np.cumprod([1, *words.shape[:0:-1]])[::-1]):
        if words.ndim:
            index = index + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
    return jnp.sum((2 * index + 1) * _FACTOR * words, dtype=jnp.uint32)


def _words(x: Any) -> UInt32[Array, "*shape"]:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], axis=-1)
    bits = _WORDS.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32)
