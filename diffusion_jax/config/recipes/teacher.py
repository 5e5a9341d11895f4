"""The teacher of a system that learns from a trained run: config.system.teacher, its checks, and its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from diffusion_jax.config.parts import Parts
from diffusion_jax.config.sections import ConfigError, changes
from diffusion_jax.config.trained import Trained, check_same_conditions
from diffusion_jax.systems.teacher import Teacher, params_of
from diffusion_jax.types import Params

# Keys of config.system that name the run of the teacher.
KEYS = ("teacher", "teacher_config")
_DATA = ("name", "kind", "image_size", "channels")  # keys of config.data that say which data set it is
_FREE = ("dropout",)  # keys of config.network that change no parameter


def run_of(parts: Parts) -> Trained:
    """The run of config.system.teacher, a diffusion model of any process and parameterization.

    Raises ConfigError if there is no such run, if it was trained on another data set, or if its conditions are not
    those of config.network. config.system.teacher_config is the config that it is trained with.
    """
    section, field = parts.config.system, "config.system.teacher"
    path, config_file = (section.get(key, "") for key in KEYS)
    run = parts.trained(path, field, role="denoiser", config_file=config_file)
    here, there = (config.data for config in (parts.config, run.config))
    for key in _DATA:
        if here.get(key, "") != there.get(key, ""):
            raise ConfigError(
                f"{field}={path!r} was trained on another data set: config.data.{key} is {here.get(key)!r} here and "
                f"{there.get(key)!r} there"
            )
    if parts.spec.shape != run.system.shape:
        raise ConfigError(f"{field}={path!r} has examples of {run.system.shape}; here they are {parts.spec.shape}")
    reason = "a student needs the same conditions"
    check_same_conditions(run, parts.network().conditions, run.system.network_conditions, reason)
    return run


def teacher(parts: Parts) -> Teacher:
    """The teacher of a config, see `run_of`, also for errors."""
    return Teacher(diffusion=run_of(parts).system)


def check_same_network(parts: Parts) -> None:
    """Raises ConfigError unless config.network is the network of the teacher, whose parameters the student copies."""
    run = run_of(parts)
    lines = changes(parts.config, run.config.to_dict())
    free = tuple(f"config.network.{key} " for key in _FREE)
    differences = [line for line in lines if line.startswith("config.network.") and not line.startswith(free)]
    if differences:
        raise ConfigError(
            f"{run.field}={str(run.directory)!r}: a student that starts as a copy of its teacher needs the same "
            f"network: {'; '.join(differences)}"
        )


def stands_on(parts: Parts, *, copied: bool) -> Mapping[str, Callable[[], Params]]:
    """The frozen teacher, and if `copied` also the network, which starts with the teacher's parameters."""
    run = run_of(parts)
    # Both are loaded, because the train step donates every buffer of its state, and only once.
    frozen = {"frozen/teacher": lambda: params_of(run.load())}
    return {**frozen, "network": lambda: run.load()["network"]} if copied else frozen
