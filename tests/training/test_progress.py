"""What the progress display writes on a terminal and elsewhere, with a clock of its own."""

import io

import jax
import pytest

from diffusion_jax.training import progress


class _Terminal(io.StringIO):
    def isatty(self):
        return True


class _Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def _run(stream, seconds_per_step, num_steps=100, start=0):
    clock = _Clock()
    with progress.Progress(num_steps, start=start, stream=stream, clock=clock) as bar:
        for step in range(start + 1, num_steps + 1):
            clock.now += seconds_per_step
            bar.update(step, loss=1.0 / step, examples_per_second=512.0)
    return stream.getvalue()


def test_terminal_redraws_one_line_and_ends_it(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = _run(_Terminal(), 1.0)
    assert text.count("\n") == 1 and text.endswith("\n")
    assert text.count("\r") == 101
    last = text.split("\r")[-1]
    assert last == "train 100% [##########] 100/100  loss 0.01  512 examples/s  00:00 left\x1b[K\n"


def test_terminal_redraws_at_most_ten_times_a_second():
    assert _run(_Terminal(), 0.01).count("\r") <= 12


def test_terminal_lines_fit_its_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    assert max(len(line.split("\x1b")[0]) for line in _run(_Terminal(), 1.0).split("\r")) <= 29


def test_elsewhere_lines_are_rare_plain_and_include_the_last_step():
    lines = _run(io.StringIO(), 1.0, num_steps=95).splitlines()
    assert [line.split("% ")[1].split("/")[0] for line in lines] == [str(step) for step in (*range(0, 95, 10), 95)]
    assert not any("\r" in line or "\x1b" in line for line in lines)


def test_time_left_ignores_the_first_step_and_counts_from_the_resume():
    clock, stream = _Clock(), io.StringIO()
    bar = progress.Progress(7300, start=1000, stream=stream, clock=clock)
    clock.now = 500.0  # compilation
    bar.update(1001)
    clock.now = 600.0
    bar.update(1101)
    assert stream.getvalue().splitlines()[-1].endswith("1:43:19 left")  # 6199 steps of one second


def test_message_keeps_the_bar_apart():
    stream = _Terminal()
    with progress.Progress(10, stream=stream, clock=_Clock()) as bar:
        bar.update(1)
        bar.message("saved")
        bar.update(2)
    assert "\r\x1b[Ksaved\n" in stream.getvalue() and stream.getvalue().endswith("\n")


@pytest.mark.parametrize("stream", [_Terminal(), io.StringIO()])
def test_other_processes_write_nothing(stream, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with progress.Progress(10, stream=stream) as bar:
        bar.update(10, loss=0.5)
        bar.message("saved")
    assert stream.getvalue() == ""
