"""The recipe of `systems.SpecGrad`: vocoders whose noise has the envelope of the mel spectrogram."""

from __future__ import annotations

import functools

from diffusion_jax import systems
from diffusion_jax.config import data
from diffusion_jax.config.parts import Parts
from diffusion_jax.config.recipes.diffusion import diffusion
from diffusion_jax.config.recipes.recipe import TRAINING, Recipe
from diffusion_jax.config.sections import ConfigError, construct
from diffusion_jax.systems.specgrad import MEL


def build(parts: Parts) -> systems.SpecGrad:
    """The model of a config. Raises ConfigError."""
    config = parts.config
    if parts.spec.modality != "waveform":
        raise ConfigError(
            f"config.system.name='specgrad' needs waveforms, config.data.name='audio' with features='waveform'; "
            f"config.data.name={config.data.name!r} has examples of modality {parts.spec.modality!r}"
        )
    model = diffusion(parts)
    front_end = data.facts(config).get(MEL)
    if MEL not in model.network_conditions or front_end is None:
        raise ConfigError(
            "config.system.name='specgrad' needs a network that reads the mel spectrogram, config.network.num_mels > 0"
        )
    make = functools.partial(systems.SpecGrad, diffusion=model, front_end=front_end, networks=model.networks)
    return construct({"specgrad": make}, "system", config.system)


# Editing, guidance by measurements and thresholds would act on whitened waveforms.
RECIPE = Recipe(build=build, reads=TRAINING | {"solver", "sampling.grid"})
