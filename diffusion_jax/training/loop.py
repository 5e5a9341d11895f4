"""The training loop: next batch, step, log, save, sample. Everything else is done before or by what it is given."""

from __future__ import annotations

import collections
import math
import os
import signal
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

AHEAD = 2  # steps that may wait for the devices, each with its batch there


class NotFinite(RuntimeError):
    """The loss or the gradient became NaN or infinite."""


class Interrupt:
    """Between `with Interrupt() as stop:` and its end, SIGTERM and the first Ctrl-C only set `stop.requested`.

    Among several processes SIGTERM is left to JAX's runtime, which carries a signal to any of them to all, and agrees
    on the step after which they stop; Ctrl-C is turned into it.
    """

    def __init__(self) -> None:
        self.requested = False

    def after(self, step: int) -> bool:
        """Whether to stop after this step. All processes call it at every step, and get the same answer."""
        if jax.process_count() > 1:
            self.requested = multihost_utils.reached_preemption_sync_point(step)
        return self.requested

    def __enter__(self) -> Interrupt:
        numbers = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else (signal.SIGINT,)
        self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)


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
    """Train from step `start` to `num_steps`, or until `stop.requested`; save at the end in either case.

    Args:
      data: checkpointable iterator of local batches; `to_devices(data)` yields the same batches on the mesh.
      draw: draw(state, step) makes a picture and returns a line about it. Called every `sample_every` steps (0: never)
        and after step `num_steps`, but not when `stop.requested`: the process may have seconds left.
      learning_rate: step -> rate, for the log.
      trace: which steps are traced.
      skip_non_finite: how many steps in a row the optimizer skips where the gradient is not finite.

    Raises NotFinite when a logged or saved step has a loss or gradient that is not finite and was not skipped; nothing
    is saved then.
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
            progress.update(step, loss=loss, examples_per_second=speed)
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
            "and run the command again to go on from that checkpoint. config.optimizer.skip_non_finite=10 in a new "
            "work directory skips and counts up to 10 such steps in a row."
        )
