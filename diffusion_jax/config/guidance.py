"""Guidance by another trained run: classifier guidance, and autoguidance by a weaker model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffusion_jax.config.sections import ConfigError, changes
from diffusion_jax.config.trained import Trained
from diffusion_jax.guidance import steering
from diffusion_jax.guidance.steering import Guidance

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
    here, there = parts.network().conditions.specs, run.system.network_conditions.specs
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            raise ConfigError(
                f"config.{place}.path={path!r}: the condition {name!r} is {here.get(name)} here and "
                f"{there.get(name)} there; a weaker model needs the same conditions"
            )
    if ema_rate:
        if str(ema_rate) not in map(str, run.config.ema.rates):
            raise ConfigError(
                f"config.{place}.ema_rate={ema_rate} is not among config.ema.rates={run.config.ema.rates} of {path!r}"
            )
        run.config.sampling.ema_rate = ema_rate
    weak = run.system.unguided
    return steering.autoguidance(weak.denoiser, run.load, scale=scale, schedule=schedule, interval=interval)


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
