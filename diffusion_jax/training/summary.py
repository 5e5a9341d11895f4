"""Memory and sharding of a train state, computed from shapes."""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from diffusion_jax.training.mesh import path_name
from diffusion_jax.training.step import TrainState, trained
from diffusion_jax.types import System, Train


def state_bytes(state: TrainState) -> dict[str, tuple[int, int]]:
    """Returns {part: (bytes in total, bytes on one device)} of parameters, averages (EMA) and optimizer.

    `state` holds arrays, or `jax.ShapeDtypeStruct`s with shardings.
    """
    parts = {"parameters": state.params, "averages": state.ema, "optimizer": state.opt_state}
    return {name: _bytes(tree) for name, tree in parts.items()}


def gradient_bytes(state: TrainState) -> tuple[int, int]:
    """Returns (bytes in total, bytes on one device) of the gradient, which is sharded like the trained parameters."""
    return _bytes(trained(state.params))


def activation_bytes(system: System, params: PyTree[Any], batch: dict[str, Any]) -> float:
    """Bytes per example of the activations that the forward pass stores for the backward pass.

    They are the residuals of `jax.vjp`, by abstract evaluation; rematerialisation counts. A compiler that fuses
    operations may store fewer. Arrays that do not grow with the batch, such as parameters in another precision, are not
    counted.
    """

    def stored(rows: int) -> int:
        def residuals(params: PyTree[Any], batch: dict[str, Any]) -> list[Any]:
            def loss(trained_params: PyTree[Any]) -> Array:
                train = Train(jnp.zeros((), jnp.int32), 1)
                return system.loss({**params, **trained_params}, jax.random.key(0), batch, train)[0]

            return jax.tree.leaves(jax.vjp(loss, trained(params))[1])

        part = {name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for name, x in batch.items()}
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        return sum(_size(x) for x in jax.eval_shape(residuals, shapes, part))

    return (stored(4) - stored(2)) / 2


def layout(tree: PyTree[Any]) -> list[tuple[str, int, tuple[int, ...], str, int]]:
    """Returns (path, number of arrays, shape, mesh axes of its dimensions, bytes on one device) by kind of array.

    Arrays whose paths differ only in numbers, such as those of equal blocks, are one kind: "blocks/*/attn/proj".
    """
    kinds: dict[tuple, list[int]] = {}
    for keys, leaf in jax.tree.leaves_with_path(tree):
        path = re.sub(r"(?<=/)\d+(?=/)", "*", path_name(keys))
        kinds.setdefault((path, leaf.shape, _split(leaf)), []).append(_size(leaf, leaf.sharding))
    return [(path, len(sizes), shape, split, sum(sizes)) for (path, shape, split), sizes in kinds.items()]


def _split(leaf: Any) -> str:
    spec = getattr(leaf.sharding, "spec", ())
    names = [name if isinstance(name, str) else "+".join(name or ()) or "-" for name in spec]
    return ", ".join(names) if any(name != "-" for name in names) else "whole"


def _bytes(tree: PyTree[Any]) -> tuple[int, int]:
    leaves = jax.tree.leaves(tree)
    return sum(_size(x) for x in leaves), sum(_size(x, x.sharding) for x in leaves)


def _size(leaf: Any, sharding: jax.sharding.Sharding | None = None) -> int:
    """Bytes of an array, or of its shard on one device."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf, sharding = jax.eval_shape(jax.random.key_data, leaf), None
    return math.prod(sharding.shard_shape(leaf.shape) if sharding else leaf.shape) * leaf.dtype.itemsize
