"""The recipes of `systems.FlowMapModel`: MeanFlow and shortcut models."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion_jax import systems
from diffusion_jax.config.names import LABELS
from diffusion_jax.config.parts import Parts
from diffusion_jax.config.recipes.diffusion import denoising
from diffusion_jax.config.recipes.recipe import SAMPLING, TRAINING, Recipe, check_likelihood_levels
from diffusion_jax.config.sections import ConfigError, construct, lookup
from diffusion_jax.losses import flow_map as losses
from diffusion_jax.types import Process, needs_of

_OWN = ("cond_dropout", "target_rate")  # keys of config.system that are not the objective's


def _build(parts: Parts, *, make: Callable[..., losses.Objective], derivative: bool) -> systems.FlowMapModel:
    section = parts.section("system")
    name = section["name"]
    objective = construct({name: make}, "system", {key: section[key] for key in section if key not in _OWN})
    own = {key: section[key] for key in _OWN if key in section}
    if "target_rate" in own and not objective.averaged:
        raise ConfigError(f"config.system.target_rate={own['target_rate']!r}: {name} has no target network")
    _check_path(parts)
    _check_network(parts, derivative)
    _check_sampling(parts)
    model = construct({name: functools.partial(_model, parts)}, "system", {"name": name, **own}, objective=objective)
    guided = section.get("omega", 1.0) != 1 or section.get("kappa", 0.0) != 0
    if guided and not model.network_conditions:
        raise ConfigError(
            f"config.system.omega={section.get('omega', 1.0)}, kappa={section.get('kappa', 0.0)} guide towards a "
            "condition, and this network reads none: set config.network.num_classes, for example"
        )
    if guided and not model.cond_dropout:
        raise ConfigError(
            "config.system.cond_dropout=0 must be positive for config.system.omega and kappa: they guide away from the "
            "null condition, which the network would never have seen"
        )
    return model


def _model(
    parts: Parts, *, objective: losses.Objective, cond_dropout: float = 0.0, target_rate: float = 0.999
) -> systems.FlowMapModel:
    model = denoising(parts, cond_dropout=cond_dropout)
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    label = LABELS[parts.config.parameterization.get("label", "time")]
    return systems.FlowMapModel(**fields, objective=objective, times=parts.times, label=label, target_rate=target_rate)


def _check_path(parts: Parts) -> None:
    """Raises ConfigError unless paths are straight, the network predicts the velocity, and times are not weighted."""
    config = parts.config
    name = parts.section("system")["name"]
    if config.process.name != "rectified_flow":
        raise ConfigError(
            f"config.process.name={config.process.name!r} must be 'rectified_flow' for config.system.name={name!r}: "
            "a mean velocity of x is one along straight paths, as those of x / (alpha + sigma) are of any other process"
        )
    if config.parameterization.name != "velocity":
        raise ConfigError(
            f"config.parameterization.name={config.parameterization.name!r} must be 'velocity' for config.system.name="
            f"{name!r}, whose network predicts mean velocities"
        )
    label = config.parameterization.get("label", "time")
    if lookup(LABELS, "parameterization.label", label) and not _label_of_gaps(label, parts.process):
        raise ConfigError(
            f"config.parameterization.label={label!r} must be 'unit_time' or 'time' for config.system.name={name!r}: "
            "it labels gaps between two times too, and a gap may be 0"
        )
    if parts.resampler is not None or not np.all(parts.times_of_training()[1] == 1):
        raise ConfigError(
            f"config.times.name={config.times.name!r} draws times that are weighted; config.system.name={name!r} draws "
            "two for each example and needs others, such as uniform or logit_normal"
        )
    if needs_of(parts.weighting) and config.weighting.name != "velocity_matching":
        raise ConfigError(
            f"config.weighting.name={config.weighting.name!r} must be 'velocity_matching' for config.system.name="
            f"{name!r}: held-out examples are evaluated by the error of the velocity"
        )
    if config.loss.name != "denoising":
        raise ConfigError(
            f"config.loss.name={config.loss.name!r} must be 'denoising': config.system.name={name!r} is the loss, and "
            "this one evaluates held-out examples"
        )


def _label_of_gaps(label: str, process: Process) -> bool:
    return label in ("unit_time", "time") and float(LABELS[label](process, jnp.float32(0))) == 0


def _check_network(parts: Parts, derivative: bool) -> None:
    """Raises ConfigError unless the network reads two times and, for a `derivative` in time, can be differentiated."""
    config = parts.config
    network, name = config.network, parts.section("system")["name"]
    if not network.get("gap", False):
        raise ConfigError(
            f"config.network.gap must be True for config.system.name={name!r}: its network reads two times; "
            f"config.network.name may be mlp or dit, and is {network.name!r}"
        )
    implementation = network.get("attention_implementation")
    if derivative and implementation not in (None, "xla"):
        raise ConfigError(
            f"config.network.attention_implementation={implementation!r} has no forward-mode derivative, by which "
            f"config.system.name={name!r} is trained; it must be 'xla'. config.system.name='shortcut' needs none"
        )
    if derivative and config.training.dtype == "bfloat16":
        raise ConfigError(
            f"config.training.dtype='bfloat16' must be 'float32' for config.system.name={name!r}: the derivative in "
            "time of a network of so few digits is mostly rounding. config.system.name='shortcut' needs none"
        )


def _check_sampling(parts: Parts) -> None:
    """Raises ConfigError for what changes the denoiser, and not the mean velocity that the solver flow_map uses."""
    config = parts.config
    if not parts.solver.needs.flow_map:
        return
    for field, section in (("guidance", config.guidance), ("sampling.threshold", config.sampling.threshold)):
        if section.name != "none":
            raise ConfigError(
                f"config.{field}.name={section.name!r} must be 'none' for config.solver.name={config.solver.name!r}: "
                "it changes the denoiser, and a flow map has none between its two times. Other solvers, such as heun, "
                "take it"
            )


def _recipe(**options: Any) -> Recipe:
    return Recipe(
        build=functools.partial(_build, **options),
        reads=TRAINING | SAMPLING | {"evaluation.likelihood"},
        check=check_likelihood_levels,
        role="denoiser",
    )


MEAN_FLOW = _recipe(make=losses.mean_flow, derivative=True)
SHORTCUT = _recipe(make=losses.shortcut, derivative=False)
