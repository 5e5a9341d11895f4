"""Progress of training: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

import jax


class Progress:
    """Shows step, loss, examples per second and time left.

    On a terminal one line is redrawn, at most ten times a second. Elsewhere a line is written at most every
    `line_interval` seconds, and always at the start and after the last step. Processes other than 0 write nothing.

    with Progress(num_steps, start=state_step, label="train") as progress:
        progress.update(step, loss=0.1, examples_per_second=900.0)
    """

    def __init__(
        self,
        num_steps: int,
        *,
        start: int = 0,
        label: str = "train",
        stream: io.TextIOBase | None = None,
        line_interval: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_steps = num_steps
        self._start = start
        self._label = label
        self._stream = sys.stderr if stream is None else stream
        self._silent = jax.process_index() != 0
        self._terminal = self._stream.isatty()
        self._interval = 0.1 if self._terminal else line_interval
        self._clock = clock
        self._first: tuple[int, float] | None = None  # step and time of the first update, after compilation
        self._shown_at: float | None = None
        self._open_line = False

    def __enter__(self) -> Progress:
        if not self._silent:
            self._show(self._start, self._clock(), None, None)
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def update(self, step: int, *, loss: float | None = None, examples_per_second: float | None = None) -> None:
        """Report that `step` steps are done. This is cheap enough for every step."""
        now = self._clock()
        if self._first is None:
            self._first = (step, now)
        due = self._shown_at is None or now - self._shown_at >= self._interval
        if not self._silent and (due or step >= self._num_steps):
            self._show(step, now, loss, examples_per_second)

    def message(self, text: str) -> None:
        """Write a line of text without breaking the bar."""
        if self._silent:
            return
        self._stream.write(f"\r\x1b[K{text}\n" if self._terminal else f"{text}\n")
        self._stream.flush()
        self._open_line = False
        self._shown_at = None

    def close(self) -> None:
        """End the line of the bar, so that further output starts on a new line."""
        if self._open_line:
            self._stream.write("\n")
            self._stream.flush()
            self._open_line = False

    def _show(self, step: int, now: float, loss: float | None, examples_per_second: float | None) -> None:
        self._shown_at = now
        line = self._line(step, now, loss, examples_per_second)
        if self._terminal:
            self._stream.write(f"\r{line[: shutil.get_terminal_size().columns - 1]}\x1b[K")
            self._open_line = True
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def _line(self, step: int, now: float, loss: float | None, examples_per_second: float | None) -> str:
        fraction = min(step / max(self._num_steps, 1), 1.0)
        bar = f" [{'#' * round(10 * fraction):-<10}]" if self._terminal else ""
        parts = [f"{self._label} {fraction:4.0%}{bar} {step}/{self._num_steps}"]
        if loss is not None:
            parts.append(f"loss {loss:.4g}")
        if examples_per_second is not None:
            parts.append(f"{examples_per_second:.0f} examples/s")
        first_step, first_time = self._first or (step, now)
        if step > first_step:
            parts.append(f"{_duration((now - first_time) / (step - first_step) * (self._num_steps - step))} left")
        return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"
