"""The user's own image and mask of config.editing, as conditions of samples."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np

from diffusion_jax.config.sections import ConfigError, refusal
from diffusion_jax.data import images, regions
from diffusion_jax.guidance.matched_noise import NOISY
from diffusion_jax.networks.conditions import Conditions


def weights(conditions: Conditions, num: int) -> dict[str, np.ndarray]:
    """The condition "weight" of `num` evenly spaced points between two images, or of the midpoint; {} if not read."""
    if "weight" not in conditions or "other" not in conditions:
        return {}
    return {"weight": np.linspace(0, 1, num, dtype=np.float32) if num > 1 else np.float32([0.5])}


def given(files: Mapping[str, str], conditions: Conditions, cond: str) -> dict[str, np.ndarray]:
    """The conditions that config.editing names in `files`, one row each, such as {"image": [1, height, width, c]}.

    An image of any size and mode is cut to the largest square and resized. `cond` is config.sampling.cond. Raises
    ConfigError if a file cannot be read or does not fit, or if nothing gives a mask that is needed.
    """
    rows: dict[str, np.ndarray] = {}
    for name, file in files.items():
        if not file:
            continue
        shape = conditions[name].spec.shape
        with refusal(f"config.editing.{'image' if name == NOISY else name}={file!r}"):
            if name == "mask":
                rows[name] = regions.read_mask(file, shape, files.get("image", ""))[None]
                continue
            path = pathlib.Path(file)
            if not path.is_file():
                raise ValueError("it must be an image file")
            if shape[-1] not in (1, 3):
                raise ValueError(f"it is an image of 1 or 3 channels; samples have the shape {shape}")
            if name == NOISY and images.read_image(path).size != (shape[1], shape[0]):
                raise ValueError(
                    f"it must have {shape[0]} x {shape[1]} pixels, as samples have: resizing would change its noise"
                )
            rows[name] = images.from_files(path.parent, path.name, shape)[None]
    if "mask" in files and "mask" in conditions and "mask" not in rows and not cond:
        raise ConfigError(
            "config.editing.mask is empty; give an image file, white where it is painted, or one of "
            f"{', '.join(regions.REGIONS)}; or images and masks in a file, config.sampling.cond=FILE.npz or .json"
        )
    return rows
