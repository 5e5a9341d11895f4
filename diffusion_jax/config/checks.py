"""Whether a config fits together: what can be said before anything is compiled or written."""

from __future__ import annotations

import importlib.util
import math
import re
import warnings
from collections.abc import Callable, Mapping

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax.config.defaults import defaults
from diffusion_jax.config.sections import ConfigError, check_type, flatten, lookup, suggest
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.systems import augmentation
from diffusion_jax.types import Process

LEARNED_VARIANCE = ("hybrid", "vlb")  # losses of a network with a second output
_SECRET = re.compile(r"(.*[._])?(api_?key|secret|password|passwd|credentials?|token)", re.IGNORECASE)
_FILE_NAME = re.compile(r"\w[\w.=+-]{0,199}")
LOGGERS = {"jsonl": "json", "tensorboard": "tensorboardX", "wandb": "wandb"}  # and the module that each needs


def check_keys(config: ConfigDict) -> None:
    """Refuse sections, and keys of sections without a `name`, that `defaults` does not have, lacks or has otherwise.

    Raises ConfigError. Keys of named sections are checked when they are constructed.
    """
    for key in flatten(config):
        if _SECRET.fullmatch(key):
            raise ConfigError(
                f"config.{key} looks like a secret, which a config cannot hold: it is written to config.json. Loggers "
                "read theirs from the environment, such as WANDB_API_KEY"
            )
    known = defaults()
    for key in config:
        if key not in known:
            raise ConfigError(f"config.{key} is unknown{suggest(key, list(known))}; there are {', '.join(known)}")
    for key, section in known.items():
        if key not in config:
            raise ConfigError(f"config.{key} is missing; begin with diffusion_jax.defaults.defaults()")
        if isinstance(section, ConfigDict) and not isinstance(config[key], ConfigDict):
            raise ConfigError(f"config.{key}={config[key]!r} must be a section with keys, such as config.{key}.name")
        check_type(key, config[key], type(section).__name__)
        if isinstance(section, ConfigDict) and "name" not in section:
            for name in config[key]:
                if name not in section:
                    raise ConfigError(
                        f"config.{key}.{name} is unknown{suggest(name, list(section))}; there are {', '.join(section)}"
                    )
            for name, value in section.items():
                if name not in config[key]:
                    raise ConfigError(f"config.{key}.{name} is missing; it is {value!r} by default")
                check_type(f"{key}.{name}", config[key][name], type(value).__name__)
    for field, least in (
        ("training.num_steps", 1),
        ("training.batch_size", 1),
        ("training.log_every", 1),
        ("training.checkpoint_every", 1),
        ("training.sample_every", 0),
        ("training.accumulate", 1),
        ("training.keep_last", 1),
        ("training.keep_every", 0),
        ("sampling.num_samples", 1),
        ("sampling.steps", 1),
        ("sampling.batch_size", 1),
        ("evaluation.num_samples", 2),
        ("lora.rank", 0),
        ("profile.after", 0),
        ("profile.steps", 0),
        ("seed", 0),
        ("sampling.seed", 0),
    ):
        section, _, name = field.rpartition(".")
        value = config[section][name] if section else config[name]
        check_type(field, value, "int")
        if value < least:
            raise ConfigError(f"config.{field}={value!r} must be an integer of at least {least}")
    if not 0 <= config.training.data_timeout < math.inf:
        raise ConfigError(f"config.training.data_timeout={config.training.data_timeout} must be at least 0, in seconds")
    if not _FILE_NAME.fullmatch(config.sampling.file):
        raise ConfigError(
            f"config.sampling.file={config.sampling.file!r} must be the name of a file in WORKDIR/samples without its "
            "suffix: letters, digits, and . _ - = + after the first one"
        )
    if config.training.batch_size % config.training.accumulate:
        raise ConfigError(
            f"config.training.accumulate={config.training.accumulate} must divide "
            f"config.training.batch_size={config.training.batch_size}"
        )
    for name in config.training.loggers:
        if importlib.util.find_spec(lookup(LOGGERS, "training.loggers", name)) is None:
            raise ConfigError(f"config.training.loggers: {name!r} needs pip install 'diffusion_jax[{name}]'")
    for rate in config.ema.rates:
        check_type("ema.rates", rate, "float")
    if config.ema.rates or config.sampling.ema_rate:
        ema_rate(config)


def ema_rate(config: ConfigDict) -> str:
    """The name of the average that samples come from: config.sampling.ema_rate, or the first of config.ema.rates."""
    rates = [str(rate) for rate in config.ema.rates]
    rate = str(config.sampling.ema_rate) if config.sampling.ema_rate else rates[0]
    if rate not in rates:
        raise ConfigError(f"config.sampling.ema_rate={rate} is not among config.ema.rates=({', '.join(rates)})")
    return rate


def sampling_times(config: ConfigDict, process: Process, grid: Callable) -> jax.Array:
    """The times that a solver steps through. Refuses a grid that does not fit the process or the number of steps."""
    section = config.sampling.grid
    try:
        times = jax.jit(grid, static_argnums=1)(process, config.sampling.steps)
    except AttributeError as error:
        raise ConfigError(
            f"config.sampling.grid.name={section.name!r} needs a discrete process; "
            f"config.process.name={config.process.name!r} is continuous"
        ) from error
    except ValueError as error:
        raise ConfigError(f"config.sampling.steps={config.sampling.steps}: {error}") from error
    if (np.asarray(times) < 0).any() or (np.asarray(times) > 1).any():
        raise ConfigError(
            f"config.sampling.grid ({section.name}): its times run from {times[0]:g} to {times[-1]:g}, "
            "but t is in [0, 1]; mind t_min and t_max"
        )
    if not np.isfinite(times).all() or (np.diff(times)[1:] >= 0).any():
        raise ConfigError(
            f"config.sampling.grid ({section.name}): sigma / alpha is zero or infinite at an end of its times for the "
            f"process {config.process.name!r}; set config.sampling.grid.t_min and t_max inside the range"
        )
    return times


def check_outputs(
    config: ConfigDict,
    shape: tuple[int, ...],
    init: Callable,
    apply: Callable,
    conditions: Conditions,
    *,
    learned_variance: bool,
) -> None:
    """Refuse a network without the outputs that the loss needs, and what asks for a variance that is not learned."""
    given = jax.ShapeDtypeStruct
    cond = jax.eval_shape(conditions.null)
    with_batch = given((1, *shape), np.float32)
    try:
        out = jax.eval_shape(apply, jax.eval_shape(init, jax.random.key(0)), with_batch, given((1,), np.float32), cond)
    except ValueError as error:
        raise ConfigError(f"config.network ({config.network.name}) does not fit the data: {error}") from error
    channels = shape[-1] * (2 if learned_variance else 1)
    if out.shape[-1] != channels:
        raise ConfigError(
            f"config.network.out_channels={out.shape[-1]} must be {channels} for the {shape[-1]} channels of the data "
            f"and config.loss.name={config.loss.name!r}"
            f"{', which learns variances beside means' if learned_variance else ''}"
        )
    for field, section in (("solver", config.solver), ("evaluation.likelihood", config.evaluation.likelihood)):
        if section.get("variance") == "learned" and not learned_variance:
            raise ConfigError(
                f"config.{field}.variance='learned' needs a config.loss.name among {', '.join(LEARNED_VARIANCE)}; "
                f"it is {config.loss.name!r}"
            )
    if config.times.name == "loss_second_moment" and not learned_variance:
        raise ConfigError(
            f"config.times.name='loss_second_moment' follows the terms of the bound, which config.loss.name="
            f"{config.loss.name!r} has not; choose one of {', '.join(LEARNED_VARIANCE)}"
        )


def check_guidance(
    config: ConfigDict, conditions: Conditions, cond_dropout: float, cond_dropouts: Mapping[str, float]
) -> None:
    """Refuse classifier-free guidance of a model without conditions; warn of one that never saw their absence."""
    rates = {"cond_dropout": cond_dropout, **{f"cond_dropouts.{name}": rate for name, rate in cond_dropouts.items()}}
    for field, rate in rates.items():
        check_type(f"system.{field}", rate, "float")
        if not 0 <= rate < 1:
            raise ConfigError(f"config.system.{field}={rate} must be in [0, 1)")
    names = [name for name, condition in conditions.items() if not (condition.along or condition.structure)]
    for name in cond_dropouts:
        if name not in names:
            raise ConfigError(
                f"config.system.cond_dropouts.{name}: the network has no such condition to drop{suggest(name, names)}; "
                f"it has {', '.join(names) or 'none'}"
            )
    if cond_dropout and not conditions.shapes:
        raise ConfigError(
            f"config.system.cond_dropout={cond_dropout}: the network has no conditions to drop; set "
            "config.network.num_classes, for example"
        )
    if config.guidance.name != "classifier_free":
        return
    if not conditions.shapes:
        raise ConfigError(
            "config.guidance.name='classifier_free' needs a conditional model; this network reads no condition: set "
            "config.network.num_classes, for example"
        )
    ever = cond_dropout or all(cond_dropouts.get(name) for name in names)
    if not ever and config.guidance.get("scale", 1.0) != 1:
        warnings.warn(
            f"config.guidance.scale={config.guidance.scale}, but config.system.cond_dropout=0: the model was never "
            "trained without its condition, so there is no unconditional branch to guide away from",
            stacklevel=2,
        )


def check_augmentation(config: ConfigDict, probability: float) -> None:
    """Refuse augmentation of which the network is not told, or of what are no images."""
    told = config.network.get("augment_dim", 0)
    if not 0 <= probability <= 1:
        raise ConfigError(f"config.system.augment={probability} must be in [0, 1]")
    if probability and told != augmentation.DIM:
        raise ConfigError(
            f"config.system.augment={probability} needs a network that is told what was done to an image, or it would "
            f"draw such images: config.network.name='song_unet' with augment_dim={augmentation.DIM}, not {told}"
        )


def check_coefficients(config: ConfigDict, process: Process, param: Callable, times: np.ndarray) -> None:
    """Refuse times outside [0, 1], and a parameterization that is not finite at one, such as eps where alpha = 0."""
    if (times < 0).any() or (times > 1).any():
        raise ConfigError(
            f"config.times ({config.times.name}): times from {times.min():g} to {times.max():g} are drawn, but t is in "
            "[0, 1]; mind t_min and t_max"
        )
    try:
        coefficients = jax.jit(param)(process, times)
    except AttributeError as error:
        raise ConfigError(
            f"config.parameterization.label={config.parameterization.get('label')!r} needs a discrete process; "
            f"config.process.name={config.process.name!r} is continuous"
        ) from error
    for name, value in coefficients._asdict().items():
        bad = ~np.isfinite(np.asarray(value))
        if bad.any():
            raise ConfigError(
                f"config.parameterization.name={config.parameterization.name!r}: {name} is not finite at "
                f"t = {float(times[np.argmax(bad)]):g} of the process {config.process.name!r}; use another "
                "parameterization, or t_min and t_max inside the range in config.times and config.sampling.grid"
            )
