"""The recipe of `systems.VariationalDequantization`: learned dequantization noise for a trained diffusion model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from diffusion_jax import systems
from diffusion_jax.config import names
from diffusion_jax.config.parts import Parts
from diffusion_jax.config.recipes.recipe import Recipe, check_grey_levels, check_likelihood_levels
from diffusion_jax.config.sections import ConfigError, construct
from diffusion_jax.config.trained import Trained
from diffusion_jax.data import Source
from diffusion_jax.types import Params
from diffusion_jax.weights.public import component_of


def build(parts: Parts) -> systems.VariationalDequantization:
    """The variational dequantization of a config. config.network is the network of its flow. Raises ConfigError."""
    config, run = parts.config, _model(parts)
    for field, here, there in (
        ("the shape of an example", parts.spec.shape, run.system.makes.shape),
        ("config.data.levels", parts.levels, run.config.data.get("levels", 256)),
    ):
        if here != there:
            raise ConfigError(f"config.system.model={config.system.model!r}: {field} is {there} there and {here} here")
    if config.data.get("dequantize", False) or not run.config.data.get("dequantize", False):
        raise ConfigError(
            "config.data.dequantize must be false here, since the noise is learned, and true in the run of "
            f"config.system.model={config.system.model!r}, which models the density of dequantized data"
        )
    if config.evaluation.likelihood.name not in ("none", "ode"):
        raise ConfigError(
            f"config.evaluation.likelihood.name={config.evaluation.likelihood.name!r} must be 'ode' or 'none': a bound "
            "of grey levels needs no dequantization"
        )
    network = parts.network(channels=2 * parts.spec.shape[-1])
    likelihood = construct(
        names.LIKELIHOODS, "evaluation.likelihood", config.evaluation.likelihood, levels=parts.levels
    )
    section = {key: value for key, value in config.system.items() if key not in ("model", "model_config")}
    return construct(
        {section["name"]: systems.VariationalDequantization},
        "system",
        section,
        init_network=network.init,
        apply=network.apply,
        diffusion=run.system,
        levels=parts.levels,
        likelihood=likelihood,
        networks={component_of(network.placed.name): network.placed},
    )


def _model(parts: Parts) -> Trained:
    section = parts.config.system
    config_file = section.get("model_config", "")
    return parts.trained(section.get("model", ""), "config.system.model", role="denoiser", config_file=config_file)


def stands_on(parts: Parts) -> Mapping[str, Callable[[], Params]]:
    """The frozen diffusion model."""
    return {"frozen/diffusion": _model(parts).load}


def check(parts: Parts, source: Source) -> None:
    """Raises ConfigError unless the data is on grey levels."""
    check_grey_levels("data (for config.system.name='variational_dequantization')", source, parts.levels)
    check_likelihood_levels(parts, source)


RECIPE = Recipe(
    build=build,
    reads=frozenset({"network", "evaluation.likelihood"}),
    stands_on=stands_on,
    check=check,
)
