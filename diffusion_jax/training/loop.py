"""The training loop: read a batch, take a step, log, save a checkpoint, draw samples; stop on a signal."""

from __future__ import annotations

import collections
import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils
from jaxtyping import Array

from diffusion_jax.training.checkpoints import Checkpoints
from diffusion_jax.training.profiling import Trace
from diffusion_jax.training.progress import Progress
from diffusion_jax.training.step import TrainState
from diffusion_jax.training.writers import Writer

AHEAD = 2  # number of steps that may be queued on the devices, each with its batch


class NotFinite(RuntimeError):
    """The loss or the gradient became NaN or infinite."""


class Interrupt:
    """Context manager in which SIGTERM, SIGHUP and the first Ctrl-C set `requested`: training saves and stops.

    The signal is answered at once by a line on standard error. A second Ctrl-C raises KeyboardInterrupt. A SIGHUP that
    is ignored, as under nohup, stays ignored.

    With several processes SIGTERM is handled by JAX's runtime: a signal to one process reaches all, and they agree on
    the step after which they stop. Ctrl-C and SIGHUP are converted to SIGTERM there.
    """

    def __init__(self) -> None:
        self.requested = False
        self._signalled = False

    def after(self, step: int) -> bool:
        """Whether to stop after this step. All processes must call it at every step; all get the same answer."""
        if jax.process_count() > 1:
            self.requested = multihost_utils.reached_preemption_sync_point(step)
        return self.requested

    def __enter__(self) -> Interrupt:
        numbers = [signal.SIGINT]
        if jax.process_count() == 1:
            numbers.append(signal.SIGTERM)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._signalled:
            name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            _notify(f"{name}: stopping after this step and saving it; Ctrl-C (again) quits without saving")
        self._signalled = self.requested = True
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)


def _notify(text: str) -> None:
    """Writes a line to standard error from a signal handler, which may have interrupted a write to `sys.stderr`."""
    with contextlib.suppress(OSError, ValueError):  # closed, or without a file descriptor
        os.write(sys.stderr.fileno(), f"\n{text}\n".encode())


def train_loop(
    state: TrainState,
    train_step: Callable[[TrainState, dict[str, Array]], tuple[TrainState, dict[str, Array]]],
    data: Iterator[dict[str, Any]],
    to_devices: Callable[[Iterator[dict[str, Any]]], Iterator[dict[str, Array]]],
    *,
    start: int,
    num_steps: int,
    batch_size: int,
    log_every: int,
    checkpoint_every: int,
    sample_every: int,
    checkpoints: Checkpoints,
    writer: Writer,
    learning_rate: Callable[[int], Any],
    draw: Callable[[TrainState, int], Any],
    stop: Interrupt,
    trace: Trace,
    skip_non_finite: int = 0,
) -> TrainState:
    """Train from step `start` to `num_steps`, or until `stop.requested`. Both end with a checkpoint.

    Args:
      data: checkpointable iterator of local batches; `to_devices(data)` yields the same batches on the mesh.
      draw: draw(state, step) draws samples into a file and returns a line of text about it. It is called every
        `sample_every` steps (0: never) and after step `num_steps`, but not after `stop.requested`, when the process may
        have only seconds left.
      learning_rate: step -> learning rate, for the log.
      trace: profiler of some of the steps.
      skip_non_finite: number of consecutive steps with a gradient that is not finite that the optimizer skips.

    Raises NotFinite if loss or gradient of a logged or saved step is not finite and the step was not skipped; that step
    is not saved.
    """
    batches = to_devices(data)
    timer, timed_from, speed, loss = time.monotonic(), start, None, None
    queued: collections.deque[Any] = collections.deque()
    with Progress(num_steps, start=start) as progress:
        for step in range(start + 1, num_steps + 1):
            batch = next(batches)
            trace.before(step)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = train_step(state, batch)
            if trace.after(step, metrics):
                progress.message(f"step {step}: the trace is written")
            queued.append(metrics)
            if len(queued) > AHEAD:
                jax.block_until_ready(queued.popleft())
            stopping = stop.after(step)
            last = step == num_steps or stopping
            log, save = step % log_every == 0 or last, step % checkpoint_every == 0 or last
            if log or save:
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                _check_finite(step, values, checkpoints, skip_non_finite)
                loss = values["loss"]
            if log:
                now = time.monotonic()
                speed = (step - timed_from) * batch_size / (now - timer)
                timer, timed_from = now, step
                rate = float(learning_rate(step - 1))
                writer.scalars(step, {**values, "learning_rate": rate, "examples_per_second": speed})
            if save:
                checkpoints.save(step, state, data)
            progress.update(step, "" if loss is None or speed is None else f"loss {loss:.4g}  {speed:.0f} examples/s")
            if step == num_steps or (sample_every and step % sample_every == 0 and not stopping):
                progress.message(f"step {step}: {draw(state, step)}")
                timer, timed_from = time.monotonic(), step
            if last:
                break
    checkpoints.wait_until_finished()
    return state


def _check_finite(step: int, values: dict[str, float], checkpoints: Checkpoints, skip_non_finite: int) -> None:
    bad = [name for name in ("loss", "grad_norm") if not math.isfinite(values[name])]
    skipped = 0 < values.get("skipped_in_a_row", 0) <= skip_non_finite
    if bad and not skipped:
        good = checkpoints.latest_step()
        raise NotFinite(
            f"{bad[0]} is {values[bad[0]]} at step {step}. The last good checkpoint is "
            f"{'none' if good is None else f'step {good} in {checkpoints.directory}'}; this step was not saved. "
            "Try a lower config.optimizer.learning_rate, a config.optimizer.clip_norm, a longer warm-up, or float32, "
            "and run the command again to resume from that checkpoint. config.optimizer.skip_non_finite=10 in a new "
            "work directory skips up to 10 such steps in a row."
        )
