"""Device meshes, and the sharding of batch and train state on them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import PyTree

AXES = ("data", "fsdp", "tensor")
Rules = Sequence[tuple[str, Sequence[str | None]]]  # (regular expression, axes of the last dimensions)

# Tensor parallelism of two consecutive layers with a pointwise function between them: the first kernel is split over
# its outputs, the second over its inputs. Activations between them stay on their device, and one all-reduce follows
# the second layer (arXiv:1909.08053, section 3).
RULES: Rules = (
    (r"(qkv|to_[qkv]|[qkv]_proj|fc1|ff/proj_in|conv1|linear_1)/kernel$", ("fsdp", "tensor")),
    (r"(attn/proj|attn_out|to_out|out_proj|fc2|proj_out|conv2|linear_2)/kernel$", ("tensor", "fsdp")),
)


def make_mesh(*, data: int = -1, fsdp: int = 1, tensor: int = 1, devices: int | None = None) -> Mesh | AbstractMesh:
    """A mesh over all devices with axes data, fsdp and tensor. One size may be -1: all remaining devices.

    A batch is split over data and fsdp, parameters over fsdp and tensor, see `state_sharding`. With `devices` the mesh
    is abstract and has this number of devices: it serves to plan shapes and shardings, and holds no arrays.

    Raises ValueError unless the product of the sizes is the number of devices.
    """
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    abstract, devices = devices is not None, devices or jax.device_count()
    for name, size in sizes.items():
        if size < 1 and size != -1:
            raise ValueError(f"mesh {name}={size}: must be at least 1, or -1 for all remaining devices")
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ValueError(f"mesh {' and '.join(free)} are -1: only one size may be -1")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if devices % fixed or (not free and fixed != devices):
        raise ValueError(f"mesh {sizes} does not fit: its sizes must multiply to the {devices} devices")
    shape = tuple(devices // fixed if size == -1 else size for size in sizes.values())
    # Explicit axes, the default, do not support convolutions with split kernels.
    types = (AxisType.Auto,) * len(AXES)
    return AbstractMesh(shape, AXES, types) if abstract else jax.make_mesh(shape, AXES, axis_types=types)


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of a batch: its first dimension is split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of an array that is replicated on all devices."""
    return NamedSharding(mesh, PartitionSpec())


def process_share(sharding: Sharding, batch_size: int) -> tuple[int, int]:
    """Returns (i, n): this process reads the i-th of n equal parts of each batch with the sharding `sharding`.

    Processes that split only parameters hold the same rows of a batch and read the same part.

    Raises ValueError if the rows of two processes overlap but are not the same.
    """
    rows: dict[int, set[tuple[int, int]]] = {}
    for device, (part, *_) in sharding.devices_indices_map((batch_size,)).items():
        rows.setdefault(device.process_index, set()).add(part.indices(batch_size)[:2])
    parts = sorted({tuple(sorted(ranges)) for ranges in rows.values()})
    if sum(stop - start for part in parts for start, stop in part) != batch_size:
        raise ValueError(
            "rows of the batch on the devices of two processes overlap; choose mesh sizes of which one is a multiple "
            "of the number of devices per process"
        )
    return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def check_batch(mesh: Mesh | AbstractMesh, batch_size: int) -> None:
    """Raises ValueError unless the global batch size is a multiple of the sizes of the data and fsdp axes."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size < 1 or batch_size % shards:
        raise ValueError(
            f"batch_size={batch_size}: must be a positive multiple of {shards}, the devices it is split over "
            f"(mesh data={mesh.shape['data']}, fsdp={mesh.shape['fsdp']})"
        )


def state_sharding(
    mesh: Mesh | AbstractMesh, abstract_state: Any, rules: Rules = RULES, min_size: int = 2**14
) -> PyTree[NamedSharding]:
    """The shardings of a train state, as a pytree of its structure.

    The path of a parameter is "group/block/kernel". The first rule whose regular expression matches somewhere in the
    path gives the mesh axes of the last dimensions, for example `("attention/.*/kernel", ("fsdp", "tensor"))`. Without
    a rule, the largest dimension that is a multiple of the fsdp axis is split over it, and of the other dimensions the
    largest multiple of the tensor axis over that. A dimension that is not a multiple of its axis is not split, and
    arrays with fewer than `min_size` elements are replicated. Other arrays of the state are sharded like the parameter
    if their path ends with its path and their shape is the same (EMA, optimizer moments), and replicated otherwise.

    Args:
      mesh: from `make_mesh`.
      abstract_state: a pytree with an attribute `params`; its leaves have shapes (`jax.eval_shape`).
      rules: pairs of a regular expression and axes, None for a dimension that is not split.
      min_size: least number of elements of an array that is split.

    Raises ValueError, naming the parameter, for a rule with more axes than dimensions, or an unknown axis.
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
    """The key path of a leaf as "group/block/kernel"."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _parameter_spec(
    mesh: Mesh | AbstractMesh, path: str, shape: tuple[int, ...], rules: Rules, min_size: int
) -> PartitionSpec:
    if math.prod(shape) < min_size:
        return PartitionSpec()
    axes = next((_of_rule(mesh, path, shape, *rule) for rule in rules if re.search(rule[0], path)), None)
    if axes is None:
        axes = [None] * len(shape)
        for name in ("fsdp", "tensor"):
            free = [i for i, size in enumerate(shape) if axes[i] is None and size % mesh.shape[name] == 0]
            if free and mesh.shape[name] > 1:
                axes[max(free, key=lambda i: shape[i])] = name
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def _of_rule(
    mesh: Mesh | AbstractMesh, path: str, shape: tuple[int, ...], pattern: str, axes: Sequence[str | None]
) -> list[str | None]:
    where = f"sharding rule {pattern!r} -> {tuple(axes)} for {path} of shape {shape}"
    if len(axes) > len(shape):
        raise ValueError(f"{where}: at most {len(shape)} axes fit")
    for name in axes:
        if name is not None and name not in mesh.shape:
            raise ValueError(f"{where}: unknown axis {name!r}, allowed are {', '.join(mesh.shape)}")
    aligned = [None] * (len(shape) - len(axes)) + list(axes)
    sizes = [mesh.shape[name] if name else 1 for name in aligned]
    return [
        name if parts > 1 and size % parts == 0 else None
        for name, parts, size in zip(aligned, sizes, shape, strict=True)
    ]
