"""Check the keys and the plain values of a config, before anything is compiled or written."""

from __future__ import annotations

import importlib.util
import math
import pathlib
import re

from ml_collections import ConfigDict

from diffusion_jax.config.defaults import defaults
from diffusion_jax.config.sections import ConfigError, check_type, flatten, lookup, refusal, suggest
from diffusion_jax.networks.functional import check_dtype
from diffusion_jax.training.faults import check_local

_SECRET = re.compile(r"(.*[._])?(api_?key|secret|password|passwd|credentials?|token)", re.IGNORECASE)
_FILE_NAME = re.compile(r"\w[\w.=+-]{0,199}")
_CONDITIONS = (".npz", ".json", ".txt")  # suffixes of files of conditions
LOGGERS = {"jsonl": "json", "tensorboard": "tensorboardX", "wandb": "wandb"}  # logger -> module that it needs


def check_keys(config: ConfigDict) -> None:
    """Raises ConfigError for unknown or missing sections and keys, wrong types, numbers out of range, and secrets.

    The keys of sections with a `name` are checked when they are constructed.
    """
    for key in flatten(config):
        if _SECRET.fullmatch(key):
            raise ConfigError(
                f"config.{key} looks like a secret; a config must have none, as it is written to config.json. Loggers "
                "read secrets from the environment, such as WANDB_API_KEY"
            )
    for key, value in flatten(config).items():
        # The conditions of samples may be a text that looks like a URL.
        if isinstance(value, str) and (key != "sampling.cond" or pathlib.PurePath(value).suffix in _CONDITIONS):
            with refusal():
                check_local(f"config.{key}", value)
    known = defaults()
    for key in config:
        if key not in known:
            raise ConfigError(f"config.{key} is unknown{suggest(key, list(known))}; there are {', '.join(known)}")
    for key, section in known.items():
        if key not in config:
            raise ConfigError(f"config.{key} is missing; start from diffusion_jax.config.defaults()")
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
        ("sampling.samples_per_condition", 1),
        ("evaluation.num_samples", 2),
        ("evaluation.samples_per_condition", 1),
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
        if name == "seed" and value >= 2**32:  # JAX would take the lower 32 bits, and 2^32 for 0
            raise ConfigError(f"config.{field}={value!r} must be less than 2^32")
    if not 0 <= config.training.data_timeout < math.inf:
        raise ConfigError(f"config.training.data_timeout={config.training.data_timeout} must be at least 0, in seconds")
    if not _FILE_NAME.fullmatch(config.sampling.file):
        raise ConfigError(
            f"config.sampling.file={config.sampling.file!r} must be the name of a file in WORKDIR/samples, with or "
            "without .npz: letters, digits, and . _ - = + after the first one"
        )
    with refusal("config.training.dtype"):
        check_dtype(config.training.dtype)
    if config.training.batch_size % config.training.accumulate:
        raise ConfigError(
            f"config.training.accumulate={config.training.accumulate} must divide "
            f"config.training.batch_size={config.training.batch_size}"
        )
    for name in config.training.loggers:
        if importlib.util.find_spec(lookup(LOGGERS, "training.loggers", name)) is None:
            raise ConfigError(f"config.training.loggers: {name!r} needs pip install 'diffusion_jax[{name}]'")
    if not 0 <= config.lora.alpha < math.inf:
        raise ConfigError(f"config.lora.alpha={config.lora.alpha} must be finite and at least 0")
    if not math.isfinite(config.lora.scale):
        raise ConfigError(f"config.lora.scale={config.lora.scale} must be a finite number")
    if not 0 <= config.ema.rampup < math.inf:
        raise ConfigError(f"config.ema.rampup={config.ema.rampup} must be at least 0; EDM's is 0.05")
    for rate in config.ema.rates:
        check_type("ema.rates", rate, "float")
    if config.ema.rates or config.sampling.ema_rate:
        ema_rate(config)


def ema_rate(config: ConfigDict) -> str:
    """Name of the EMA for sampling: config.sampling.ema_rate, or the first of config.ema.rates. Raises ConfigError."""
    rates = [str(rate) for rate in config.ema.rates]
    rate = str(config.sampling.ema_rate) if config.sampling.ema_rate else rates[0]
    if rate not in rates:
        raise ConfigError(f"config.sampling.ema_rate={rate} is not among config.ema.rates=({', '.join(rates)})")
    return rate
