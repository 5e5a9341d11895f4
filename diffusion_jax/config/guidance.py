"""Guidance that needs more than numbers: by another trained run (classifier, weaker model), or by a measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from diffusion_jax.config.sections import ConfigError, changes, construct, refusal
from diffusion_jax.config.trained import Trained, check_same_conditions
from diffusion_jax.guidance import measurement as measurements
from diffusion_jax.guidance import observation as observations
from diffusion_jax.guidance import operators, steering
from diffusion_jax.guidance.operators import Operator
from diffusion_jax.guidance.steering import Guidance

EMBEDDING = "time_cond_proj_dim"  # key of config.network: the size of the embedding of a guidance scale

if TYPE_CHECKING:
    from diffusion_jax.config.parts import Parts


def classifier(
    parts: Parts, place: str = "guidance", *, path: str = "", scale: float = 1.0, schedule: str = "constant"
) -> Guidance:
    """Classifier guidance by the noisy classifier in the work directory `path`. `place` is the section of the config.

    Raises ConfigError if there is no such run, or if its process, its examples or its classes differ from those of the
    model.
    """
    run = parts.trained(path, f"config.{place}.path", role="classifier")
    check_alike(parts, run)
    here, there = parts.config.network.get("num_classes", 0), run.system.classes.num_classes
    if here and here != there:
        raise ConfigError(
            f"config.{place}.path={path!r}: the classifier has {there} classes, config.network.num_classes={here}"
        )
    system = run.system
    return steering.classifier(system.log_prob, run.load, system.classes, scale=scale, schedule=schedule)


def embedded(parts: Parts, place: str = "guidance", *, scale: float = 8.0) -> Guidance:
    """The guidance of a distilled network that reads the `scale`, see `steering.embedded`.

    Raises ConfigError for a network without an embedding of the scale.
    """
    dim = parts.config.network.get(EMBEDDING, 0)
    if not dim:
        raise ConfigError(
            f"config.{place}.name='embedded' needs a network with an embedding of the scale, config.network."
            f"{EMBEDDING}, such as a latent consistency model; config.network.name={parts.config.network.name!r} has "
            "none"
        )
    return steering.embedded(scale, dim)


def autoguidance(
    parts: Parts,
    place: str = "guidance",
    *,
    path: str = "",
    ema_rate: float = 0.0,
    scale: float = 1.0,
    schedule: str = "constant",
    interval: tuple[float, ...] = (),
) -> Guidance:
    """Autoguidance by the weaker model in the work directory `path`, with its EMA of `ema_rate` (0: its usual one).

    `path` may be the run that is sampled, with the EMA of another rate. Raises ConfigError if there is no
    such run, or if its process, its examples or its conditions differ from those of the model.
    """
    run = parts.trained(path, f"config.{place}.path", role="denoiser")
    check_alike(parts, run)
    reason = "a weaker model needs the same conditions"
    check_same_conditions(run, parts.network().conditions, run.system.network_conditions, reason)
    if ema_rate:
        if str(ema_rate) not in map(str, run.config.ema.rates):
            raise ConfigError(
                f"config.{place}.ema_rate={ema_rate} is not among config.ema.rates={run.config.ema.rates} of {path!r}"
            )
        run.config.sampling.ema_rate = ema_rate
    weak = run.system.unguided
    return steering.autoguidance(weak.denoiser, run.load, scale=scale, schedule=schedule, interval=interval)


def measurement(
    table: Mapping[str, Callable[..., Operator]],
    parts: Parts,
    place: str = "guidance",
    *,
    operator: Mapping[str, Any] = MappingProxyType({"name": "average"}),
    method: Any = MappingProxyType({"name": "mmps"}),
    clip: bool = False,
) -> Guidance:
    """Guidance by measurements, see `guidance.measurement`: `operator` is one of the `table`, `method` of its METHODS.

    The section of the operator may have a `then`, the section of an operator that measures what this one gives. Raises
    ConfigError for latents, whose operators are not those of images, and for a pair of operator and method that do not
    fit.
    """
    if parts.spec.modality == "latents":
        raise ConfigError(
            f"config.{place}.name='measurement' needs a model of the data itself; operators are those of images, and "
            f"config.system.name={parts.config.system.name!r} draws latents"
        )
    for key, section in (("operator", operator), ("method", method)):
        _need_name(f"{place}.{key}", section)
    made = _operator(table, f"{place}.operator", operator, parts.spec.shape)
    how = construct(measurements.METHODS, f"{place}.method", method)
    steps = parts.config.sampling.steps
    with refusal(f"config.solver.name={parts.config.solver.name!r} with config.{place}.method.name={method['name']!r}"):
        how.check_solver(parts.solver)
    with refusal(f"config.{place}.method.name={method['name']!r} with config.{place}.operator={dict(operator)!r}"):
        return measurements.measurement(made, how, lambda process: parts.grid(process, steps), clip)


def observation(
    parts: Parts,
    place: str = "guidance",
    *,
    loss: str = "quantile",
    scale: float = 4.0,
    method: Any = MappingProxyType({"name": "self"}),
    noise: float = 0.0,
) -> Guidance:
    """Guidance of an unconditional model of series by known values, see `guidance.observation`.

    `method` "self" is TSDiff's, with `loss` and `scale`; others are those of measurements, with their own keys.
    Raises ConfigError for data that is no series, or a method or solver that does not fit.
    """
    if parts.spec.modality != "series":
        raise ConfigError(
            f"config.{place}.name='observation' needs series; config.data.name={parts.config.data.name!r}"
        )
    _need_name(f"{place}.method", method)
    how = None
    if method["name"] != "self":
        how = construct(measurements.METHODS, f"{place}.method", method)
        with refusal(
            f"config.solver.name={parts.config.solver.name!r} with config.{place}.method.name={method['name']!r}"
        ):
            how.check_solver(parts.solver)
    steps = parts.config.sampling.steps
    with refusal(f"config.{place}"):
        return observations.observation(
            parts.spec.shape,
            loss=loss,
            scale=scale,
            method=how,
            noise=noise,
            times=lambda process: parts.grid(process, steps),
        )


def _operator(
    table: Mapping[str, Callable[..., Operator]], field: str, section: Mapping[str, Any], shape: tuple[int, ...]
) -> Operator:
    """The operator of a section for examples of `shape`, composed with that of its section `then`."""
    own = {key: value for key, value in section.items() if key != "then"}
    first = construct(table, field, own, shape=shape)
    if "then" not in section:
        return first
    _need_name(f"{field}.then", section["then"])
    with refusal(f"config.{field}.then={section['then']!r}"):
        return operators.compose(_operator(table, f"{field}.then", section["then"], first.out), first)


def _need_name(field: str, section: Any) -> None:
    if not isinstance(section, Mapping) or "name" not in section:
        raise ConfigError(f"config.{field}={section!r} must be a section such as dict(name='average')")


def check_alike(parts: Parts, run: Trained) -> None:
    """Raises ConfigError unless the run's process, and the shape of its examples, are those of the model."""
    differences = [line for line in changes(parts.config, run.config.to_dict()) if line.startswith("config.process.")]
    here, there = parts.spec.shape, run.system.batch["x"].shape
    if here != there:
        differences.append(f"examples are {here} now and were {there}")
    if differences:
        raise ConfigError(
            f"{run.field}={str(run.directory)!r} was trained for another model: {'; '.join(differences)}. Guidance "
            "needs a run with the same process and examples"
        )
