"""The recipes of `systems.Bridge` (I2SB, DDBM) and `systems.SchroedingerBridge` (DSBM)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import systems
from diffusion_jax.config import fits, names
from diffusion_jax.config.parts import Network, Parts, plain
from diffusion_jax.config.recipes.recipe import Reading, Recipe
from diffusion_jax.config.recipes.recipe import reading as usual_reading
from diffusion_jax.config.sections import ConfigError, check_type, construct
from diffusion_jax.data.derived import degraded
from diffusion_jax.losses import bridge_loss
from diffusion_jax.processes.bridge import Reversed
from diffusion_jax.systems.schroedinger_bridge import DIRECTIONS, SchroedingerBridge
from diffusion_jax.types import BridgeProcess, System

UNPAIRED = "unpaired"  # the data set of two sets without pairs
_NOT_DEGRADED = ("grey", "compressed", "tomography", "k_space", "phase")  # measurements that are no image like x


def build(parts: Parts) -> systems.Bridge:
    """The bridge model of a config. Raises ConfigError."""
    return construct({"bridge": functools.partial(bridge, parts)}, "system", parts.config.system)


def bridge(parts: Parts, degradation: Mapping[str, Any] | None = None, masked: bool = False) -> systems.Bridge:
    """The bridge model of `parts`. Keywords are config.system: `degradation`, an operator of `names.OPERATORS` that
    makes x_1 of x_0, without which the data gives pairs; `masked`, see `systems.Bridge`. Raises ConfigError."""
    config = parts.config
    if config.data.name == UNPAIRED:
        raise ConfigError(
            f"config.data.name={UNPAIRED!r} holds two sets without pairs, and config.system.name="
            f"{config.system.name!r} learns from pairs; config.system.name='schroedinger_bridge' needs none"
        )
    network = parts.network()
    _check_names(parts)
    process, param, times = parts.bridge, parts.bridge_parameterization, _checked_times(parts, parts.bridge)
    entry = network.conditions.image_shape
    if entry and entry != parts.spec.shape:
        raise ConfigError(
            f"config.network.image_channels={entry[-1]} must be 0 or {parts.spec.shape[-1]}: the network receives x_1, "
            "which is like x"
        )
    if masked and parts.spec.modality != "image":
        raise ConfigError(f"config.system.masked=True needs images, not {parts.spec.modality}")
    _check_outputs(parts, network)
    loss = functools.partial(bridge_loss, network.apply, param, process, times)
    return systems.Bridge(
        init_network=network.init,
        apply=network.apply,
        process=process,
        param=param,
        loss_fn=loss(),
        solver=parts.solver,
        grid=parts.grid,
        steps=config.sampling.steps,
        shape=parts.spec.shape,
        modality=parts.spec.modality,
        network_conditions=network.conditions,
        embed=network.embed,
        masked=masked,
        threshold=parts.threshold,
        batch_size=config.sampling.batch_size,
        denoise=config.sampling.denoise,
        networks={"unet": network.placed},
    )


def build_schroedinger(parts: Parts) -> SchroedingerBridge:
    """The Schroedinger bridge of a config, between the two sets of config.data. Raises ConfigError."""
    config = parts.config
    if config.data.name != UNPAIRED:
        raise ConfigError(
            f"config.data.name={config.data.name!r} must be {UNPAIRED!r}, with the sections x and image of two sets: "
            f"config.system.name={config.system.name!r} draws examples of both independently"
        )
    network = parts.network()
    _check_names(parts)
    process, param = parts.bridge, parts.bridge_parameterization
    if not process.noisy:
        raise ConfigError("config.process.noisy=False must be true: a Schroedinger bridge without noise has no pairs")
    ends = np.asarray(process.reference.alpha(jnp.float32([0, 1])))
    if (ends != 1).any():
        raise ConfigError(
            f"config.process.name={config.process.name!r} shrinks x_0 to {ends[1]:.3g} x_0; a Schroedinger bridge, "
            "which is walked from both ends, needs alpha = 1: brownian_bridge or i2sb"
        )
    if network.conditions:
        raise ConfigError(
            f"config.network: a Schroedinger bridge has no conditions, and the network reads "
            f"{', '.join(network.conditions)}"
        )
    if config.sampling.denoise:
        raise ConfigError("config.sampling.denoise=True must be false: the grid of a Schroedinger bridge ends at t = 0")
    times = _checked_times(parts, process)
    _checked_times(parts, Reversed(bridge=process))
    _check_outputs(parts, network)
    loss = functools.partial(bridge_loss, network.apply, param, times=times)
    return construct(
        {"schroedinger_bridge": SchroedingerBridge},
        "system",
        config.system,
        init_network=network.init,
        apply=network.apply,
        process=process,
        param=param,
        loss_fn=loss(process=process),
        forward_loss_fn=loss(process=Reversed(bridge=process)),
        solver=parts.solver,
        grid=parts.grid,
        steps=config.sampling.steps,
        shape=parts.spec.shape,
        modality=parts.spec.modality,
        batch_size=config.sampling.batch_size,
        networks={name: network.placed._replace(path=(name,)) for name in DIRECTIONS},
    )


def _check_names(parts: Parts) -> None:
    """Raises ConfigError, with the reason, for a parameterization of processes that end in noise."""
    name = parts.config.parameterization.get("name")
    if name in names.PARAMETERIZATIONS and name not in names.BRIDGE_PARAMETERIZATIONS:
        raise ConfigError(
            f"config.parameterization.name={name!r} is of processes that end in noise; on a bridge choose one of "
            f"{', '.join(names.BRIDGE_PARAMETERIZATIONS)}"
        )


def _checked_times(parts: Parts, process: BridgeProcess) -> Callable:
    """The distribution of training times. Raises ConfigError if solver or parameterization cannot be evaluated at the
    times of the grid or of training."""
    config, draw = parts.config, parts.bridge_times
    times = fits.sampling_times(config, process.reference, parts.grid)
    bounded = dict(bounded_by="sampling.grid")
    fits.check_process(config, ("solver",), parts.solver.needs, process, times[:-1], times[1:], **bounded)
    drawn, _ = jax.jit(draw, static_argnums=2)(process.reference, jax.random.key(0), 4096)
    visited = {"sampling.grid": times if config.sampling.denoise else times[:-1], "times": np.asarray(drawn)}
    for field, at in visited.items():
        section = config[field] if field == "times" else config.sampling.grid
        at = np.append(at, np.float32([section[name] for name in ("t_min", "t_max") if name in section]))
        at = at[at > 0] if field == "sampling.grid" else at
        if (at < 0).any() or (at > 1).any():
            raise ConfigError(
                f"config.{field} ({section.name}): times from {at.min():g} to {at.max():g}, not in [0, 1]"
            )
        coefficients = jax.jit(parts.bridge_parameterization)(process, jnp.asarray(at, jnp.float32))
        for name, value in coefficients._asdict().items():
            usable = np.isfinite(np.asarray(value)) & (field != "times" or name != "c_out" or np.asarray(value) != 0)
            if not usable.all():
                raise ConfigError(
                    f"{fits.described(config, 'parameterization')}: {name} is {np.asarray(value)[np.argmin(usable)]:g} "
                    f"at t = {at[np.argmin(usable)]:g} of config.process.name={config.process.name!r}; mind "
                    f"config.{field}.t_min and t_max"
                )
    return draw


def _check_outputs(parts: Parts, network: Network) -> None:
    fits.check_outputs(
        parts.config,
        parts.spec.shape,
        network.init,
        network.apply,
        network.conditions,
        {"solver": parts.solver},
        learned_variance=False,
    )


def _operator(parts: Parts) -> Any:
    """The operator of config.system.degradation; None without one. Raises ConfigError."""
    section = parts.config.system.get("degradation")
    if section is None:
        return None
    section = plain(section, "system.degradation")
    if section["name"] in _NOT_DEGRADED:
        raise ConfigError(
            f"config.system.degradation.name={section['name']!r} measures no image of the size of x, where a bridge "
            f"could start; choose one of {', '.join(name for name in names.OPERATORS if name not in _NOT_DEGRADED)}"
        )
    if parts.spec.modality != "image":
        raise ConfigError(f"config.system.degradation needs images, not {parts.spec.modality}")
    return construct(names.OPERATORS, "system.degradation", section, shape=parts.spec.shape)


def reading(parts: Parts, system: System) -> Reading:
    """The usual reading, with x_1 made by config.system.degradation where there is one."""
    operator, masked = _operator(parts), parts.config.system.get("masked", False)
    check_type("system.masked", masked, "bool")
    if operator is None:
        return usual_reading(parts, system)
    if bool(operator.draw) != masked:
        raise ConfigError(
            f"config.system.masked={masked} must be {bool(operator.draw)} for config.system.degradation.name="
            f"{parts.config.system.degradation.name!r}, which {'has' if operator.draw else 'has no'} unknown pixels"
        )
    return usual_reading(parts, system)._replace(derive=degraded(operator))


_READS = frozenset({"process", "parameterization", "times", "network", "solver", "sampling.grid", "sampling.threshold"})
RECIPE = Recipe(build=build, reads=_READS, reading=reading)
SCHROEDINGER = Recipe(build=build_schroedinger, reads=_READS - {"sampling.threshold"}, trains_lora=False)
