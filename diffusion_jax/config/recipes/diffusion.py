"""The recipe of `systems.Diffusion`: one network, one process, any point on the other axes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import parameterizations, systems
from diffusion_jax.config import checks, names
from diffusion_jax.config.parts import Parts
from diffusion_jax.config.recipes.recipe import SAMPLING, TRAINING, Recipe, check_likelihood_levels
from diffusion_jax.config.sections import construct
from diffusion_jax.networks.conditions import NO_RATES
from diffusion_jax.systems import augmentation
from diffusion_jax.types import Params
from diffusion_jax.weights.public import component_of

_VIEW_TIME = 0.1  # at which a picture of points shows the score


def build(parts: Parts) -> systems.Diffusion:
    """The diffusion system of a config. Raises ConfigError."""
    return construct({"diffusion": functools.partial(diffusion, parts)}, "system", parts.config.system)


def diffusion(
    parts: Parts,
    cond_dropout: float = 0.0,
    cond_dropouts: Mapping[str, float] = NO_RATES,
    augment: float = 0.0,
) -> systems.Diffusion:
    """A diffusion system of examples of `parts.spec`; the keywords are those of config.system. Raises ConfigError."""
    config, process, param = parts.config, parts.process, parts.parameterization
    drawn = parts.times_of_training()
    visited = parts.times_of_sampling()[:-1]  # what happens at the last time depends on the solver
    last = [config.times.t_max] if "t_max" in config.times else []
    likelihood = parts.likelihood
    if config.evaluation.likelihood.name == "ode":
        last += [config.evaluation.likelihood.get("t_min", 1e-5), config.evaluation.likelihood.get("t_max", 1.0)]
    checks.check_coefficients(config, process, param, np.concatenate([drawn, visited, np.float32(last)]))
    network = parts.network()
    learned = config.loss.name in checks.LEARNED_VARIANCE
    checks.check_outputs(
        config, parts.spec.shape, network.init, network.apply, network.conditions, learned_variance=learned
    )
    checks.check_guidance(config, network.conditions, cond_dropout, cond_dropouts)
    checks.check_augmentation(config, augment)
    loss = construct(
        names.LOSSES,
        "loss",
        config.loss,
        apply=network.apply,
        param=param,
        process=process,
        weighting=parts.weighting,
        times=parts.times,
        levels=parts.levels,
    )
    return systems.Diffusion(
        init_network=network.init,
        apply=network.apply,
        process=process,
        param=param,
        loss_fn=loss,
        network_conditions=network.conditions,
        cond_dropout=cond_dropout,
        cond_dropouts=cond_dropouts,
        augment=functools.partial(augmentation.augment, probability=augment) if augment else None,
        embed=network.embed,
        guidance=parts.guidance,
        threshold=parts.threshold,
        solver=parts.solver,
        grid=parts.grid,
        steps=config.sampling.steps,
        shape=parts.spec.shape,
        modality=parts.spec.modality,
        batch_size=config.sampling.batch_size,
        denoise=config.sampling.denoise,
        likelihood=likelihood,
        learned_variance=learned,
        resampler=parts.resampler,
        networks={component_of(network.placed.name): network.placed},
    )


def score(system: systems.Diffusion, params: Params) -> Callable:
    """The learned score at a small time, as a function of points."""
    D, t = system.denoiser(params, None), jnp.float32(_VIEW_TIME)
    return jax.jit(lambda x: parameterizations.score(system.process, D, x, t))


RECIPE = Recipe(
    build=build,
    reads=TRAINING | SAMPLING | {"evaluation.likelihood"},
    check=check_likelihood_levels,
    views={"score": score},
    role="denoiser",
)
