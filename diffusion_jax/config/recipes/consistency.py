"""The recipe of `systems.Consistency`: consistency models, distilled or trained, in discrete and continuous time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.config import fits
from diffusion_jax.config.guidance import EMBEDDING
from diffusion_jax.config.names import SOLVERS
from diffusion_jax.config.parts import Network, Parts
from diffusion_jax.config.recipes import first_stage
from diffusion_jax.config.recipes import teacher as teachers
from diffusion_jax.config.recipes.diffusion import sampler
from diffusion_jax.config.recipes.recipe import SAMPLING, Recipe
from diffusion_jax.config.sections import ConfigError, check_type, construct, lookup
from diffusion_jax.losses import consistency as losses
from diffusion_jax.losses import intervals
from diffusion_jax.losses.consistency import Distance
from diffusion_jax.losses.intervals import Schedule
from diffusion_jax.networks import lpips as networks
from diffusion_jax.networks.conditions import NO_RATES
from diffusion_jax.systems.consistency import Consistency, ContinuousConsistency
from diffusion_jax.types import Params, Train

CONTINUOUS = "continuous"  # the schedule of `ContinuousConsistency`
SCHEDULES = {
    "fixed": intervals.fixed,
    "scales": intervals.scales,
    "doubling": intervals.doubling,
    "ratio": intervals.ratio,
}
TARGETS = {"self": lambda: None, "ema": intervals.ema_rate, "scheduled": intervals.scheduled_rate}
PAIRS = ("teacher", "shared_noise")
STARTS = ("teacher", "random")
_ODE = {name: SOLVERS[name] for name in ("ddim", "euler", "heun")}  # whose steps take one time per example
_SELF: Mapping[str, Any] = MappingProxyType({"name": "self"})
_FIXED: Mapping[str, Any] = MappingProxyType({"name": "fixed"})
_PROGRESS = 1000  # number of steps of a training, at the start and the end of which the schedule is checked


def lpips(vgg: str = "", lin: str = "", side: int = 224, weight: str = "equal", *, shape: tuple[int, ...]) -> Distance:
    """The distance LPIPS of images, resized bilinearly to `side` x `side` pixels as in the code of arXiv:2303.01469.

    `vgg` and `lin` are files of weights, see `weights.lpips.load_lpips`. Raises ValueError for what are no images.
    """
    init, distance = networks.lpips((side, side, *shape[2:]))

    def measure(params: Params, a: jax.Array, b: jax.Array) -> jax.Array:
        size = (len(a), side, side, a.shape[-1])
        return distance(params, *(jax.image.resize(x, size, "bilinear") for x in (a, b)))

    return losses.l2(weight)._replace(measure=measure, init=init)


DISTANCES = {"l2": losses.l2, "l1": losses.l1, "huber": losses.huber, "lpips": lpips}


def continuous(warmup_steps: int = 10_000, c: float = 0.1) -> dict[str, Any]:
    """The numbers of `ContinuousConsistency`. Raises ValueError for a negative number of steps, or c <= 0."""
    if warmup_steps < 0 or c <= 0:
        raise ValueError(f"warmup_steps={warmup_steps} and c={c}: they must be at least 0 and positive")
    return dict(warmup_steps=warmup_steps, c=c)


def build(parts: Parts) -> Consistency:
    """The consistency model of a config. Raises ConfigError."""
    return construct({"consistency": functools.partial(consistency, parts, "denoiser")}, "system", parts.config.system)


def consistency(
    parts: Parts,
    role: str,
    teacher: str = "",
    teacher_config: str = "",
    pairs: str = "teacher",
    solver: str = "heun",
    guidance: tuple[float, ...] = (),
    start: str = "teacher",
    schedule: Mapping[str, Any] = _FIXED,
    target: Mapping[str, Any] = _SELF,
    cond_dropout: float = 0.0,
    cond_dropouts: Mapping[str, float] = NO_RATES,
) -> Consistency:
    """The consistency model of `parts`, for examples of `parts.spec`. Keywords are config.system. Raises ConfigError.

    `teacher` and `teacher_config` are the run of `recipes.teacher`, with the `role`. `pairs` says where x_s comes from:
    a step of the `solver` along the teacher's ODE, guided by a random scale in the range `guidance` if there is one, or
    the same noise. The network starts with the parameters of the teacher or random ones (`start`).
    """
    config, network = parts.config, parts.network()
    for field, value, choices in (("pairs", pairs, PAIRS), ("start", start, STARTS)):
        lookup(dict.fromkeys(choices), f"system.{field}", value)
    _check_boundary(parts, schedule.get("t_min", 0.0))
    drawn, weights = parts.times_of_training()
    fits.check_one_time(config)
    fits.check_drawn(config, parts.process, parts.parameterization, drawn, weights)
    if start == "teacher":
        teachers.check_same_network(parts, role)
    _check_guidance(parts, guidance)
    fields = sampler(parts, network, cond_dropout, cond_dropouts) | dict(times=parts.times)
    if pairs == "teacher":
        guided = dict(scales=_scales(network, guidance), guidance_dim=config.network.get(EMBEDDING, 0))
        fields |= dict(teacher=teachers.teacher(parts, role), **guided)
    elif guidance:
        raise ConfigError(f"config.system.guidance={guidance} guides a teacher; config.system.pairs={pairs!r} has none")
    if schedule.get("name") == CONTINUOUS:
        return _continuous(parts, network, schedule, target, fields)
    made = construct(SCHEDULES, "system.schedule", schedule)
    _check_intervals(parts, made, drawn)
    _check_segments(parts, made)
    return Consistency(
        schedule=made,
        target_rate=construct(TARGETS, "system.target", target, points=made.points),
        distance=construct(DISTANCES, "loss", config.loss, shape=parts.spec.shape),
        step=construct(_ODE, "system.solver", {"name": solver}),
        **fields,
    )


def _continuous(
    parts: Parts, network: Network, schedule: Mapping[str, Any], target: Mapping[str, Any], fields: Mapping[str, Any]
) -> ContinuousConsistency:
    config = parts.config
    for field, value, only in (("system.target", target, dict(_SELF)), ("loss", config.loss.to_dict(), {"name": "l2"})):
        if dict(value) != only:
            raise ConfigError(
                f"config.{field}={dict(value)!r} must be {only!r} for config.system.schedule.name={CONTINUOUS!r}"
            )
    numbers = construct({CONTINUOUS: continuous}, "system.schedule", schedule)
    x, t = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((1, *parts.spec.shape), (1,)))
    cond = jax.eval_shape(network.conditions.null)

    def derivative(params: Params, x: jax.Array, t: jax.Array, cond: Any) -> Any:
        return jax.jvp(lambda x, t: network.apply(params, x, t, cond), (x, t), (x, t))

    try:  # what has no forward derivative is refused where it is lowered, not where shapes are computed
        jax.jit(derivative).lower(jax.eval_shape(network.init, jax.random.key(0)), x, t, cond)
    except (TypeError, NotImplementedError, ValueError) as error:
        raise ConfigError(
            f"config.system.schedule.name={CONTINUOUS!r} needs the forward-mode derivative of the network, which "
            f"config.network ({config.network.name}) does not have: {str(error)[:300]}. Attention has it with "
            "attention_implementation='xla'"
        ) from error
    sigma_data = float(config.parameterization.get("sigma_data", 1.0))
    return ContinuousConsistency(sigma_data=sigma_data, **numbers, **fields)


def _scales(network: Network, guidance: tuple[float, ...]) -> tuple[float, float] | None:
    """The range of the scale of the teacher's classifier-free guidance; None without guidance."""
    if not guidance:
        return None
    check_type("system.guidance", guidance, "tuple")
    numbers = all(isinstance(scale, int | float) and not isinstance(scale, bool) for scale in guidance)
    if len(guidance) != 2 or not numbers or not guidance[0] <= guidance[1]:
        raise ConfigError(f"config.system.guidance={guidance!r} must be () or two scales, the least and the greatest")
    if not network.conditions.shapes:
        raise ConfigError(
            f"config.system.guidance={guidance!r} needs a conditional model; this network reads no condition: set "
            "config.network.num_classes, for example"
        )
    return float(guidance[0]), float(guidance[1])


def _check_guidance(parts: Parts, guidance: tuple[float, ...]) -> None:
    """Raises ConfigError if guidance is distilled and sampling guides again, or a network reads a scale of none."""
    config, dim = parts.config, parts.config.network.get(EMBEDDING, 0)
    if dim and not guidance:
        raise ConfigError(
            f"config.network.{EMBEDDING}={dim} reads the scale of the teacher's guidance, and config.system.guidance "
            "is empty: give the least and the greatest scale, or leave the embedding out"
        )
    if dim and config.lora.rank:
        raise ConfigError(
            f"config.network.{EMBEDDING}={dim} must be 0 with config.lora.rank={config.lora.rank}: the embedding would "
            "stay at zero, as low-rank updates train no layer that the teacher does not have"
        )
    needs = parts.guidance.needs
    if guidance and needs.unguided and not needs.guidance_embedding:
        raise ConfigError(
            f"config.guidance.name={config.guidance.name!r} guides a student a second time that has learned to be "
            f"guided by config.system.guidance={guidance!r}; set config.guidance.name={'embedded' if dim else 'none'!r}"
        )


def _check_segments(parts: Parts, schedule: Schedule) -> None:
    """Raises ConfigError unless every step of sampling is one of DDIM within a segment of the schedule."""
    if schedule.start is None:
        return
    config = parts.config
    times = parts.grid(parts.process, config.sampling.steps)
    starts = schedule.start(parts.process, times[:-1])
    named = f"config.system.schedule.segments={config.system.schedule.segments}"
    if not (parts.process.sigma(schedule.start(parts.process, jnp.zeros(1))) > 0).all():
        raise ConfigError(
            f"config.system.schedule.t_min={config.system.schedule.get('t_min', 0.0)} must be a time with noise for "
            f"{named}: a step of DDIM divides by sigma, 0 there for config.process.name={config.process.name!r}"
        )
    if config.solver.name != "ddim" or config.solver.get("eta", 0.0) != 0:
        raise ConfigError(
            f"config.solver.name={config.solver.name!r} must be 'ddim' with eta=0 for {named}: f leads to the "
            "beginning of a segment, and not of the trajectory"
        )
    inner = starts > schedule.start(parts.process, jnp.zeros(1)) + 1e-5  # the first segment begins the trajectory
    if (inner & (times[1:] < starts - 1e-5)).any():
        raise ConfigError(
            f"config.sampling.steps={config.sampling.steps} on config.sampling.grid={config.sampling.grid.to_dict()}: "
            f"a step crosses the beginning of a segment of {named}; take a multiple of it, on a grid like that of the "
            "schedule"
        )


def _check_boundary(parts: Parts, t_min: Any) -> None:
    """Raises ConfigError unless f(x, t_min) = x / alpha for every network: c_out = 0 and alpha c_skip = 1."""
    check_type("system.schedule.t_min", t_min, "float")
    config, start = parts.config, jnp.float32([t_min])
    c = parts.parameterization(parts.process, start)
    kept, changed = float(parts.process.alpha(start)[0] * c.c_skip[0]), float(c.c_out[0])
    if not (abs(kept - 1) < 1e-2 and abs(changed) < 1e-5):
        raise ConfigError(
            f"{fits.described(config, 'parameterization')} does not keep x at t = {t_min:g} of config.process.name="
            f"{config.process.name!r}, as a consistency function must: alpha c_skip = {kept:.4g} and c_out = "
            f"{changed:.4g} instead of 1 and 0. config.parameterization.name='consistency' with t_min={t_min:g}, the "
            "t_min of config.system.schedule, does, and 'edm' where sigma = 0"
        )


def _check_intervals(parts: Parts, schedule: Schedule, drawn: np.ndarray) -> None:
    """Raises ConfigError unless f is finite at both ends of the intervals of a schedule, which have a length."""
    config, process, param = parts.config, parts.process, parts.parameterization
    for train in (Train(jnp.int32(0), _PROGRESS), None):
        t, s = schedule.interval(process, jnp.asarray(drawn), train)
        for name, times in (("t", t), ("s", s)):
            finite = np.isfinite(np.stack(param(process, times))).all(0) & np.isfinite(times)
            if not finite.all():
                raise ConfigError(
                    f"{fits.described(config, 'parameterization')} is not finite at {name} = "
                    f"{float(times[np.argmin(finite)]):g} of config.process.name={config.process.name!r}; set "
                    "config.system.schedule.t_min and config.parameterization.t_min to a later time"
                )
        if (s > t).any():
            raise ConfigError(f"{fits.described(config, 'times')}: times below config.system.schedule.t_min are drawn")


def stands_on(parts: Parts, role: str = "denoiser") -> Mapping[str, Callable[[], Params]]:
    """The frozen teacher, the parameters that the network and its target start from, and the weights of LPIPS."""
    config, section = parts.config, parts.config.system
    frozen, copied = section.get("pairs", "teacher") == "teacher", section.get("start", "teacher") == "teacher"
    loads = dict(teachers.stands_on(parts, role, copied=copied)) if frozen or copied else {}
    if not frozen:
        loads.pop("frozen/teacher", None)
    if copied and section.get("target", _SELF)["name"] != "self":
        loads["frozen/target"] = loads["network"]
    if config.loss.name == "lpips":
        loads["frozen/distance"] = first_stage.lpips_weights("loss", config.loss, "config.loss.name=huber needs none")
    return loads


RECIPE = Recipe(
    build=build,
    reads=frozenset({"process", "parameterization", "times", "loss", "network"}) | SAMPLING,
    stands_on=stands_on,
)
