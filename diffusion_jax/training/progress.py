"""Progress of training and sampling: a tqdm bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import os
import sys
import time
from typing import Any

import jax
import tqdm


def _has_size(stream: io.TextIOBase) -> bool:
    """Whether the terminal says how large it is; tqdm shows no bar on one of 0 columns or lines."""
    try:
        return min(os.get_terminal_size(stream.fileno())) > 0
    except (OSError, ValueError):
        return False


class _Nowhere(io.StringIO):
    """A stream that keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)


class Progress:
    """Shows how many of `total` steps are done, values such as the loss, and the time left, on standard error.

    On a terminal one line is redrawn. Elsewhere a line is written at most every `line_interval` seconds, and always at
    the start and after the last step. Processes other than 0 write nothing.

    with Progress(num_steps, start=state_step, label="train") as progress:
        progress.update(step, "loss 0.1")
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        label: str = "train",
        stream: io.TextIOBase | None = None,
        line_interval: float = 10.0,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        silent, terminal = jax.process_index() != 0, self._stream.isatty()
        self._lines = not silent and not terminal
        # For lines the bar measures the speed, and is written nowhere.
        self._bar = tqdm.tqdm(
            total=total,
            initial=start,
            desc=label,
            file=self._stream if terminal else _Nowhere(),
            disable=silent,
            **({"dynamic_ncols": True} if _has_size(self._stream) else {"ncols": 80, "nrows": 24}),
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}  {remaining} left",
        )
        self._interval = line_interval
        self._shown_at = time.monotonic()

    def __enter__(self) -> Progress:
        if self._lines:
            self._line()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._bar.close()

    def update(self, step: int, text: str = "") -> None:
        """Report that `step` steps are done, with a text about them. This is cheap enough for every step."""
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(step - self._bar.n)
        due = time.monotonic() - self._shown_at >= self._interval
        if self._lines and (due or step >= self._bar.total):
            self._line()

    def message(self, text: str) -> None:
        """Write a line of text without breaking the bar."""
        if self._lines:
            self._write(text)
        elif not self._bar.disable:
            self._bar.write(text, file=self._stream)

    def _line(self) -> None:
        self._shown_at = time.monotonic()
        values = self._bar.format_dict
        rate = values["rate"] or ((values["n"] - values["initial"]) / max(values["elapsed"], 1e-9))
        left = (values["total"] - values["n"]) / rate if rate else None
        parts = [
            f"{values['prefix']} {values['n'] / max(values['total'], 1):4.0%} {values['n']}/{values['total']}",
            values["postfix"],
            left is not None and f"{self._bar.format_interval(left)} left",
        ]
        self._write("  ".join(part for part in parts if part))

    def _write(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()
