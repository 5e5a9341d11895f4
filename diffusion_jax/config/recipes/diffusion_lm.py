"""The recipe of `systems.DiffusionLM`: Gaussian diffusion of learned embeddings of tokens."""

from __future__ import annotations

import functools

from diffusion_jax import systems
from diffusion_jax.config import data
from diffusion_jax.config.parts import Parts, no_likelihood
from diffusion_jax.config.recipes.diffusion import check_no_resampler, diffusion
from diffusion_jax.config.recipes.recipe import SAMPLING, TRAINING, Recipe
from diffusion_jax.config.sections import ConfigError, construct, refusal
from diffusion_jax.types import Spec


def build(parts: Parts) -> systems.DiffusionLM:
    """The Diffusion-LM of a config. Raises ConfigError."""
    return construct({"diffusion_lm": functools.partial(diffusion_lm, parts)}, "system", parts.config.system)


def diffusion_lm(
    parts: Parts, embedding_size: int = 16, first: float = 5e-4, clamp: bool = True, num_times: int = 64
) -> systems.DiffusionLM:
    """The model of `parts`. Keywords are config.system: the width of the embeddings, and fields of the system.

    Raises ConfigError for data that is not tokens, and for guidance, editing or a likelihood.
    """
    if not parts.spec.values:
        raise ConfigError(
            f"config.data.name={parts.config.data.name!r} must be tokens, which config.system.name='diffusion_lm' "
            "embeds; choose 'text'"
        )
    for field, section in (("guidance", parts.config.guidance), ("editing", parts.config.editing)):
        if section.name != "none":
            raise ConfigError(
                f"config.{field}.name={section.name!r} must be 'none': config.system.name='diffusion_lm' draws tokens"
            )
    no_likelihood(parts.config, "config.system.name='diffusion_lm' has a bound of its own, held_out_bits_per_token")
    if embedding_size < 1:
        raise ConfigError(f"config.system.embedding_size={embedding_size} must be at least 1")
    with refusal("config.data"):
        pad = data.facts(parts.config).get("pad")
    model = diffusion(parts.at(Spec((*parts.spec.shape, embedding_size))))
    check_no_resampler(parts, model)
    with refusal("config.system"):
        return systems.DiffusionLM(
            diffusion=model, spec=parts.spec, first=first, clamp=clamp, num_times=num_times, pad=pad
        )


RECIPE = Recipe(build=build, reads=TRAINING | SAMPLING | {"evaluation.likelihood"})
