"""config.json of a work directory: read, write, and check that a config fits its checkpoints.

runs.json next to it has the configs of the runs that the model was built on, such as its first stage, by the key that
names their work directories. Those may be moved, but not replaced by runs of other models.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config.defaults import defaults
from diffusion_jax.config.sections import ConfigError, changes
from diffusion_jax.training.faults import replacing

# Sections that determine structure and meaning of the parameters, if the system reads them.
MODEL = ("process", "parameterization", "network")
# Keys that also determine the structure of the train state.
STATE = ("optimizer.name", "optimizer.groups", "ema.rates", "lora")
_DATA = ("data.image_size", "data.channels")
# Paths of files and runs of the frozen parts. They may be moved, but the tokenizer "bytes" is not a path.
_STANDS_ON = ("first_stage", "model", "teacher", "autoencoder", "denoiser")
_RUNS = tuple(f"system.{run}{end}" for run in _STANDS_ON for end in ("", "_config"))
_PATHS = ("system.pipeline", "system.tokenizer", *_RUNS)
# Keys of config.system that only sampling reads. The base of a cascade may be replaced by another run.
_OF_SAMPLING = (
    "system.direction",
    "system.missing",
    "system.level",
    "system.stochastic_code",
    "system.attribute",
    "system.vote",
    "system.base",
    "system.base_config",
)
# Keys of config.system that training reads and that are not of the model: fine-tuning and sampling may choose others.
_OF_TRAINING = ("system.weighted", "system.cond_dropout", "system.quality", "system.embeddings")


def read_config(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Reads config.json of `workdir`; None if there is none. Raises ConfigError if it is not a JSON object."""
    return _read(workdir / "config.json")


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        saved = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(saved, dict):
        raise ConfigError(f"{path} cannot be read: it holds a {type(saved).__name__}, not the sections of a config")
    return saved


def write_config(workdir: pathlib.Path, config: ConfigDict, runs: Mapping[str, ConfigDict] | None = None) -> None:
    """Write the resolved config as config.json, and the configs of other `runs`, by key, as runs.json, atomically."""
    for name, value in (("config", config), ("runs", runs and {key: run.to_dict() for key, run in runs.items()})):
        if value:
            with replacing(workdir / f"{name}.json", "w") as file:
                file.write(json.dumps(value.to_dict() if isinstance(value, ConfigDict) else value, indent=2) + "\n")


def check_same_model(
    config: ConfigDict,
    workdir: pathlib.Path,
    *,
    resume: bool,
    reads: Collection[str] = MODEL,
    runs: Mapping[str, ConfigDict] | None = None,
) -> list[str]:
    """Check that a config describes the model, and with `resume` the train state, of the checkpoints in `workdir`.

    `reads` are the sections that the system reads; others are ignored. `runs` are the configs of the runs that the
    model is built on, by key; their models must be those of runs.json, if there is one. Returns the allowed differences
    as lines. Raises ConfigError, which lists the others.
    """
    saved = read_config(workdir)
    if saved is None:
        return []
    model = ("system", *(section for section in MODEL if section in reads), *_DATA)
    differences = changes(config, _completed(saved))
    refused = _among(differences, (*model, *(STATE if resume else ())))
    refused = [line for line in refused if resume or _key(line) not in _OF_TRAINING]
    runs_before = _read(workdir / "runs.json") or {}
    for key, run in (runs or {}).items():
        before = None if key.removeprefix("config.") in _OF_SAMPLING else runs_before.get(key)
        if isinstance(before, dict):
            other = _among(changes(run, _completed(before)), ("system", *MODEL, *_DATA))
            refused += [f"{key} is another model, whose {line}" for line in other]
    if refused:
        raise ConfigError(
            f"{workdir} holds a run of another model: {'; '.join(refused)}. "
            "Use the config that it was trained with, or another --workdir"
        )
    return differences


def _completed(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved config with the defaults of sections, and of keys of sections without a name, that are newer than it."""
    whole = {**defaults().to_dict(), **saved}
    for name, section in defaults().to_dict().items():
        if isinstance(section, dict) and isinstance(whole[name], dict) and "name" not in section:
            whole[name] = {**section, **whole[name]}
    return whole


def _among(differences: list[str], fixed: Collection[str]) -> list[str]:
    """Those lines of `sections.changes` that are about one of the sections or keys `fixed`, and not about a path, or
    about sampling alone."""
    return [
        line
        for line in differences
        if any(_key(line) == name or _key(line).startswith(name + ".") for name in fixed)
        and not (_key(line) in _PATHS and "'bytes'" not in line)
        and _key(line) not in _OF_SAMPLING
    ]


def _key(line: str) -> str:
    return line.split(" ", 1)[0].removeprefix("config.")
