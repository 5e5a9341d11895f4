"""The recipe of `systems.SeriesDiffusion`: imputation and forecasting of time series."""

from __future__ import annotations

import functools

from diffusion_jax import systems
from diffusion_jax.config.parts import Parts
from diffusion_jax.config.recipes.diffusion import check_no_resampler, diffusion
from diffusion_jax.config.recipes.recipe import SAMPLING, TRAINING, Recipe
from diffusion_jax.config.sections import ConfigError, construct, lookup, refusal
from diffusion_jax.guidance.observation import KNOWN, observed
from diffusion_jax.losses import targets as patterns
from diffusion_jax.systems.scaling import REFERENCES, SCALINGS

_TARGETS = {"random": patterns.random, "historical": patterns.historical, "mix": patterns.mix}


def build(parts: Parts) -> systems.SeriesDiffusion:
    """The model of a config. Raises ConfigError."""
    section = parts.config.system
    return construct({section["name"]: functools.partial(series_diffusion, parts)}, "system", section)


def series_diffusion(
    parts: Parts,
    targets: str = "forecast",
    horizon: int = 0,
    missing: float = 0.0,
    scaling: str = "none",
    reference: str = "none",
) -> systems.SeriesDiffusion:
    """The model of `parts`. Keywords are config.system.

    `targets` are the values that training hides: "forecast", the last `horizon` steps, "random", "historical" or
    "mix", see `losses.targets`. In held-out windows the last `horizon` steps are hidden, or with horizon 0 the
    fraction `missing` of the values. `scaling` is one of `systems.scaling.SCALINGS`, and `reference` one of its
    REFERENCES. Raises ConfigError.
    """
    shape = of_series(parts)
    table = {"forecast": patterns.forecast(horizon), **_TARGETS}
    chosen = lookup(table, "system.targets", targets)
    with refusal("config.system"):
        operator = observed(shape, horizon, missing)
    if targets == "forecast" and not horizon:
        raise ConfigError("config.system.targets='forecast' needs config.system.horizon, the steps that are forecast")
    if (horizon > 0) == (missing > 0):
        raise ConfigError(
            f"config.system.horizon={horizon} and config.system.missing={missing}: one of them says what of a held-out "
            "window is hidden, and the other must be 0"
        )
    if parts.config.loss.name != "denoising":
        raise ConfigError(f"config.loss.name={parts.config.loss.name!r} must be 'denoising', which takes a mask")
    model = diffusion(parts)
    check_no_resampler(parts, model)
    if KNOWN not in model.network_conditions and targets != "forecast":
        raise ConfigError(
            f"config.system.targets={targets!r} needs a network that reads what is known; an unconditional one is "
            "scaled by the history, config.system.targets='forecast'"
        )
    chosen_scaling = lookup(SCALINGS, "system.scaling", scaling)
    chosen_reference = lookup(REFERENCES, "system.reference", reference)
    with refusal(f"config.system.reference={reference!r}"):
        return systems.SeriesDiffusion(
            diffusion=model,
            operator=operator,
            targets=chosen,
            scaling=chosen_scaling,
            reference=chosen_reference,
        )


def of_series(parts: Parts) -> tuple[int, int]:
    """(length, channels) of the data. Raises ConfigError unless it is of series."""
    if parts.spec.modality != "series":
        raise ConfigError(
            f"config.system.name={parts.config.system.name!r} needs series, config.data.name='series'; "
            f"config.data.name={parts.config.data.name!r} has examples of modality {parts.spec.modality!r}"
        )
    return parts.spec.shape


RECIPE = Recipe(build=build, reads=TRAINING | SAMPLING, role="denoiser")
