"""The recipe of `systems.DiscreteDiffusion`: categorical processes of tokens or grey levels."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import systems
from diffusion_jax.config import data, fits, names
from diffusion_jax.config.parts import Network, Parts
from diffusion_jax.config.recipes.recipe import SAMPLING, TRAINING, Reading, Recipe, check_grey_levels
from diffusion_jax.config.sections import ConfigError, construct, lookup, refusal
from diffusion_jax.data import Source
from diffusion_jax.data.alphabets import hidden_text
from diffusion_jax.likelihood.dequantization import to_levels
from diffusion_jax.networks import level_logits
from diffusion_jax.types import Needs, needs_of

_FIELDS = {
    "process": (names.CATEGORICAL_PROCESSES, names.PROCESSES),
    "parameterization": (names.TOKEN_PARAMETERIZATIONS, names.PARAMETERIZATIONS),
    "loss": (names.CATEGORICAL_LOSSES, names.LOSSES),
    "solver": (names.CATEGORICAL_SOLVERS, names.SOLVERS),
    "times": (names.CATEGORICAL_TIMES, names.TIMES),
    "guidance": (names.CATEGORICAL_GUIDANCE, names.GUIDANCE),
    "editing": (names.CATEGORICAL_EDITING, names.EDITING),
}


def build(parts: Parts) -> systems.DiscreteDiffusion:
    """The discrete diffusion model of a config. Raises ConfigError."""
    section = parts.config.system
    return construct({section["name"]: functools.partial(discrete_diffusion, parts)}, "system", section)


def discrete_diffusion(
    parts: Parts, cond_dropout: float = 0.0, num_times: int = 64, head: str = "logits"
) -> systems.DiscreteDiffusion:
    """The model of `parts`. Keywords are config.system: `num_times` of the bound of held-out examples, and for images
    the `head` of the network, see `networks.level_logits`. Raises ConfigError.
    """
    config, spec = parts.config, parts.spec
    for field, (table, others) in _FIELDS.items():
        _check_name(field, config[field].name, table, others)
    levels = spec.values or parts.levels
    process = construct(names.CATEGORICAL_PROCESSES, "process", config.process, num_values=levels)
    param = _parameterization(config.parameterization)
    network, shown = _network(parts, process, head)
    times = construct(names.CATEGORICAL_TIMES, "times", config.times)
    context = dict(apply=network.apply, param=param, process=process, times=times)
    loss = construct(names.CATEGORICAL_LOSSES, "loss", config.loss, **context)
    solver = construct(names.CATEGORICAL_SOLVERS, "solver", config.solver, num_values=levels)
    _check(config, "loss", needs_of(loss), process)
    _check_bound(config, process)
    grid = fits.sampling_times(config, process, parts.grid)
    _check_sampling(config, process, solver, grid, network)
    if config.times.get("t_max", 1.0) > 1 or config.times.get("t_min", 0.0) < 0:
        raise ConfigError(f"config.times ({config.times.name}): t is in [0, 1]; mind t_min and t_max")
    fits.check_guidance(config, parts.guidance, network.conditions, cond_dropout, {}, spec.shape)
    _check(config, "editing", parts.editing.needs, process)
    fits.check_editing(config, parts.editing, spec, network.conditions, process, solver, grid)
    if num_times < 1:
        raise ConfigError(f"config.system.num_times={num_times} must be at least 1")
    _check_outputs(config, network, shown, (*spec.shape, levels))
    return systems.DiscreteDiffusion(
        init_network=network.init,
        apply=network.apply,
        process=process,
        param=param,
        loss_fn=loss,
        solver=solver,
        grid=parts.grid,
        steps=config.sampling.steps,
        spec=spec,
        **({} if spec.values else _grey(levels)),
        network_conditions=network.conditions,
        cond_dropout=cond_dropout,
        embed=network.embed,
        guidance=parts.guidance,
        editing=parts.editing,
        batch_size=config.sampling.batch_size,
        denoise=config.sampling.denoise,
        num_times=num_times,
        pad=_facts(parts).get("pad"),
        networks={"transformer" if spec.values else "unet": network.placed},
    )


def _check_name(field: str, name: Any, table: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    """Raises ConfigError for a name of models of real numbers, with the reason, or an unknown one."""
    if name in others and name not in table:
        raise ConfigError(
            f"config.{field}.name={name!r} is for real numbers, and config.system.name='discrete_diffusion' has a "
            f"categorical process of tokens; choose one of {', '.join(table)}"
        )
    lookup(table, f"{field}.name", name)


def _parameterization(section: Any) -> Any:
    section = dict(section)
    if "label" in section:
        section["label"] = lookup(names.TOKEN_LABELS, "parameterization.label", section["label"])
    return construct(names.TOKEN_PARAMETERIZATIONS, "parameterization", section)


def _network(parts: Parts, process: Any, head: str) -> tuple[Network, Any]:
    """The network from x_t to logits, and the number of entries of its own output for an error message."""
    if parts.spec.values:
        if head != "logits":
            raise ConfigError(f"config.system.head={head!r} must be 'logits' for tokens, which have no order")
        return parts.network(states=process.num_states, out_channels=process.num_values), None
    if process.num_states != process.num_values:
        raise ConfigError(
            f"config.process.name={parts.config.process.name!r} has a mask, which is no grey level; for images choose "
            "uniform or discretized_gaussian"
        )
    with refusal("config.system"):
        channels = level_logits.channels(parts.spec.shape[-1], process.num_values, head)
    network = parts.network(out_channels=channels)
    apply = level_logits.of_levels(network.apply, process.num_values, head)
    return network._replace(apply=apply), channels


def _grey(levels: int) -> dict[str, Callable]:
    """How grey levels are stored: as numbers in [-1, 1]."""
    return {
        "to_ids": lambda x: to_levels(x, levels).astype(jnp.int32),
        "of_ids": lambda ids: 2 * ids.astype(jnp.float32) / (levels - 1) - 1,
    }


def _check(config: Any, field: str, needs: Needs, process: Any) -> None:
    """Raises ConfigError unless the process has what a part needs."""
    if needs.num_steps and process.num_steps is None:
        raise ConfigError(
            f"config.{field}.name={config[field].name!r} needs a process of so many steps; set config.process.num_steps"
        )
    if needs.categorical:
        fits.check_process(config, (field,), needs, process, np.zeros(0, np.float32), bounded_by="sampling.grid")


def _check_bound(config: Any, process: Any) -> None:
    if process.num_steps and config.loss.name != "discrete_nelbo":
        raise ConfigError(
            f"config.loss.name={config.loss.name!r} is a bound in continuous time, and config.process.name="
            f"{config.process.name!r} has {process.num_steps} steps; choose config.loss.name='discrete_nelbo'"
        )


def _check_sampling(config: Any, process: Any, solver: Any, times: np.ndarray, network: Network) -> None:
    _check(config, "solver", solver.needs, process)
    named = fits.described(config, "solver")
    if solver.needs.time_free and _reads_time(config.network):
        raise ConfigError(f"{named} needs a network that does not read t: config.network.time_conditioned=False")
    if config.solver.name == "first_hitting" and config.sampling.steps < int(np.prod(network.placed.shape)):
        raise ConfigError(
            f"config.sampling.steps={config.sampling.steps} must be at least {int(np.prod(network.placed.shape))} for "
            f"{named}, which draws one token in a step"
        )
    if "jump_rates" in solver.needs.categorical and not np.isfinite(_rates(process, times[:-1])).all():
        raise ConfigError(
            f"{named} needs finite rates, which are infinite where config.process.name={config.process.name!r} keeps "
            "nothing; config.sampling.grid.t_max=0.99 works"
        )
    if hasattr(process, "mask") and not config.sampling.denoise and float(process.noise(jnp.float32(times[-1]))) > 1e-6:
        raise ConfigError(
            f"config.sampling.grid ends at t = {times[-1]:g}, where tokens are still masked; set "
            "config.sampling.denoise=True, which draws them, or config.sampling.grid.t_min=0.0"
        )
    if isinstance(process.num_steps, int) and not hasattr(process, "alpha"):
        steps = times * process.num_steps
        if np.abs(steps - np.round(steps)).max() > 1e-3:
            raise ConfigError(
                f"config.process.name={config.process.name!r} has steps at i / {process.num_steps} only; choose "
                "config.sampling.grid.name='discrete'"
            )


def _reads_time(section: Any) -> bool:
    """Whether the network of config.network reads t; a network without the switch does."""
    parameter = inspect.signature(names.NETWORKS[section.name].__init__).parameters.get("time_conditioned")
    return section.get("time_conditioned", True if parameter is None else parameter.default)


def _rates(process: Any, times: np.ndarray) -> np.ndarray:
    """Rates of one token at each time."""
    states = jnp.full((len(times), 1), process.num_states - 1)
    log_D = jnp.zeros((len(times), 1, process.num_values))
    return np.asarray(process.jump_rates(log_D, states, jnp.asarray(times)))


def _check_outputs(config: Any, network: Network, channels: int | None, expected: tuple[int, ...]) -> None:
    """Raises ConfigError unless the network maps integers of the shape of an example to logits."""
    x = jax.ShapeDtypeStruct((1, *expected[:-1]), np.int32)
    cond, c_noise = jax.eval_shape(network.conditions.null), jax.ShapeDtypeStruct((1,), np.float32)
    try:
        out = jax.eval_shape(network.apply, jax.eval_shape(network.init, jax.random.key(0)), x, c_noise, cond)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"config.network ({config.network.name}) does not fit the data: {error}") from error
    if out.shape[1:] != expected:
        raise ConfigError(
            f"config.network.name={config.network.name!r} must give logits {expected}; it gives {out.shape[1:]}"
            f"{f', from {channels} channels' if channels else ''}"
        )


def reading(parts: Parts, system: systems.DiscreteDiffusion) -> Reading:
    """How texts of requests become ids: by the alphabet or tokenizer of the data, with "_" for hidden tokens."""
    known = _facts(parts)
    if "encode" not in known:
        return Reading()
    tokenize = functools.partial(hidden_text, known["encode"], system.spec.shape[0])
    return Reading(tokenize, lambda ids: known["decode"](np.asarray(ids)))


def _facts(parts: Parts) -> Mapping[str, Any]:
    with refusal("config.data"):
        return data.facts(parts.config)


def check(parts: Parts, source: Source) -> None:
    """Raises ConfigError unless images are on grey levels."""
    if not parts.spec.values:
        check_grey_levels("data (for config.system.name='discrete_diffusion')", source, parts.levels)


RECIPE = Recipe(
    build=build,
    reads=(TRAINING - {"weighting"}) | (SAMPLING - {"sampling.threshold"}),
    check=check,
    reading=reading,
)
