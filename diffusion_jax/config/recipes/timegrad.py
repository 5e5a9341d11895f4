"""The recipe of `systems.TimeGrad`: autoregressive forecasts of time series."""

from __future__ import annotations

import functools

from diffusion_jax import systems
from diffusion_jax.config.parts import Parts
from diffusion_jax.config.recipes.diffusion import check_no_resampler, diffusion
from diffusion_jax.config.recipes.recipe import SAMPLING, TRAINING, Recipe
from diffusion_jax.config.recipes.series_diffusion import of_series
from diffusion_jax.config.sections import ConfigError, construct, lookup, refusal
from diffusion_jax.guidance.observation import observed
from diffusion_jax.networks.functional import init_methods
from diffusion_jax.networks.timegrad import SeriesEncoder
from diffusion_jax.systems.scaling import SCALINGS
from diffusion_jax.types import Spec


def build(parts: Parts) -> systems.TimeGrad:
    """The model of a config. Raises ConfigError."""
    return construct({"timegrad": functools.partial(timegrad, parts)}, "system", parts.config.system)


def timegrad(
    parts: Parts,
    horizon: int = 24,
    lags: tuple[int, ...] = (1, 24),
    cell: str = "lstm",
    cells: int = 40,
    num_layers: int = 2,
    scaling: str = "mean",
) -> systems.TimeGrad:
    """The model of `parts`. Keywords are config.system.

    The last `horizon` steps of a window are forecast. The encoder has `num_layers` layers of `cells` cells of the kind
    `cell` and reads the values at `lags`; its output is as wide as config.network.vector_dim. Raises ConfigError.
    """
    length, channels = of_series(parts)
    with refusal("config.system"):
        operator = observed((length, channels), horizon)
    if horizon < 1:
        raise ConfigError(f"config.system.horizon={horizon} must be at least 1, the steps that are forecast")
    if not lags or min(lags) < 1:
        raise ConfigError(f"config.system.lags={lags!r} must be at least 1 each: a step is drawn from those before it")
    if max(lags) > length - horizon:
        raise ConfigError(
            f"config.system.lags={lags!r}: the history of {length - horizon} steps, config.data.length={length} less "
            f"config.system.horizon={horizon}, must have the largest lag"
        )
    for field, value in (("cells", cells), ("num_layers", num_layers)):
        if value < 1:
            raise ConfigError(f"config.system.{field}={value} must be at least 1")
    for field in ("loss", "guidance", "editing"):
        usual = "denoising" if field == "loss" else "none"
        if parts.config[field].name != usual:
            raise ConfigError(f"config.{field}.name={parts.config[field].name!r} must be {usual!r} for 'timegrad'")
    step = parts.at(Spec((channels,)))
    model = diffusion(step)
    check_no_resampler(parts, model)
    if set(model.network_conditions) != {"vector"}:
        raise ConfigError(
            f"config.network.name={parts.config.network.name!r} reads "
            f"{', '.join(model.network_conditions) or 'nothing'}; it must read the encoder's state, "
            "config.network.vector_dim"
        )
    width = model.network_conditions["vector"].spec.shape[0]

    def make(rngs):
        return SeriesEncoder(len(lags) * channels, width, cells, num_layers, cell, rngs=rngs)

    with refusal("config.system"):
        init, (encode,) = init_methods(make, ("__call__",), parts.config.training.dtype)
    return systems.TimeGrad(
        diffusion=model,
        init_encoder=init,
        encode=encode,
        state=(num_layers, 2, cells),
        lags=tuple(lags),
        operator=operator,
        scaling=lookup(SCALINGS, "system.scaling", scaling),
    )


RECIPE = Recipe(build=build, reads=TRAINING | SAMPLING)
