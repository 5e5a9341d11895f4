"""The weights of LPIPS from PyTorch files."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from diffusion_jax.networks.lpips import LAYERS
from diffusion_jax.weights.torch_file import read_torch_file


def load_lpips(vgg: str | os.PathLike, lin: str | os.PathLike) -> dict[str, Any]:
    """Parameters of `networks.lpips.LPIPS`, as NumPy arrays.

    `vgg` is torchvision's VGG-16 of ImageNet (`vgg16-397923af.pth`), whose classifier is not used; `lin` the linear
    layers of LPIPS version 0.1 (`vgg.pth` of the `lpips` package and of taming-transformers).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it cannot be read (see `read_torch_file`), or entries are missing or of another shape; all are named.
    """
    wanted, convs = {}, {}
    position, c_in = 0, 3
    for block in LAYERS:
        for width in block:
            convs[str(len(convs))] = f"features.{position}"
            wanted[f"features.{position}.weight"], wanted[f"features.{position}.bias"] = (width, c_in, 3, 3), (width,)
            position, c_in = position + 2, width
        position += 1  # the pooling
    weights = _arrays(vgg, wanted)
    lins = _arrays(lin, {f"lin{i}.model.1.weight": (1, block[-1], 1, 1) for i, block in enumerate(LAYERS)})
    return {
        "convs": {
            i: {"kernel": weights[f"{name}.weight"].transpose(2, 3, 1, 0), "bias": weights[f"{name}.bias"]}
            for i, name in convs.items()
        },
        "lins": {str(i): lins[f"lin{i}.model.1.weight"].reshape(-1) for i in range(len(LAYERS))},
    }


def _arrays(path: str | os.PathLike, wanted: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    state = read_torch_file(path)
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a state dict")
    problems = [
        f"{name} is {'missing' if name not in state else f'of shape {np.shape(state[name])}, not {shape}'}"
        for name, shape in wanted.items()
        if np.shape(state.get(name)) != shape
    ]
    if problems:
        raise ValueError(f"{path} does not hold these weights of LPIPS: {'; '.join(problems)}")
    return {name: np.asarray(state[name], np.float32) for name in wanted}
