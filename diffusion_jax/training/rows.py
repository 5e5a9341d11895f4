"""Compute rows (samples, metrics) in batches over all devices, independently of the batch size."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jaxtyping import Array, Int, PyTree

from diffusion_jax.training.mesh import batch_sharding
from diffusion_jax.types import Cond


def in_batches(
    draw: Callable[[Int[Array, "batch"], Cond], PyTree[Array]],
    num: int,
    batch_size: int,
    cond: dict[str, Array | np.ndarray] | None = None,
    progress: Callable[[int], None] | None = None,
) -> PyTree[np.ndarray]:
    """Returns rows 0..num-1 of `draw(ids, cond)` as NumPy arrays. Row r must depend on ids[r] and cond[r] only.

    All calls have the same shape: `batch_size`, rounded up to a multiple of the number of devices over which the
    current mesh (see `jax.set_mesh`) splits a batch. The last batch is padded. `progress(n)` is called when n rows are
    done, after each batch.
    """
    mesh = jax.sharding.get_mesh()
    shards = 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]
    size = -(-min(batch_size, num) // shards) * shards
    parts = []
    for start in range(0, num, size):
        ids = np.arange(start, start + size)
        rows = np.minimum(ids, num - 1)
        inputs = (ids, jax.tree.map(lambda c, rows=rows: np.asarray(c)[rows], cond))
        if not mesh.empty:
            inputs = jax.tree.map(lambda x: _put(x, batch_sharding(mesh)), inputs)
        parts.append(jax.tree.map(_fetch, draw(*inputs)))
        if progress is not None:
            progress(min(start + size, num))
    return jax.tree.map(lambda *p: np.concatenate(p)[:num], *parts)


def _put(x: np.ndarray, sharding: NamedSharding) -> Array:
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def _fetch(x: Array) -> np.ndarray:
    return multihost_utils.process_allgather(x, tiled=True) if jax.process_count() > 1 else np.asarray(x)
