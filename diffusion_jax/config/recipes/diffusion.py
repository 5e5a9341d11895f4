"""The recipe of `systems.Diffusion`, diffusion models, and what other recipes share with it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax import parameterizations, systems
from diffusion_jax.config import fits, names
from diffusion_jax.config.parts import Network, Parts
from diffusion_jax.config.recipes.recipe import SAMPLING, TRAINING, Recipe, check_likelihood_levels
from diffusion_jax.config.sections import ConfigError, construct, lookup
from diffusion_jax.networks.conditions import NO_RATES
from diffusion_jax.systems import augmentation
from diffusion_jax.types import Params, needs_of
from diffusion_jax.weights.public import component_of

_VIEW_TIME = 0.1  # time t of the score in pictures of points


def build(parts: Parts) -> systems.Diffusion:
    """The diffusion system of a config. Raises ConfigError."""
    return construct({"diffusion": functools.partial(diffusion, parts)}, "system", parts.config.system)


def diffusion(
    parts: Parts,
    cond_dropout: float = 0.0,
    cond_dropouts: Mapping[str, float] = NO_RATES,
    augment: float = 0.0,
) -> systems.Diffusion:
    """The diffusion system of `parts`, for examples of `parts.spec`. Keywords are config.system. Raises ConfigError."""
    fits.check_one_time(parts.config)
    return denoising(parts, cond_dropout, cond_dropouts, augment)


def denoising(
    parts: Parts,
    cond_dropout: float = 0.0,
    cond_dropouts: Mapping[str, float] = NO_RATES,
    augment: float = 0.0,
    network: Network | None = None,
) -> systems.Diffusion:
    """As `diffusion`, and the network may read two times, as that of a flow map does, or be another than that of
    `parts`. Raises ConfigError."""
    config, process, param, network = parts.config, parts.process, parts.parameterization, network or parts.network()
    make_loss = lookup(names.LOSSES, "loss.name", config.loss.name)
    fits.check_discrete(config, {"parameterization": param, "loss": make_loss}, process)
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
    likelihood, learned = parts.likelihood, needs_of(loss).learned_variance
    drawn, weights = parts.times_of_training()
    fits.check_training(config, process=process, param=param, loss=loss, drawn=drawn, weights=weights)
    fits.check_likelihood(config, process=process, param=param, likelihood=likelihood)
    fits.check_augmentation(config, augment)
    return systems.Diffusion(
        loss_fn=loss,
        augment=functools.partial(augmentation.augment, probability=augment) if augment else None,
        likelihood=likelihood,
        learned_variance=learned,
        resampler=parts.resampler,
        **sampler(parts, network, cond_dropout, cond_dropouts, learned_variance=learned, likelihood=likelihood),
    )


def check_no_resampler(parts: Parts, model: systems.Diffusion) -> None:
    """Raises ConfigError for times that follow past losses, in systems that keep no statistics of these."""
    if model.resampler is not None:
        raise ConfigError(
            f"config.times.name={parts.config.times.name!r} is not supported by config.system.name="
            f"{parts.config.system.name!r}, which keeps no statistics of past losses"
        )


def sampler(
    parts: Parts,
    network: Network,
    cond_dropout: float = 0.0,
    cond_dropouts: Mapping[str, float] = NO_RATES,
    *,
    learned_variance: bool = False,
    likelihood: Callable | None = None,
) -> dict[str, Any]:
    """The fields of `systems.Diffusion` that say what the network is and how it is sampled, not how it is trained.

    They are those of every system that draws samples with the `network` of `parts`. Raises ConfigError if the parts do
    not fit each other.
    """
    config, process, param = parts.config, parts.process, parts.parameterization
    times = fits.sampling_times(config, process, parts.grid)
    fits.check_sampling(config, process=process, param=param, solver=parts.solver, guidance=parts.guidance, times=times)
    fits.check_outputs(
        config,
        parts.spec.shape,
        network.init,
        network.apply,
        network.conditions,
        {"solver": parts.solver, "evaluation.likelihood": likelihood, "times": parts.resampler},
        learned_variance=learned_variance,
    )
    fits.check_guidance(config, parts.guidance, network.conditions, cond_dropout, cond_dropouts, parts.spec.shape)
    fits.check_editing(config, parts.editing, parts.spec, network.conditions, process, parts.solver, times)
    return dict(
        init_network=network.init,
        apply=network.apply,
        process=process,
        param=param,
        network_conditions=network.conditions,
        cond_dropout=cond_dropout,
        cond_dropouts=cond_dropouts,
        embed=network.embed,
        guidance=parts.guidance,
        editing=parts.editing,
        threshold=parts.threshold,
        solver=parts.solver,
        grid=parts.grid,
        steps=config.sampling.steps,
        shape=parts.spec.shape,
        modality=parts.spec.modality,
        batch_size=config.sampling.batch_size,
        denoise=config.sampling.denoise,
        networks={component_of(network.placed.name): network.placed},
        activations=network.features,
    )


def score(system: systems.Diffusion, params: Params) -> Callable:
    """The learned score at t = 0.1, as a function of points, for pictures."""
    D, t = system.denoiser(params, None), jnp.float32(_VIEW_TIME)
    return jax.jit(lambda x: parameterizations.score(system.process, D, x, t))


RECIPE = Recipe(
    build=build,
    reads=TRAINING | SAMPLING | {"evaluation.likelihood"},
    check=check_likelihood_levels,
    views={"score": score},
    role="denoiser",
)
