"""Profiler: a trace of some training steps."""

from __future__ import annotations

import pathlib
from typing import Any

import jax


class Trace:
    """Traces `steps` steps into `directory` (0: none), after the first `after` steps of this start of the run.

    TensorBoard's profiler (`pip install xprof`) reads the folder; `perfetto_trace.json.gz` in it opens in
    ui.perfetto.dev without an installation. With several processes, only process 0 is traced.

    with Trace(directory, start=step, after=10, steps=3) as trace:
        for each step:
            trace.before(step)
            state, metrics = train_step(state, batch)
            trace.after(step, metrics)
    """

    def __init__(self, directory: pathlib.Path, *, start: int = 0, after: int = 10, steps: int = 0) -> None:
        self._directory = directory
        self._first, self._last = start + after + 1, start + after + steps
        if not steps or jax.process_index():
            self._first, self._last = -1, -1
        self._running = False

    def before(self, step: int) -> None:
        """Must be called before step `step` is dispatched."""
        if step == self._first:
            jax.profiler.start_trace(str(self._directory), create_perfetto_trace=True)
            self._running = True

    def after(self, step: int, result: Any) -> bool:
        """Must be called with the outputs of the step. Returns whether the trace is written; waits for its end."""
        if step != self._last:
            return False
        jax.block_until_ready(result)
        self._stop()
        return True

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._running:
            self._stop()

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
