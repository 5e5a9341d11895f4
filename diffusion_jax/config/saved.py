"""config.json of a work directory, and whether a config fits the checkpoints that lie there."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config.defaults import defaults
from diffusion_jax.config.sections import ConfigError, changes
from diffusion_jax.training.faults import replacing

# What decides the structure and the meaning of the parameters, where the system reads it.
MODEL = ("process", "parameterization", "network")
# What decides, beyond that, the structure of the train state.
STATE = ("optimizer.name", "optimizer.groups", "ema.rates", "lora")
# Where files of the frozen parts lie, which may be moved, unless a tokenizer is none of them but "bytes".
_PLACES = ("system.pipeline", "system.tokenizer")


def read_config(workdir: pathlib.Path) -> dict[str, Any] | None:
    """What config.json of `workdir` holds, or None. Raises ConfigError for a file that is not a JSON object."""
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
    """Write the resolved config as config.json, in one piece."""
    with replacing(workdir / "config.json", "w") as file:
        file.write(json.dumps(config.to_dict(), indent=2) + "\n")


def check_same_model(
    config: ConfigDict, workdir: pathlib.Path, *, resume: bool, reads: Collection[str] = MODEL
) -> list[str]:
    """Refuse a config whose model, or with `resume` whose train state, is not that of the checkpoints in `workdir`.

    `reads` are the sections that the system reads; others do not matter. Returns the other differences, which are
    allowed. Raises ConfigError naming the keys.
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
        and not (_key(line) in _PLACES and "'bytes'" not in line)
    ]
    if refused:
        raise ConfigError(
            f"{workdir} holds a run of another model: {'; '.join(refused)}. "
            "Give the config that it was trained with, or another --workdir"
        )
    return differences


def _key(line: str) -> str:
    return line.split(" ", 1)[0].removeprefix("config.")
