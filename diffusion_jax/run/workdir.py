"""The work directory of a run: check that it can be written, and lock it against a second training job."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import socket
import sys
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax.config.sections import ConfigError


def check_writable(workdir: pathlib.Path) -> None:
    """Raises ConfigError unless `workdir`, or the folder in which it would be created, is writable. Creates nothing."""
    existing = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"--workdir={workdir} cannot be written: {existing} is not a writable folder")


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
