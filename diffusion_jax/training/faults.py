"""Faults of the machine during a run: full disks, missing files, reads that hang, processes that die."""

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
    """A fault that ends the run. The message is one paragraph: what happened, what is lost, what to do."""


@contextlib.contextmanager
def explained(workdir: pathlib.Path) -> Iterator[None]:
    """Context manager that turns faults of training into a `Fault` that names the newest complete checkpoint.

    These are an OSError of writing, a `Fault` of reading, and with several processes an error of a computation that
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
    """A sentence about the newest checkpoint. A folder with the name of a step is complete."""
    folder = workdir / "checkpoints"
    with contextlib.suppress(OSError):
        steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
        if steps:
            return f"Step {max(steps)} in {folder} is complete: the same command goes on from there"
    return "No checkpoint has been saved: the same command starts from step 0"


@contextlib.contextmanager
def replacing(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO[Any]]:
    """Context manager of a file to write, which replaces `path` atomically at the end. After an error it is removed.

    The folder is created if it does not exist. Raises OSError that names `path`, for example on a full disk.
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
    """Yields the same items, each read by a thread with a timeout of `seconds` (0: no limit).

    A thread that waits for a disk or a server cannot be stopped, so it is abandoned; it does not keep the program from
    ending. Raises Fault after the timeout, with `what` as the name of an item.
    """
    if not seconds:
        yield from items
        return
    requests: queue.SimpleQueue[bool] = queue.SimpleQueue()
    results: queue.SimpleQueue[tuple[Item | None, BaseException | None]] = queue.SimpleQueue()

    def read() -> None:
        while requests.get():
            try:
                results.put((next(items), None))
            except BaseException as error:
                results.put((None, error))

    threading.Thread(target=read, daemon=True, name=f"waits for {what}").start()
    try:
        while True:
            requests.put(True)
            try:
                item, error = results.get(timeout=seconds)
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
        requests.put(False)
