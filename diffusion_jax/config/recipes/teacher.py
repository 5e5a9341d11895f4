"""The teacher of a system that learns from a trained run: config.system.teacher, its checks, and its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import numpy as np

from diffusion_jax.config.guidance import EMBEDDING
from diffusion_jax.config.parts import Parts
from diffusion_jax.config.sections import ConfigError, changes
from diffusion_jax.config.trained import Trained, check_same_conditions
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.systems.diffusion import Diffusion
from diffusion_jax.systems.teacher import Teacher, params_of
from diffusion_jax.types import Params

# Keys of config.system that name the run of the teacher.
KEYS = ("teacher", "teacher_config")
_DATA = ("name", "kind", "image_size", "channels")  # keys of config.data that say which data set it is
_FREE = ("dropout", EMBEDDING)  # keys of config.network that change no parameter of the teacher's


def run_of(parts: Parts, role: str = "denoiser", conditions: Conditions | None = None) -> Trained:
    """The run of config.system.teacher, a diffusion model of any process and parameterization, with the `role`.

    Raises ConfigError if there is no such run, if it was trained on another data set, or if its conditions are not
    `conditions`, by default those of config.network. config.system.teacher_config is the config that it is trained
    with.
    """
    section, field = parts.config.system, "config.system.teacher"
    path, config_file = (section.get(key, "") for key in KEYS)
    run = parts.trained(path, field, role=role, config_file=config_file)
    here, there = (config.data for config in (parts.config, run.config))
    for key in _DATA:
        if here.get(key, "") != there.get(key, ""):
            raise ConfigError(
                f"{field}={path!r} was trained on another data set: config.data.{key} is {here.get(key)!r} here and "
                f"{there.get(key)!r} there"
            )
    model = model_of(run)
    if parts.spec.shape != model.shape:
        raise ConfigError(f"{field}={path!r} has examples of {model.shape}; here they are {parts.spec.shape}")
    reason = "a student needs the same conditions"
    needed = parts.network().conditions if conditions is None else conditions
    check_same_conditions(run, needed, model.network_conditions, reason)
    return run


def model_of(run: Trained) -> Diffusion:
    """The diffusion model of a run, which is that of the latents in a latent or text-to-image model."""
    return getattr(run.system, "diffusion", run.system)


def teacher(parts: Parts, role: str = "denoiser") -> Teacher:
    """The teacher of a config, see `run_of`, also for errors."""
    return Teacher(diffusion=model_of(run_of(parts, role)))


def check_same_network(parts: Parts, role: str = "denoiser") -> None:
    """Raises ConfigError unless config.network is the network of the teacher, whose parameters the student copies.

    The student may have an embedding of a guidance scale in addition, which starts at zero.
    """
    run = run_of(parts, role)
    if dim := run.config.network.get(EMBEDDING, 0):
        raise ConfigError(
            f"{run.field}={str(run.directory)!r}: config.network.{EMBEDDING}={dim} there, so its network was distilled "
            "with guidance already, and its student would be guided twice"
        )
    lines = changes(parts.config, run.config.to_dict())
    free = tuple(f"config.network.{key} " for key in _FREE)
    differences = [line for line in lines if line.startswith("config.network.") and not line.startswith(free)]
    if differences:
        raise ConfigError(
            f"{run.field}={str(run.directory)!r}: a student that starts as a copy of its teacher needs the same "
            f"network: {'; '.join(differences)}"
        )


def stands_on(parts: Parts, role: str = "denoiser", *, copied: bool) -> Mapping[str, Callable[[], Params]]:
    """The frozen teacher, and if `copied` also the network, which starts with the teacher's parameters.

    What the network has in addition, the embedding of a guidance scale, starts at zero.
    """
    run = run_of(parts, role)
    # Both are loaded, because the train step donates every buffer of its state, and only once.
    frozen = {"frozen/teacher": lambda: params_of(run.load())}
    shapes = jax.eval_shape(parts.network().init, jax.random.key(0))
    return {**frozen, "network": lambda: _completed(run.load()["network"], shapes)} if copied else frozen


def _completed(params: Params, shapes: Params) -> Params:
    """`params` with zeros for what only `shapes` has."""
    return {
        name: _completed(params.get(name, {}), entry)
        if isinstance(entry, Mapping)
        else params.get(name, np.zeros(entry.shape, entry.dtype))
        for name, entry in shapes.items()
    }
