"""config.json of a work directory: read, write, and check that a config fits its checkpoints."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config.defaults import defaults
from diffusion_jax.config.sections import ConfigError, changes
from diffusion_jax.training.faults import replacing

# Sections that determine structure and meaning of the parameters, if the system reads them.
MODEL = ("process", "parameterization", "network")
# Keys that also determine the structure of the train state.
STATE = ("optimizer.name", "optimizer.groups", "ema.rates", "lora")
# Paths of files of the frozen parts. They may be moved, but the tokenizer "bytes" is not a path.
_PATHS = ("system.pipeline", "system.tokenizer")


def read_config(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Reads config.json of `workdir`; None if there is none. Raises ConfigError if it is not a JSON object."""
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        saved = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(saved, dict):
        raise ConfigError(f"{path} cannot be read: it holds a {type(saved).__name__}, not the sections of a config")
    return saved


def write_config(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Write the resolved config as config.json, atomically."""
    with replacing(workdir / "config.json", "w") as file:
        file.write(json.dumps(config.to_dict(), indent=2) + "\n")


def check_same_model(
    config: ConfigDict, workdir: pathlib.Path, *, resume: bool, reads: Collection[str] = MODEL
) -> list[str]:
    """Check that a config describes the model, and with `resume` the train state, of the checkpoints in `workdir`.

    `reads` are the sections that the system reads; others are ignored. Returns the allowed differences as lines. Raises
    ConfigError, which lists the others.
    """
    saved = read_config(workdir)
    if saved is None:
        return []
    model = ("system", *(section for section in MODEL if section in reads), "data.image_size", "data.channels")
    fixed = (*model, *(STATE if resume else ()))
    differences = changes(config, {**defaults().to_dict(), **saved})  # the file may be older than a section
    refused = [
        line
        for line in differences
        if any(_key(line) == f or _key(line).startswith(f + ".") for f in fixed)
        and not (_key(line) in _PATHS and "'bytes'" not in line)
    ]
    if refused:
        raise ConfigError(
            f"{workdir} holds a run of another model: {'; '.join(refused)}. "
            "Use the config that it was trained with, or another --workdir"
        )
    return differences


def _key(line: str) -> str:
    return line.split(" ", 1)[0].removeprefix("config.")
