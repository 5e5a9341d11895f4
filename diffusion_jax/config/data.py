"""From config.data to a source of examples that gives what a system reads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.config.sections import ConfigError, construct, refusal
from diffusion_jax.data import images
from diffusion_jax.data.derived import Derived
from diffusion_jax.data.sources import latents
from diffusion_jax.types import Spec


def spec(config: ConfigDict) -> Spec:
    """One example of the data: an image [size, size, channels], a point in the plane [2], or a latent."""
    if config.data.get("name") == "toy":
        return Spec((2,), modality="points")
    if config.data.get("name") == "latents":
        with refusal("config.data"):
            return Spec(latents.read_header(config.data.get("path", ""), config.data.split).shape, modality="latents")
    for key in ("image_size", "channels"):
        if not isinstance(config.data.get(key), int) or config.data[key] < 1:
            raise ConfigError(
                f"config.data.{key}={config.data.get(key)!r} must be a positive integer for images such as those of "
                f"{config.data.get('name')!r}"
            )
    return Spec((config.data.image_size, config.data.image_size, config.data.channels), modality="image")


def source(
    config: ConfigDict,
    wanted: Mapping[str, Spec],
    *,
    tokenize: Callable[[Sequence[str]], np.ndarray] | None = None,
    derive: Derived | None = None,
    evaluation: bool = False,
) -> data.Source:
    """The training split of the data set, or the split that evaluation compares with. Opens files; ConfigError.

    `wanted` is what each example must have, by name, see `types.System.batch`.
    """
    section = {key: value for key, value in config.data.items() if value != ""}
    name = section["name"]
    loaded = construct(
        {name: functools.partial(data.load, name=name)},
        "data",
        section,
        evaluation=evaluation,
        max_tokens=wanted["tokens"].shape[0] if "tokens" in wanted else 0,
        tokenize=tokenize,
        shapes={kind: entry.shape for kind, entry in wanted.items() if kind in images.CONDITIONS},
        derive=derive,
    )
    if loaded.shape != wanted["x"].shape:
        raise ConfigError(f"config.data: {name} holds examples of {loaded.shape}, not {wanted['x'].shape}")
    example = loaded.batch(np.zeros(1, np.int64))
    for condition, entry in wanted.items():
        shape = np.shape(example.get(condition))[1:]
        if condition not in ("x", "label") and (condition not in example or shape != entry.shape):
            raise ConfigError(
                f"config.network needs the condition {condition!r} of shape {entry.shape}, which config.data.name="
                f"{name!r} {'gives as ' + str(shape) if condition in example else 'does not give'}"
            )
    num_classes = wanted["label"].values if "label" in wanted else 0
    if num_classes and (loaded.num_classes > num_classes or not loaded.num_classes):
        raise ConfigError(
            f"config.network.num_classes={num_classes} must be 0 or at least the {loaded.num_classes} classes of {name}"
        )
    return loaded
