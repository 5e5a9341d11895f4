"""The recipe of `systems.VDM`, variational diffusion models: network and noise schedule are trained on the bound."""

from __future__ import annotations

from diffusion_jax import systems
from diffusion_jax.config.parts import Parts
from diffusion_jax.config.recipes.diffusion import diffusion
from diffusion_jax.config.recipes.recipe import SAMPLING, Recipe, check_grey_levels, check_likelihood_levels
from diffusion_jax.config.sections import ConfigError, construct
from diffusion_jax.data import Source


def build(parts: Parts) -> systems.VDM:
    """The variational diffusion model of a config; loss, weighting and times follow from it. Raises ConfigError."""
    if parts.config.data.get("dequantize", False):
        raise ConfigError("config.data.dequantize=True must be false: the bound of VDM is for grey levels")
    model = diffusion(parts)
    return construct({"vdm": systems.VDM}, "system", parts.config.system, diffusion=model, levels=parts.levels)


def check(parts: Parts, source: Source) -> None:
    """Raises ConfigError unless the data is on grey levels."""
    check_grey_levels("data (for config.system.name='vdm')", source, parts.levels)
    check_likelihood_levels(parts, source)


RECIPE = Recipe(
    build=build,
    reads=SAMPLING | {"process", "parameterization", "network", "evaluation.likelihood"},
    check=check,
)
