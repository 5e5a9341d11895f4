"""The recipe of `systems.CloudCompletion`: completion of point clouds."""

from __future__ import annotations

import dataclasses
import functools

from diffusion_jax import systems
from diffusion_jax.config import fits
from diffusion_jax.config.parts import Parts
from diffusion_jax.config.recipes.diffusion import check_no_resampler, diffusion
from diffusion_jax.config.recipes.recipe import SAMPLING, TRAINING, Recipe
from diffusion_jax.config.sections import ConfigError, check_type, construct, refusal
from diffusion_jax.systems.cloud_completion import half_space, unknown


def build(parts: Parts) -> systems.CloudCompletion:
    """The model of a config. Raises ConfigError."""
    return construct({"cloud_completion": functools.partial(completion, parts)}, "system", parts.config.system)


def completion(parts: Parts, given: int = 128, cond_dropout: float = 0.0) -> systems.CloudCompletion:
    """The model of `parts`. Keywords are config.system: `given` points of each cloud are not drawn. ConfigError."""
    config = parts.config
    if parts.spec.modality != "cloud":
        raise ConfigError(
            f"config.system.name='cloud_completion' completes point clouds, config.data.name='clouds'; "
            f"config.data.name={config.data.name!r} has examples of modality {parts.spec.modality!r}"
        )
    check_type("system.given", given, "int")
    with refusal("config.system.given"):
        operator = half_space(parts.spec.shape, given)
    model = diffusion(parts, cond_dropout)
    check_no_resampler(parts, model)
    fits.check_projection(config, model.guidance, model.threshold)
    with refusal(f"config.network.name={config.network.name!r}"):
        return systems.CloudCompletion(diffusion=dataclasses.replace(model, project=unknown), operator=operator)


RECIPE = Recipe(build=build, reads=TRAINING | SAMPLING, role="denoiser")
