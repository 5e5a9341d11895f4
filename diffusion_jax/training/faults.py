"""What can happen to a run through no fault of its config: disks fill up, files vanish, reads hang, processes die."""

from __future__ import annotations

import contextlib
import os
import pathlib
import queue
import threading
from collections.abc import Iterator
from typing import IO, Any, TypeVar

import jax

Item = TypeVar("Item")


class Fault(RuntimeError):
    """The run cannot go on here. The message is one paragraph: what happened, what is lost, what to do."""


@contextlib.contextmanager
def explained(workdir: pathlib.Path) -> Iterator[None]:
    """Turn what the machine did to a training run into a `Fault` that says what is left of it.

    That is an OSError of writing, a `Fault` of reading, and among several processes an error of a computation that
    they share.
    """
    try:
        yield
    except (Fault, OSError) as error:
        raise Fault(f"{error}. {_left(workdir)}") from error
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise Fault(
            f"process {jax.process_index()} of {jax.process_count()} lost touch with the others "
            f"({str(error).splitlines()[0][:300]}); the log of the one that ended first says why. {_left(workdir)}"
        ) from error


def _left(workdir: pathlib.Path) -> str:
    """Checkpoints get their name when they are complete, so their names say enough, whatever has failed."""
    folder = workdir / "checkpoints"
    with contextlib.suppress(OSError):
        steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
        if steps:
            return f"Step {max(steps)} in {folder} is complete: the same command goes on from there"
    return "No checkpoint had been saved: the same command begins anew"


@contextlib.contextmanager
def replacing(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file to write that takes the place of `path` when it is complete. After an error nothing is left of it.

    Its folder is created where missing. Raises OSError naming `path`, for example on a full disk.
    """
    path = pathlib.Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def in_time(items: Iterator[Item], seconds: float, what: str) -> Iterator[Item]:
    """The same items, each taken by a thread that is given up when it needs more than `seconds` (0: no limit).

    A thread that waits for a disk or a server can neither be asked nor stopped, so it is left behind; it does not
    keep the program from ending. Raises Fault, with `what` as the name of an item.
    """
    if not seconds:
        yield from items
        return
    wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
    taken: queue.SimpleQueue[tuple[Item | None, BaseException | None]] = queue.SimpleQueue()

    def take() -> None:
        while wanted.get():
            try:
                taken.put((next(items), None))
            except BaseException as error:
                taken.put((None, error))

    threading.Thread(target=take, daemon=True, name=f"waits for {what}").start()
    try:
        while True:
            wanted.put(True)
            try:
                item, error = taken.get(timeout=seconds)
            except queue.Empty:
                raise Fault(
                    f"{what} did not come within config.training.data_timeout={seconds:g} seconds: a read hangs, or is "
                    "slower than that"
                ) from None
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        wanted.put(False)
