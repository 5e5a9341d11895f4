"""Comparisons with PyTorch originals, and what they share: the way from one layout of weights to the other."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def nested(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """{"a.b": array} -> {"a": {"b": array}}."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    return tree


def from_torch(arrays: Mapping[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    """PyTorch's parameters, or their gradients, as parameters of this library.

    `rename` maps the names of modules. Matrices and kernels are transposed, and a "weight" becomes the "kernel" of a
    layer, the "embedding" of a table, the "scale" of a norm, or stays a "weight" (Fourier frequencies).
    """
    result = {}
    for name, tensor in arrays.items():
        module, leaf = name.rsplit(".", 1)
        array = tensor.detach().numpy()
        if leaf == "weight" and array.ndim == 4:
            leaf, array = "kernel", array.transpose(2, 3, 1, 0)
        elif leaf == "weight" and array.ndim == 2 and "embedding" in module.rsplit(".", 1)[-1]:
            leaf = "embedding"
        elif leaf == "weight" and array.ndim == 2:
            leaf, array = "kernel", array.T
        elif leaf == "weight" and "norm" in module.rsplit(".", 1)[-1]:
            leaf = "scale"
        result[f"{rename(module)}.{leaf}"] = array
    return nested(result)


def relative_error(actual: Any, expected: Any) -> float:
    """|actual - expected| / |expected|, in the Euclidean norm."""
    return float(np.linalg.norm(np.asarray(actual) - expected) / np.linalg.norm(expected))
