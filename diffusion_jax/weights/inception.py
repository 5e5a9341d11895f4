"""The weights of FID's InceptionV3 from a PyTorch file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from flax import nnx

from diffusion_jax.networks.inception import Inception
from diffusion_jax.weights.torch_file import read_torch_file

_EPSILON = 1e-3  # of the batch norms
_NORM = ("weight", "bias", "running_mean", "running_var")
_LISTED = 4  # names of each kind in an error message


def load_inception(path: str | os.PathLike) -> dict[str, Any]:
    """Parameters of `networks.inception.Inception` from the state dict in `path`, as NumPy arrays.

    The file is `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid, or
    `weights-inception-2015-12-05-6726825d.pth` of torch-fidelity. A batch norm becomes part of the convolution
    before it, W' = W gamma / sqrt(var + 0.001) and b' = beta - mean gamma / sqrt(var + 0.001), in float64.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it cannot be read (see `read_torch_file`), or has missing, unexpected or wrongly shaped entries;
        all of them are counted, and the first of each kind named.
    """
    state = read_torch_file(path)
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a state dict")
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Inception(rngs=nnx.Rngs(0)))))
    modules = dict(_modules(shapes, ""))
    _check(path, state, modules)
    folded = {name: _folded(state, name) for name in modules if name != "fc"}
    folded["fc"] = {"kernel": np.asarray(state["fc.weight"], np.float32).T}
    params: dict[str, Any] = {}
    for name, arrays in folded.items():
        *parents, last = name.split(".")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = arrays
    return params


def _modules(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape of the kernel) of every convolution and of the last layer."""
    for name, node in tree.items():
        if "kernel" in node:
            yield prefix + name, node["kernel"].shape
        else:
            yield from _modules(node, f"{prefix}{name}.")


def _check(path: str | os.PathLike, state: dict, modules: dict[str, tuple[int, ...]]) -> None:
    expected = {"fc.bias": (modules["fc"][1],)}
    for name, shape in modules.items():
        expected[f"{name}.weight"] = (*shape[:1:-1], *shape[:2]) if len(shape) == 4 else shape[::-1]
        if name != "fc":
            expected |= {f"{_norm(name)}.{part}": shape[-1:] for part in _NORM}
    counted = {f"{_norm(name)}.num_batches_tracked" for name in modules}  # newer files count the batches of training
    problems = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [str(name) for name in state if name not in expected and name not in counted],
        "of another shape": [
            f"{name} {np.shape(state[name])} for {shape}"
            for name, shape in expected.items()
            if name in state and np.shape(state[name]) != shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''}"
            for kind, names in problems.items()
            if names
        )
        raise ValueError(f"{path} does not hold the weights of FID's Inception network ({listed})")


def _norm(convolution: str) -> str:
    return convolution.removesuffix("conv") + "bn"


def _folded(state: dict, name: str) -> dict[str, np.ndarray]:
    gamma, beta, mean, var = (np.asarray(state[f"{_norm(name)}.{part}"], np.float64) for part in _NORM)
    scale = gamma / np.sqrt(var + _EPSILON)
    kernel = np.asarray(state[f"{name}.weight"], np.float64).transpose(2, 3, 1, 0) * scale
    return {"kernel": kernel.astype(np.float32), "bias": (beta - mean * scale).astype(np.float32)}
