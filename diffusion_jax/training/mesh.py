"""Device meshes, and the layout of batch and train state on them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

AXES = ("data", "fsdp", "tensor")
Rules = Sequence[tuple[str, Sequence[Any]]]  # (regular expression, PartitionSpec or its entries)


def make_mesh(*, data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh over all devices with axes data, fsdp and tensor; one size may be -1: whatever is left.

    A batch is split over data and fsdp; parameters are split over fsdp (and tensor, by rule).
    Raises ValueError unless the sizes multiply to the number of devices.
    """
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    devices = jax.device_count()
    for name, size in sizes.items():
        if size < 1 and size != -1:
            raise ValueError(f"mesh {name}={size}: must be at least 1, or -1 for all that is left")
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ValueError(f"mesh {' and '.join(free)} are -1: only one size may be left open")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if devices % fixed or (not free and fixed != devices):
        raise ValueError(f"mesh {sizes} does not fit: its sizes must multiply to the {devices} devices there are")
    shape = tuple(devices // fixed if size == -1 else size for size in sizes.values())
    # Explicit axes, the default, fail on convolutions whose kernels are split.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The layout of a batch: its first dimension is split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The layout of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(mesh: Mesh, batch_size: int) -> None:
    """Raises ValueError unless the global batch divides evenly over the data and fsdp axes."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size < 1 or batch_size % shards:
        raise ValueError(
            f"batch_size={batch_size}: must be a positive multiple of {shards}, the devices it is split over "
            f"(mesh data={mesh.shape['data']}, fsdp={mesh.shape['fsdp']})"
        )


def state_sharding(mesh: Mesh, abstract_state: Any, rules: Rules = (), min_size: int = 2**14) -> PyTree[NamedSharding]:
    """The layout of a train state, as a tree of its own structure.

    A parameter's path reads "group/block/kernel". The first rule whose regular expression is found in it gives the
    PartitionSpec, for example `(r"attention/.*/kernel", (None, "tensor"))`. Without one, an array of at least
    `min_size` elements has its largest dimension that is divisible by the fsdp axis split over it, and a smaller
    array is replicated. An array elsewhere in the state whose path ends in a parameter's path and whose shape is
    the same (averages, optimizer moments) is laid out like it; everything else is replicated.

    Args:
      mesh: from `make_mesh`.
      abstract_state: a pytree with an attribute `params`; leaves have shapes (`jax.eval_shape`).

    Raises ValueError, naming the parameter, for a rule with more entries than dimensions, an unknown axis, or a
    dimension that does not divide.
    """
    specs = {
        path: (leaf.shape, _parameter_spec(mesh, path, leaf.shape, rules, min_size))
        for path, leaf in ((path_name(keys), leaf) for keys, leaf in jax.tree.leaves_with_path(abstract_state.params))
    }

    def sharding(keys: tuple, leaf: Any) -> NamedSharding:
        parts = path_name(keys).split("/")
        for start in range(len(parts)):
            shape, spec = specs.get("/".join(parts[start:]), (None, None))
            if shape == leaf.shape:
                return NamedSharding(mesh, spec)
        return replicated(mesh)

    return jax.tree.map_with_path(sharding, abstract_state)


def path_name(keys: tuple) -> str:
    """A leaf's key path as "group/block/kernel"."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _parameter_spec(mesh: Mesh, path: str, shape: tuple[int, ...], rules: Rules, min_size: int) -> PartitionSpec:
    for pattern, entries in rules:
        if re.search(pattern, path):
            _check_rule(mesh, path, shape, pattern, entries)
            return PartitionSpec(*entries)
    fsdp = mesh.shape["fsdp"]
    divisible = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if fsdp == 1 or math.prod(shape) < min_size or not divisible:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*(None,) * largest, "fsdp")


def _check_rule(mesh: Mesh, path: str, shape: tuple[int, ...], pattern: str, entries: Sequence[Any]) -> None:
    where = f"sharding rule {pattern!r} -> {tuple(entries)} for {path} of shape {shape}"
    if len(entries) > len(shape):
        raise ValueError(f"{where}: at most {len(shape)} entries fit")
    for size, entry in zip(shape, entries, strict=False):
        axes = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
        unknown = [axis for axis in axes if axis not in mesh.shape]
        if unknown:
            raise ValueError(f"{where}: unknown axis {unknown[0]!r}, allowed are {', '.join(mesh.shape)}")
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            raise ValueError(f"{where}: a dimension of {size} does not divide over {parts} devices")
