"""Checkpoints of the train state and the data iterator, written in the background by Orbax."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax.training import mesh as mesh_lib
from diffusion_jax.training.checksums import checksums


class Checkpoints:
    """A folder of checkpoints, one subfolder per step, each with the train state and the state of the data iterator.

    A checkpoint does not depend on the mesh or the number of processes, so that training can resume on others.

    A save runs in the background, and its folder gets the name of the step only when it is complete, so that a killed
    process leaves the previous checkpoints usable. A single process copies the state to the host, without waiting for
    queued steps, and a thread writes it; several processes save together, and continue when their shards have been
    copied. Old checkpoints are removed after a new one is complete: the last `keep_last` are kept, and those whose step
    is a multiple of `keep_every` (0: none).

    Restoring a step makes all later steps stale (they could not be read, or training restarted from an older step):
    they stay on disk, do not count for `keep_last`, and are replaced when training saves the same step.

    Raises ValueError for `keep_last` below 1 or `keep_every` below 0.
    """

    def __init__(self, directory: str | pathlib.Path, *, keep_last: int = 2, keep_every: int = 0) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last={keep_last}: must be at least 1")
        if keep_every < 0:
            raise ValueError(f"keep_every={keep_every}: must be at least 0 (0: keep none beyond the last ones)")
        self.directory = pathlib.Path(directory).absolute()
        self._stale: set[int] = set()
        self._policy = _Preservation(keep_last=keep_last, keep_every=keep_every, stale=self._stale)
        self._thread = futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._begun: futures.Future[None] | None = None  # the start of a save, in the thread

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: Any) -> None:
        if kind is None:
            self.close()
        elif jax.process_count() == 1 and not issubclass(kind, KeyboardInterrupt):  # which asks not to save
            with contextlib.suppress(OSError):  # the exception that is being raised says more
                self.close()
        # With several processes a save would wait for all of them, and some may have ended.

    def save(self, step: int, state: Any, data_iterator: Any, *, wait: bool = False) -> None:
        """Save a checkpoint in the background, after any save in progress. A step that has been saved is not changed.

        When this returns the buffers of the state may be donated. The state of the iterator (`get_state`) must be the
        same on all processes and consist of JSON values. With `wait`, return when the checkpoint is complete.

        Raises OSError if this checkpoint, or the save in progress, cannot be written.
        """
        self.wait_until_finished()
        stale = step in self._stale
        if stale or step not in self._steps():
            self._stale.discard(step)  # before the save, which calls the preservation policy
            begin = functools.partial(self._begin, step, position=data_iterator.get_state(), overwrite=stale)
            host = _host() if jax.process_count() == 1 else None
            if host is None:
                begin(state)
            else:
                self._begun = self._thread.submit(begin, _copied(state, host))
        if wait:
            self.wait_until_finished()

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint that is not stale, or None. Waits for a save in progress."""
        self.wait_until_finished()
        return max((step for step in self._steps() if step not in self._stale), default=None)

    def restore(self, abstract_state: Any, data_iterator: Any, step: int | None = None) -> tuple[Any, int]:
        """Restore the newest readable checkpoint (or that of `step`); returns state and step, and sets `data_iterator`.

        A checkpoint that is truncated or corrupt, even by a single bit, is reported on stderr, and the one before it is
        restored; nothing is deleted.

        Args:
          abstract_state: a pytree of `jax.ShapeDtypeStruct`; arrays get their `sharding`; None: they are replicated
            over all devices.
          data_iterator: a fresh iterator of the same kind as the saved one.

        Raises FileNotFoundError if there is no checkpoint, ValueError if its arrays do not match `abstract_state` (all
        differences are listed, nothing is loaded) or no checkpoint can be read.
        """
        state, record, restored = self._restore(abstract_state, step, partial=False)
        data_iterator.set_state(record["data"])
        self._stale.update(other for other in self._steps() if other > restored)
        return state, restored

    def restore_state(self, abstract_state: Any, step: int | None = None) -> tuple[Any, int]:
        """Like `restore`, without the data iterator; `abstract_state` may be a part of the saved state.

        `{"params": ..., "ema": ...}` reads only these fields of the train state, for sampling and evaluation.
        """
        state, _, restored = self._restore(abstract_state, step, partial=True)
        return state, restored

    def remove_unfinished(self) -> None:
        """Remove the unfinished folders of saves that were interrupted. Only the job that trains here may call this."""
        if jax.process_index() == 0 and self.directory.exists():
            for path in self.directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(path, ignore_errors=True)

    def wait_until_finished(self) -> None:
        """Wait for the save in progress, if any. Raises OSError if it cannot be written."""
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.result()
        if self.directory.exists():
            with self._writing():
                self._checkpointer.wait()

    def close(self) -> None:
        """Wait for the save in progress and release the threads. Raises OSError if it cannot be written."""
        try:
            self.wait_until_finished()
        finally:
            self._thread.shutdown()
            if "_checkpointer" in self.__dict__:
                with self._writing():
                    self._checkpointer.close()

    def _begin(self, step: int, state: Any, *, position: Any, overwrite: bool) -> None:
        record = _sealed({"checksums": checksums(state), "data": position})
        with self._writing():
            self._checkpointer.save_checkpointables_async(
                step, {"state": state}, force=True, overwrite=overwrite, custom_metadata=record
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # storage errors have many types
            raise OSError(f"a checkpoint in {self.directory} cannot be written: {_root_cause(error)}") from error

    @functools.cached_property
    def _checkpointer(self) -> Any:
        from orbax.checkpoint import v1 as ocp  # slow to import, and not needed by every program

        return ocp.training.Checkpointer(str(self.directory), preservation_policy=self._policy)

    def _steps(self) -> list[int]:
        if not self.directory.exists():
            return []
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def _restore(self, abstract_state: Any, step: int | None, *, partial: bool) -> tuple[Any, dict[str, Any], int]:
        self.wait_until_finished()
        steps = sorted(self._steps(), reverse=True)
        if not steps or step not in (None, *steps):
            missing = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise FileNotFoundError(f"{missing} in {self.directory} (steps there: {sorted(steps) or 'none'})")
        abstract_state = _with_sharding(abstract_state)
        failures = []
        for candidate in steps if step is None else [step]:
            path = self.directory / str(candidate)
            metadata, reason = _attempt(functools.partial(_metadata, path))
            if reason is None:
                arrays, record = metadata
                _check_match(path, arrays, abstract_state, partial)
                expected = record["checksums"]
                state, reason = _attempt(functools.partial(_load, path, abstract_state, partial, expected))
                if reason is None:
                    return state, record, candidate
            failures.append(f"step {candidate}: {reason}")
            print(f"checkpoint {path} cannot be read and is skipped: {reason}", file=sys.stderr, flush=True)
        raise ValueError(f"no checkpoint in {self.directory} can be read ({'; '.join(failures)})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Preservation:
    """Orbax's preservation policy of `Checkpoints`, called with all checkpoints when a save starts."""

    keep_last: int
    keep_every: int
    stale: set[int]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        last = sorted(set(steps) - self.stale)[-self.keep_last :]
        return [
            step in last or step in self.stale or (self.keep_every > 0 and step % self.keep_every == 0)
            for step in steps
        ]


def _sealed(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "crc32": zlib.crc32(json.dumps(record, sort_keys=True).encode())}


def _metadata(path: pathlib.Path) -> tuple[Any, dict[str, Any]]:
    """Reads the abstract arrays of a checkpoint, and the record that was saved with them."""
    from orbax.checkpoint import v1 as ocp

    metadata = ocp.metadata(path, "state")
    if metadata.metadata is None:  # Orbax only logs why
        raise ValueError("the list of its arrays is damaged")
    record = dict(metadata.custom_metadata or {})
    record.pop("crc32", None)
    if not record or _sealed(record) != metadata.custom_metadata:
        raise ValueError("its checksums and its position in the data are damaged")
    return metadata.metadata, record


def _load(path: pathlib.Path, abstract_state: Any, partial: bool, expected: Mapping[str, int]) -> Any:
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.pytree.loading.partial_load = partial
    with context:
        state = ocp.load_checkpointables(path, {"state": abstract_state})["state"]
    changed = [name for name, value in checksums(state).items() if expected.get(name) != value]
    if changed:
        raise ValueError(f"its bytes are not those that were saved: {_listing(changed)}")
    return state


def _host() -> jax.Device | None:
    """The CPU device; None if JAX_PLATFORMS excludes it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def _copied(state: Any, device: jax.Device) -> Any:
    """Starts an asynchronous copy to `device`; JAX keeps the buffers until it is done, even if they are donated."""

    def copied(x: Any) -> Any:
        if isinstance(x, jax.Array) and device in x.devices():
            x = jax.device_put(x, device)  # a replica on this device would be aliased despite may_alias=False
        return jax.device_put(x, device, may_alias=False)

    return jax.tree.map(copied, state)


def _attempt(read: Callable[[], Any]) -> tuple[Any, str | None]:
    """Returns the result of `read`, or the reason if it failed on any process: all must take the same branch."""
    result, reason = None, None
    try:
        result = read()
    except Exception as error:  # storage errors have many types; a wrong structure has been ruled out before
        reason = _root_cause(error)
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.array(reason is not None))
        if failed.any() and reason is None:
            reason = f"process {int(failed.argmax())} failed to read it"
    return result, reason


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error).strip() else ''}"


def _with_sharding(abstract_state: Any) -> Any:
    everywhere = mesh_lib.replicated(mesh_lib.make_mesh())
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or everywhere), abstract_state
    )


def _check_match(path: pathlib.Path, metadata: Any, abstract_state: Any, partial: bool) -> None:
    saved = {mesh_lib.path_name(keys): (leaf.shape, leaf.dtype) for keys, leaf in jax.tree.leaves_with_path(metadata)}
    expected = {
        mesh_lib.path_name(keys): (leaf.shape, leaf.dtype)
        for keys, leaf in jax.tree.leaves_with_path(jax.tree.map(_stored, abstract_state))
    }
    problems = {
        "missing in the checkpoint": sorted(set(expected) - set(saved)),
        "only in the checkpoint": [] if partial else sorted(set(saved) - set(expected)),
        "of another shape or type": [
            f"{name} ({_describe(saved[name])} saved, {_describe(expected[name])} expected)"
            for name in sorted(set(saved) & set(expected))
            if saved[name] != expected[name]
        ],
    }
    texts = [f"{kind}: {_listing(names)}" for kind, names in problems.items() if names]
    if texts:
        raise ValueError(
            f"checkpoint {path} does not fit this configuration. Arrays {'; '.join(texts)}. "
            "Use the configuration that it was trained with, or another folder."
        )


def _stored(leaf: Any) -> Any:
    """The abstract array that is saved for a leaf: typed keys are saved as raw integers."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.eval_shape(jax.random.key_data, leaf)
    return leaf


def _describe(shape_and_dtype: tuple[tuple[int, ...], Any]) -> str:
    shape, dtype = shape_and_dtype
    return f"{np.dtype(dtype).name}{list(shape)}"


def _listing(names: Sequence[str], most: int = 10) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
