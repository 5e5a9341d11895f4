"""The files of a work directory, and whether a config fits the checkpoint that lies there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from diffusion_jax.config.defaults import defaults
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.training.faults import replacing

# What decides the structure and the meaning of the parameters.
MODEL = ("system", "process", "parameterization", "network")
# What decides, beyond that, the structure of the train state.
STATE = ("optimizer.name", "optimizer.groups", "ema.rates", "lora")
# Where files of the frozen parts lie, which may be moved, unless a tokenizer is none of them but "bytes".
_PLACES = ("system.pipeline", "system.tokenizer")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"section.key": value} of nested mappings."""
    if not isinstance(config, dict | ConfigDict):
        return {prefix: list(config) if isinstance(config, tuple) else config}
    return {k: v for key in config for k, v in flatten(config[key], f"{prefix}.{key}" if prefix else key).items()}


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


def check_writable(workdir: pathlib.Path) -> None:
    """Raises ConfigError unless `workdir`, or the folder it would be created in, can be written. Creates nothing."""
    existing = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"--workdir={workdir} cannot be written: {existing} is not a writable folder")


@contextlib.contextmanager
def only_trainer(workdir: pathlib.Path) -> Iterator[None]:
    """While it lasts, no other job may train in `workdir`, which is created. The system ends it if the process dies.

    Raises ConfigError, on every process of this job, where another job is training there.
    """
    with contextlib.ExitStack() as stack:
        holder = None
        if jax.process_index() == 0:
            workdir.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((workdir / "lock").open("a+"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another process"
            except OSError as error:  # a file system without locks
                print(f"{workdir} cannot be locked ({error}): do not start a second job there", file=sys.stderr)
            else:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
        if jax.process_count() > 1:
            refused = multihost_utils.broadcast_one_to_all(np.array(holder is not None))
            holder = (holder or "another job") if refused else None
        if holder is not None:
            raise ConfigError(
                f"--workdir={workdir} is being trained in by {holder}; wait for it, or give another folder"
            )
        yield


def changes(config: ConfigDict, saved: dict[str, Any]) -> list[str]:
    """Lines "config.key is A here and B there" for every key in which the two differ."""
    here, there = flatten(config), flatten(saved)
    return [
        f"config.{key} is {here.get(key)!r} now and was {there.get(key)!r}"
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key)
    ]


def check_same_model(config: ConfigDict, workdir: pathlib.Path, *, resume: bool) -> list[str]:
    """Refuse a config whose model, or with `resume` whose train state, is not that of the checkpoints in `workdir`.

    Returns the other differences, which are allowed. Raises ConfigError naming the keys.
    """
    saved = read_config(workdir)
    if saved is None:
        return []
    fixed = (*MODEL, "data.image_size", "data.channels", *(STATE if resume else ()))
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
