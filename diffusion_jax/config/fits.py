"""Check that the parts of a config can be combined, such as a solver with a process; refuse them by name otherwise.

Parts declare their needs as data, see `types.Needs`. The process is evaluated at the times of training and of sampling,
before a network is compiled.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax.config import names
from diffusion_jax.config.sections import ConfigError, check_type, suggest
from diffusion_jax.guidance.editing import Editing
from diffusion_jax.guidance.steering import Guidance
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.processes.needs import NO_TIMES, Unmet, unmet
from diffusion_jax.systems import augmentation
from diffusion_jax.types import Needs, Process, Solver, Spec, needs_of

_ENDS = (0.9999, 0.999, 0.99, 0.9)  # values of t_max, in the order in which they are suggested
_LEAST_ALPHA = 5e-4  # at a suggested t_max: below it 1 / alpha multiplies errors of the network
_FIRST = 1e-3  # a time at which grids may end instead of 0


def described(config: ConfigDict, *fields: str) -> str:
    """Keys and values of sections for an error message."""
    values = []
    for field in fields:
        section = _section(config, field)
        values += [f"config.{field}.{key}={section[key]!r}" for key in sorted(section, key=lambda key: key != "name")]
    return ", ".join(values)


def check_process(
    config: ConfigDict,
    fields: tuple[str, ...],
    needs: Needs,
    process: Process,
    starts: np.ndarray,
    ends: np.ndarray = NO_TIMES,
    *,
    bounded_by: str,
) -> None:
    """Raises ConfigError unless the process meets the needs of the part that is named in the sections `fields`.

    `bounded_by` is the section with the `t_max` of the times, such as "sampling.grid".
    """
    gap = unmet(needs, process, starts, ends)
    if gap is not None:
        raise ConfigError(
            f"{described(config, *fields)} needs {gap.need}; config.process.name={config.process.name!r} {gap.has}"
            f"{_advice(config, needs, process, gap, bounded_by)}"
        )


def sampling_times(config: ConfigDict, process: Process, grid: Callable) -> np.ndarray:
    """Times of the sampling grid. Raises ConfigError if the grid does not fit the process or the number of steps."""
    field, section, needs = "sampling.grid", config.sampling.grid, needs_of(grid)
    if section.get("denoising", False) and not config.sampling.denoise:
        raise ConfigError(
            "config.sampling.grid.denoising=True needs config.sampling.denoise=True, the last of config.sampling.steps"
        )
    if needs.num_steps:
        check_process(config, (field,), Needs(num_steps=True), process, NO_TIMES, bounded_by=field)
    try:
        times = np.asarray(jax.jit(grid, static_argnums=1)(process, config.sampling.steps))
    except ValueError as error:
        raise ConfigError(f"config.sampling.steps={config.sampling.steps}: {error}") from error
    if (times < 0).any() or (times > 1).any():
        raise ConfigError(
            f"config.sampling.grid ({section.name}): its times run from {times[0]:g} to {times[-1]:g}, "
            "but t is in [0, 1]; mind t_min and t_max"
        )
    check_process(config, (field,), needs, process, times[[0, -1]], bounded_by=field)
    if not np.isfinite(times).all() or (np.diff(times) > 0).any() or times[0] == times[-1]:
        raise ConfigError(
            f"config.sampling.grid ({section.name}): its times do not fall from {times[0]:g} to {times[-1]:g} for the "
            f"process {config.process.name!r}; set config.sampling.grid.t_min and t_max to times that differ in noise"
        )
    return times


def check_sampling(
    config: ConfigDict, *, process: Process, param: Callable, solver: Solver, guidance: Guidance, times: np.ndarray
) -> None:
    """Raises ConfigError if solver, guidance or parameterization cannot be evaluated at the times of the grid."""
    if solver.needs.flow_map and not config.network.get("gap", False):
        raise ConfigError(
            f"config.solver.name={config.solver.name!r} needs a flow map, config.system.name='mean_flow' or "
            f"'shortcut'; config.system.name is {config.system.name!r}"
        )
    starts, ends = times[:-1], times[1:]
    bounded = dict(bounded_by="sampling.grid")
    check_process(config, ("solver",), solver.needs, process, starts, ends, **bounded)
    check_process(config, ("guidance",), guidance.needs, process, starts, **bounded)
    # Whether the network is evaluated at the last time depends on the solver, which does so only if sigma > 0.
    visited = times if config.sampling.denoise else starts
    check_parameterization(config, process, param, visited, **bounded)


def check_discrete(config: ConfigDict, parts: Mapping[str, Any], process: Process) -> None:
    """Refuse parts of discrete processes, by the section that names them, for a continuous one."""
    for field, part in parts.items():
        needs = Needs(num_steps=needs_of(part).num_steps)
        check_process(config, (field,), needs, process, NO_TIMES, bounded_by="times")


def check_training(
    config: ConfigDict, *, process: Process, param: Callable, loss: Callable, drawn: np.ndarray, weights: np.ndarray
) -> None:
    """Raises ConfigError if loss or parameterization cannot be evaluated at the times of training.

    `drawn` is a sample of these times, `weights` are their weights.
    """
    check_drawn(config, process, param, drawn, weights)
    needs, fields = needs_of(loss), ("loss", "weighting")
    check_process(config, fields, needs, process, _with_bounds(config.times, drawn), bounded_by="times")


def check_drawn(
    config: ConfigDict, process: Process, param: Callable, drawn: np.ndarray, weights: np.ndarray = NO_TIMES
) -> None:
    """Raises ConfigError for times outside [0, 1] or of no density, or a parameterization that is not finite."""
    if not (np.isfinite(drawn).all() and np.isfinite(weights).all()):
        raise ConfigError(
            f"config.times ({config.times.name}): the density of the times of training is not finite for the process "
            f"{config.process.name!r} and the weighting {config.weighting.name!r}; mind t_min and t_max"
        )
    times = _with_bounds(config.times, drawn)
    if (times < 0).any() or (times > 1).any():
        raise ConfigError(
            f"config.times ({config.times.name}): times from {times.min():g} to {times.max():g} are drawn, but t is in "
            "[0, 1]; mind t_min and t_max"
        )
    check_parameterization(config, process, param, times, bounded_by="times")


def check_one_time(config: ConfigDict) -> None:
    """Raises ConfigError for a network of flow maps, in a system that evaluates it at one time."""
    if config.network.get("gap", False):
        raise ConfigError(
            f"config.network.gap=True is for flow maps, config.system.name='mean_flow' or 'shortcut'; "
            f"config.system.name={config.system.name!r} gives its network one time"
        )


def check_likelihood(config: ConfigDict, *, process: Process, param: Callable, likelihood: Callable | None) -> None:
    """Raises ConfigError if a likelihood needs the steps of a discrete process and this one is continuous, or if the
    parameterization is not finite at its times, or if sigma(t_min) = 0."""
    field = "evaluation.likelihood"
    section = config.evaluation.likelihood
    if needs_of(likelihood).num_steps and process.num_steps is None:
        raise ConfigError(
            f"config.{field}.name={section.name!r}, config.{field}.steps=0 needs a discrete process, whose steps "
            f"are all taken; config.process.name={config.process.name!r} is continuous: give the number of steps"
        )
    if section.name == "ode":
        ends = np.float32([section.get("t_min", 1e-5), section.get("t_max", 1.0)])
        check_parameterization(config, process, param, ends, bounded_by=field)
        check_process(config, (field,), Needs(sigma=True), process, ends, bounded_by=field)


def check_parameterization(
    config: ConfigDict, process: Process, param: Callable, times: np.ndarray, *, bounded_by: str
) -> None:
    """Raises ConfigError if the parameterization is not finite at `times`, such as eps-prediction where alpha = 0."""
    field = "parameterization"
    check_process(config, (field,), needs_of(param), process, times, bounded_by=bounded_by)
    for name, value in jax.jit(param)(process, jnp.asarray(times, jnp.float32))._asdict().items():
        finite = np.isfinite(np.asarray(value))
        if not finite.all():
            raise ConfigError(
                f"{described(config, field)}: {name} is not finite at t = {times[np.argmin(finite)]:g} of "
                f"config.process.name={config.process.name!r}; mind config.{bounded_by}.t_min and t_max"
            )


def check_outputs(
    config: ConfigDict,
    shape: tuple[int, ...],
    init: Callable,
    apply: Callable,
    conditions: Conditions,
    parts: Mapping[str, Any],
    *,
    learned_variance: bool,
) -> None:
    """Raises ConfigError if the network lacks outputs that the loss needs, or a part needs a learned variance.

    `parts` are the parts that may need a learned variance, by the section that names them.
    """
    cond = jax.eval_shape(conditions.null)
    x, c_noise = (jax.ShapeDtypeStruct(s, np.float32) for s in ((1, *shape), (1,)))
    try:
        out = jax.eval_shape(apply, jax.eval_shape(init, jax.random.key(0)), x, c_noise, cond)
    except ValueError as error:
        raise ConfigError(f"config.network ({config.network.name}) does not fit the data: {error}") from error
    channels = shape[-1] * (2 if learned_variance else 1)
    if out.shape[-1] != channels:
        raise ConfigError(
            f"config.network.out_channels={out.shape[-1]} must be {channels} for the {shape[-1]} channels of the data "
            f"and config.loss.name={config.loss.name!r}"
            f"{', which learns variances as well as means' if learned_variance else ''}"
        )
    for field, part in parts.items():
        if needs_of(part).learned_variance and not learned_variance:
            raise ConfigError(
                f"{described(config, field)} needs a config.loss.name that learns variances, hybrid or vlb; it is "
                f"{config.loss.name!r}"
            )


def check_guidance(
    config: ConfigDict,
    guidance: Guidance,
    conditions: Conditions,
    cond_dropout: float,
    cond_dropouts: Mapping[str, float],
    shape: tuple[int, ...],
) -> None:
    """Raises ConfigError if guidance or condition dropout needs conditions that the network does not read.

    Warns about guidance of a model that was trained without condition dropout, unless it starts from another one.
    """
    rates = {"cond_dropout": cond_dropout, **{f"cond_dropouts.{name}": rate for name, rate in cond_dropouts.items()}}
    for field, rate in rates.items():
        check_type(f"system.{field}", rate, "float")
        if not 0 <= rate < 1:
            raise ConfigError(f"config.system.{field}={rate} must be in [0, 1)")
    available = [name for name, condition in conditions.items() if not (condition.along or condition.structure)]
    for name in cond_dropouts:
        if name not in available:
            raise ConfigError(
                f"config.system.cond_dropouts.{name}: the network has no such condition to drop"
                f"{suggest(name, available)}; it has {', '.join(available) or 'none'}"
            )
    if cond_dropout and not conditions.shapes:
        raise ConfigError(
            f"config.system.cond_dropout={cond_dropout}: the network has no conditions to drop; set "
            "config.network.num_classes, for example"
        )
    needs, named = guidance.needs, f"config.guidance.name={config.guidance.name!r}"
    dim = config.network.get("time_cond_proj_dim", 0)
    if dim and not needs.guidance_embedding:
        raise ConfigError(
            f"config.network.time_cond_proj_dim={dim}: the network was distilled with guidance, whose scale it reads "
            f"as an embedding. config.guidance.name must be 'embedded'; {config.guidance.name!r} does not give it"
            f"{' and would guide twice' if needs.unguided else ''}"
        )
    if needs.channels > shape[-1]:
        raise ConfigError(f"config.guidance.channels={needs.channels} must be at most {shape[-1]}, the channels of x")
    for name in needs.conditions:
        if name not in available:
            raise ConfigError(
                f"{named} needs a network with the condition {name!r}; it has {', '.join(available) or 'none'}"
            )
    if not needs.conditional:
        return
    if not conditions.shapes:
        raise ConfigError(
            f"{named} needs a conditional model; this network reads no condition: set config.network.num_classes, for "
            "example"
        )
    if needs.guidance_embedding:
        return
    ever = cond_dropout or all(cond_dropouts.get(name) for name in available)
    scale = guidance.values.get("scale", 1.0)
    elsewhere = config.weights or config.system.get("model") or config.system.get("pipeline")
    if not ever and scale != 1 and not elsewhere:
        warnings.warn(
            f"config.guidance.scale={scale}, but config.system.cond_dropout=0: the model was never trained without its "
            "condition, so there is no unconditional branch to guide away from",
            stacklevel=2,
        )


def check_projection(config: ConfigDict, guidance: Guidance, threshold: Callable) -> None:
    """Raises ConfigError for the loss, guidance or thresholding of whole rows, in a system that projects examples.

    Solvers that take norms over rows are given the projection, see `projections.on_subspace`.
    """
    if config.loss.name != "denoising":
        raise ConfigError(
            f"config.loss.name={config.loss.name!r} must be 'denoising' for config.system.name="
            f"{config.system.name!r}, in which not all entries of x are free"
        )
    for field, part in (("guidance", guidance), ("sampling.threshold", threshold)):
        if needs_of(part).whole_rows:
            raise ConfigError(
                f"{described(config, field)} takes norms or quantiles over whole examples, of which config.system.name="
                f"{config.system.name!r} draws a part; choose it without, such as guidance with rescale=0.0"
            )


def check_editing(
    config: ConfigDict,
    editing: Editing,
    makes: Spec,
    conditions: Conditions,
    process: Process,
    solver: Solver,
    times: np.ndarray,
) -> None:
    """Raises ConfigError if editing needs images, a condition that the network uses itself, or another solver or grid.

    `times` are those of the grid, without a denoising that config.sampling.steps counts.
    """
    named = described(config, "editing")
    needed = editing.conditions(makes.shape).shapes
    waveform = makes.modality == "waveform" and "mask" not in needed  # of which a whole one may be given
    if "image" in needed and len(makes.shape) != 3 and not waveform:
        raise ConfigError(f"{named} needs images; config.data.name={config.data.name!r} has examples of {makes.shape}")
    if makes.modality == "latents" and not editing.latents:
        raise ConfigError(
            f"{named} needs a model of pixels; config.system.name={config.system.name!r} draws latents, whose channels "
            "are not colours"
        )
    shared = [name for name in needed if name in conditions.shapes]
    if shared:
        raise ConfigError(f"{named} needs the condition {shared[0]!r} for itself, but the network reads it as well")
    check_process(config, ("editing",), editing.needs, process, times, bounded_by="sampling.grid")
    try:
        editing.check(len(times) - 1, solver, makes.shape)
    except ValueError as error:
        others = f"config.sampling.steps={config.sampling.steps}, config.solver.name={config.solver.name!r}"
        raise ConfigError(f"{named}, {others}: {error}") from error


def check_augmentation(config: ConfigDict, probability: float) -> None:
    """Raises ConfigError unless the network is conditioned on the labels of the augmentation."""
    width = config.network.get("augment_dim", 0)
    if not 0 <= probability <= 1:
        raise ConfigError(f"config.system.augment={probability} must be in [0, 1]")
    if probability and width != augmentation.DIM:
        raise ConfigError(
            f"config.system.augment={probability} needs a network that is conditioned on the augmentation labels: "
            f"config.network.name='song_unet' with augment_dim={augmentation.DIM}, not {width}"
        )


def _section(config: ConfigDict, field: str) -> Any:
    for name in field.split("."):
        config = config[name]
    return config


def _with_bounds(section: Any, drawn: np.ndarray) -> np.ndarray:
    """The drawn times and the bounds of the section, which a long training comes close to."""
    return np.append(drawn, np.float32([section[name] for name in ("t_min", "t_max") if name in section]))


def _advice(config: ConfigDict, needs: Needs, process: Process, gap: Unmet, bounded_by: str) -> str:
    """Advice for an error message: a `t_max` that works if only times near 1 do not, or the processes that work."""
    if gap.times.size and gap.times.min() > _ENDS[0]:
        for end in _ENDS:
            at = np.float32([end])
            if unmet(needs, process, at) is None and process.alpha(jnp.float32(end)) >= _LEAST_ALPHA:
                return f"; {_ending_at(config, bounded_by, end)}"
    bounded = "t_min" in _parameters(bounded_by, _section(config, bounded_by).name)
    at_zero = gap.times.size and gap.times.max() < _FIRST
    if bounded and at_zero and unmet(needs, process, np.float32([_FIRST])) is None:
        return f"; config.{bounded_by}.t_min={_FIRST:g} works"
    working = [
        name
        for name, make in names.PROCESSES.items()
        if name != config.process.name and unmet(needs, make(), gap.times) is None
    ]
    return f"; config.process.name may be {' or '.join(working)}" if working else ""


def _ending_at(config: ConfigDict, field: str, end: float) -> str:
    if "t_max" in _parameters(field, _section(config, field).name):
        return f"config.{field}.t_max={end:g} works"
    return f"config.{field}.name='uniform' with config.{field}.t_max={end:g} works"


def _parameters(field: str, name: str) -> Mapping[str, inspect.Parameter]:
    table = {"sampling.grid": names.GRIDS, "times": names.TIMES, "evaluation.likelihood": names.LIKELIHOODS}[field]
    return inspect.signature(table[name]).parameters
