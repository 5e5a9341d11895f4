"""The recipe of `systems.SuperResolution`: upsamplers with conditioning augmentation, and cascades of runs."""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from diffusion_jax.config.parts import Parts
from diffusion_jax.config.recipes.diffusion import diffusion
from diffusion_jax.config.recipes.recipe import SAMPLING, TRAINING, Recipe
from diffusion_jax.config.sections import ConfigError, check_type, construct
from diffusion_jax.networks.conditions import NO_RATES, Conditions, structure
from diffusion_jax.systems.super_resolution import LEVEL, Base, SuperResolution


def build(parts: Parts) -> SuperResolution:
    """The super-resolution model of a config. Raises ConfigError."""
    return construct({"super_resolution": functools.partial(super_resolution, parts)}, "system", parts.config.system)


def super_resolution(
    parts: Parts,
    levels: tuple[float, ...] = (0.0, 0.0),
    level: float = 0.0,
    blur: tuple[float, ...] = (0.0, 0.0),
    base: str = "",
    base_config: str = "",
    cond_dropout: float = 0.0,
    cond_dropouts=NO_RATES,
    augment: float = 0.0,
) -> SuperResolution:
    """The super-resolution model of `parts`. Keywords are config.system; `base` is the work directory of the run that
    draws the smaller images, "" where config.sampling.cond gives them, and `base_config` the config that trains it.
    Raises ConfigError."""
    if parts.spec.modality != "image":
        raise ConfigError(
            f"config.system.name='super_resolution' enlarges images, and config.data.name={parts.config.data.name!r} "
            f"holds {parts.spec.modality}"
        )
    check_type("system.levels", levels, "tuple")
    if len(levels) != 2:
        raise ConfigError(f"config.system.levels={levels} must be two times, the lowest and the highest level")
    check_type("system.blur", blur, "tuple")
    if len(blur) != 2:
        raise ConfigError(
            f"config.system.blur={blur} must be two standard deviations in pixels, the least and the most"
        )
    model = diffusion(parts, cond_dropout, cond_dropouts, augment)
    power = np.square([float(f(jnp.float32(levels[1]))) for f in (model.process.alpha, model.process.sigma)]).sum()
    if levels[1] > 0 and abs(power - 1) > 0.01:
        raise ConfigError(
            f"config.process.name={parts.config.process.name!r} has alpha^2 + sigma^2 = {power:.3g} at the level "
            f"{levels[1]} of config.system.levels; conditioning augmentation needs a variance-preserving process"
        )
    if LEVEL in model.network_conditions:
        # A level says what the image is, so that dropout and guidance keep it.
        kept = {LEVEL: structure(model.network_conditions[LEVEL].spec.shape)}
        model = dataclasses.replace(model, network_conditions=Conditions(kept) | model.network_conditions)
    stage = None
    if base:
        run = parts.trained(base, "config.system.base", role="", config_file=base_config)
        stage = Base(run.system, run.load)
    return construct(
        {"super_resolution": SuperResolution},
        "system",
        dict(name="super_resolution", levels=tuple(levels), level=level, blur=tuple(blur)),
        diffusion=model,
        base=stage,
        networks=model.networks,
    )


RECIPE = Recipe(build=build, reads=TRAINING | SAMPLING, role="")
