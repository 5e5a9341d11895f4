"""Faults of the machine during a run: full disks, missing files, closed terminals, hung reads, dead processes."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import queue
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import IO, Any, TypeVar

import jax

Item = TypeVar("Item")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # pathlib reduces "gs://bucket" to "gs:/bucket"


class Fault(RuntimeError):
    """A fault that ends the run. The message is one paragraph: what happened, what is lost, what to do."""


@contextlib.contextmanager
def explained(workdir: pathlib.Path) -> Iterator[None]:
    """Context manager that turns faults of training into a `Fault` that names the newest complete checkpoint.

    These are an OSError of writing, a `Fault` of reading, and with several processes an error of a computation that
    they share. A KeyboardInterrupt remains one and gets the same sentence.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_left(workdir)) from None
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


def check_local(field: str, path: str | os.PathLike) -> None:
    """Raises ValueError, which names `field`, if `path` is a URL such as gs://bucket/run or file:///data."""
    url = _URL.match(os.fspath(path))
    if url:
        raise ValueError(
            f"{field}={os.fspath(path)!r} must be a path in the file system of this machine, not a URL "
            f"({url[1]}:). Mount the bucket, for example with gcsfuse, s3fs or rclone (docs/launch.md), or copy it "
            "here, and give the path of the mounted folder"
        )


def check_local_options(options: Mapping[str, Any]) -> None:
    """`check_local` for the options of a command, by name, among which all values that are texts or paths may be paths.

    Raises ValueError for the first URL.
    """
    for name, value in options.items():
        if isinstance(value, str | os.PathLike):
            check_local(f"--{name}", value)


class _Kept:
    """A text stream that drops what cannot be written, for example to a closed pipe, instead of raising OSError."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Nobody will read this pipe or terminal again. Other errors, such as a full disk, may pass.
            if error.errno in (errno.EPIPE, errno.EIO):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)


@contextlib.contextmanager
def one_line_if_interrupted() -> Iterator[None]:
    """Context manager of a command: Ctrl-C ends it with one line and code 130, without a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


@contextlib.contextmanager
def output_kept() -> Iterator[None]:
    """Context manager in which a closed standard output or error (a pipe, a terminal) raises nothing: it is silent."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_Kept, streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


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
