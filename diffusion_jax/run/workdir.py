"""The work directory of a run: check that it can be written, and lock it against a second training job."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import sys
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax.config.sections import ConfigError, refusal
from diffusion_jax.training.faults import check_local, replacing

CLASSES = "classes.json"  # name of each class -> its number


def check_writable(folder: pathlib.Path, flag: str = "--workdir") -> None:
    """Raises ConfigError, which names the flag, unless `folder`, or the one in which it would be created, is writable.

    Creates nothing.
    """
    with refusal():
        check_local(flag, folder)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{flag}={folder} cannot be written: {existing} is not a writable folder")


def write_classes(workdir: pathlib.Path, names: Sequence[str]) -> None:
    """Write the numbers of the classes by their names as classes.json, if they have names."""
    if names:
        with replacing(workdir / CLASSES, "w") as file:
            numbers = {name: number for number, name in enumerate(names)}
            file.write(json.dumps(numbers, indent=2, ensure_ascii=False) + "\n")


def read_classes(workdir: pathlib.Path) -> tuple[str, ...]:
    """The names of the classes in classes.json, in the order of their numbers; () without the file.

    Raises:
        ConfigError: it is not an object of the numbers 0, 1, ... by names.
    """
    path = workdir / CLASSES
    if not path.exists():
        return ()
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))
        names = {number: name for name, number in numbers.items()}
        return tuple(names[number] for number in range(len(numbers)))
    except (OSError, ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def check_classes(workdir: pathlib.Path, names: Sequence[str]) -> None:
    """Raises ConfigError if the run in `workdir` was trained with other classes, or other numbers of them."""
    before = read_classes(workdir)
    if not before or not names or before == tuple(names):
        return
    number = next((i for i, (old, new) in enumerate(zip(before, names, strict=False)) if old != new), None)
    change = (
        f"there were {len(before)} classes and there are {len(names)}"
        if number is None
        else f"class {number} was {before[number]!r} and is {names[number]!r}"
    )
    raise ConfigError(
        f"config.data has other classes than {workdir / CLASSES}, which the run was trained with: {change}. Use "
        "another --workdir, or delete the file if the model is to learn the new ones"
    )


@contextlib.contextmanager
def only_trainer(workdir: pathlib.Path) -> Iterator[None]:
    """Create `workdir` and lock it, so that no other job trains in it. The operating system unlocks it at exit.

    Raises ConfigError, on every process of this job, if another job is training there.
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
                f"--workdir={workdir} is being trained in by {holder}; wait for it, or choose another folder"
            )
        yield
