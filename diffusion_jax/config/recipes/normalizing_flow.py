"""The recipe of `systems.NormalizingFlow`: TarFlow and RealNVP."""

from __future__ import annotations

import jax
import numpy as np

from diffusion_jax import systems
from diffusion_jax.config import names
from diffusion_jax.config.parts import Parts
from diffusion_jax.config.recipes.recipe import Recipe, check_dequantized, check_likelihood_levels
from diffusion_jax.config.sections import ConfigError, check_sizes, construct, refusal
from diffusion_jax.networks.functional import conditions_of, init_methods
from diffusion_jax.types import Placed


def build(parts: Parts) -> systems.NormalizingFlow:
    """The normalizing flow of a config. Raises ConfigError."""
    config, spec, network = parts.config, parts.spec, parts.section("network")
    name = network.get("name")
    if name not in names.FLOWS:
        raise ConfigError(
            f"config.network.name={name!r} must be one of {', '.join(names.FLOWS)} for config.system.name="
            f"{config.system.name!r}: it needs a network with an inverse"
        )
    if config.training.dtype == "bfloat16":
        raise ConfigError(
            "config.training.dtype='bfloat16' must be 'float32' for config.system.name="
            f"{config.system.name!r}: the inverse and log |det| of a network of so few digits are mostly rounding"
        )
    check_sizes(names.FLOWS[name], "network", network)

    def make(rngs):
        return construct(names.FLOWS, "network", network, shape=spec.shape, rngs=rngs)

    with refusal("config.training.dtype"):
        init, (forward, invert) = init_methods(make, ("forward", "inverse"), config.training.dtype)
    with refusal(f"config.network ({name})"):
        x = jax.ShapeDtypeStruct((1, *spec.shape), np.float32)
        jax.eval_shape(lambda key, x: forward(init(key), x, None), jax.random.key(0), x)
    conditions = conditions_of(make)
    scale = construct(GUIDANCE, "guidance", config.guidance)
    if scale != 1 and not conditions:
        raise ConfigError(
            f"config.guidance.scale={scale} guides towards a class, and this network reads none: set "
            "config.network.num_classes"
        )
    flow = construct(
        {"normalizing_flow": systems.NormalizingFlow},
        "system",
        parts.section("system"),
        init_network=init,
        forward=forward,
        invert=invert,
        shape=spec.shape,
        modality=spec.modality,
        network_conditions=conditions,
        guidance_scale=scale,
        likelihood=construct(
            names.FLOW_LIKELIHOODS, "evaluation.likelihood", config.evaluation.likelihood, levels=parts.levels
        ),
        batch_size=config.sampling.batch_size,
        networks={"flow": Placed(name, {k: v for k, v in network.items() if k != "name"}, ("network",), spec.shape)},
    )
    if scale != 1 and not flow.cond_dropout:
        raise ConfigError(
            "config.system.cond_dropout=0 must be positive for config.guidance: it guides away from the null class, "
            "which the network would never have seen"
        )
    if not flow.noise_std:
        check_dequantized(parts)
    elif parts.likelihood_levels and flow.likelihood:
        raise ConfigError(
            f"config.evaluation.likelihood.name={config.evaluation.likelihood.name!r} is of grey levels under uniform "
            f"noise, and config.system.noise_std={flow.noise_std} is another noise: set "
            "config.evaluation.likelihood.dequantization='none' for the density of the noisy data"
        )
    return flow


def unguided() -> float:
    """The scale of `networks.invertible.guided` that is the conditional flow."""
    return 1.0


def classifier_free(scale: float = 1.0) -> float:
    """The scale of `networks.invertible.guided`."""
    return scale


GUIDANCE = {"none": unguided, "classifier_free": classifier_free}
RECIPE = Recipe(
    build=build,
    reads=frozenset({"network", "guidance", "evaluation.likelihood"}),
    check=check_likelihood_levels,
    trains_lora=False,
)
