"""The recipe of `systems.VDM`: a network and its noise schedule trained on the variational bound."""

from __future__ import annotations

from diffusion_jax import systems
from diffusion_jax.config.parts import Parts
from diffusion_jax.config.recipes.diffusion import diffusion
from diffusion_jax.config.recipes.recipe import SAMPLING, Recipe, check_grey_levels, check_likelihood_levels
from diffusion_jax.config.sections import ConfigError, construct
from diffusion_jax.data import Source


def build(parts: Parts) -> systems.VDM:
    """The variational diffusion model of a config. Its loss, weighting and times are those of the bound."""
    if parts.config.data.get("dequantize", False):
        raise ConfigError("config.data.dequantize=True: the bound of VDM is that of grey levels; it must be false")
    given = dict(diffusion=diffusion(parts), levels=parts.levels)
    return construct({"vdm": systems.VDM}, "system", parts.config.system, **given)


def check(parts: Parts, source: Source) -> None:
    """Refuses data off its grey levels, of which the bound is."""
    check_grey_levels("data (for config.system.name='vdm')", source, parts.levels)
    check_likelihood_levels(parts, source)


RECIPE = Recipe(
    build=build,
    reads=SAMPLING | {"process", "parameterization", "network", "evaluation.likelihood"},
    check=check,
)
