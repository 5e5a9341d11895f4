"""What the progress display writes on a terminal and elsewhere."""

import contextlib
import io
import os

import jax
import pytest

from diffusion_jax.training import progress


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds, as tqdm and the plain lines measure them."""
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def _run(stream, clock, num_steps=100, start=0):
    with progress.Progress(num_steps, start=start, stream=stream) as bar:
        for step in range(start + 1, num_steps + 1):
            clock[0] += 1
            bar.update(step, f"loss {1 / step:.4g}")
    return stream.getvalue()


def test_terminal_redraws_one_line_and_ends_it(clock):
    text = _run(_Terminal(), clock)
    assert text.count("\n") == 1 and text.endswith("\n")
    assert text.count("\r") > 90
    last = text.split("\r")[-1]
    for words in ("train", "100%", "100/100", "loss 0.01", "00:00 left"):
        assert words in last


def test_a_terminal_that_does_not_say_its_size_has_a_bar():
    """As containers and expect make them: 0 columns and 0 lines."""
    reading, writing = os.openpty()
    with open(writing, "w") as stream, progress.Progress(3, stream=stream) as bar:
        for step in (1, 2, 3):
            bar.update(step)
    text = ""
    with open(reading, "rb", buffering=0) as terminal, contextlib.suppress(OSError):  # when all is read
        while chunk := terminal.read(10_000):
            text += chunk.decode(errors="ignore")
    assert "3/3" in text


def test_elsewhere_lines_are_rare_plain_and_include_the_last_step(clock):
    lines = _run(io.StringIO(), clock, num_steps=95).splitlines()
    assert [line.split("% ")[1].split("/")[0] for line in lines] == [str(step) for step in (*range(0, 95, 10), 95)]
    assert lines[-1] == "train 100% 95/95  loss 0.01053  00:00 left"
    assert not any("\r" in line or "\x1b" in line for line in lines)


def test_time_left_counts_from_the_resume(clock):
    lines = _run(io.StringIO(), clock, num_steps=7300, start=1000).splitlines()
    assert lines[0] == "train  14% 1000/7300" and "1/7300" not in lines[0].split()
    assert lines[1].startswith("train  14% 1010/7300") and lines[1].endswith("1:44:50 left")  # 6290 steps of a second


@pytest.mark.parametrize("stream", [_Terminal(), io.StringIO()])
def test_message_is_a_line_of_its_own(clock, stream):
    with progress.Progress(10, stream=stream) as bar:
        bar.update(1)
        bar.message("saved")
        bar.update(2)
    assert "saved\n" in stream.getvalue() and "\nsaved" in stream.getvalue().replace("\r", "\n")


@pytest.mark.parametrize("stream", [_Terminal(), io.StringIO()])
def test_other_processes_write_nothing(stream, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with progress.Progress(10, stream=stream) as bar:
        bar.update(10, "loss 0.5")
        bar.message("saved")
    assert stream.getvalue() == ""
