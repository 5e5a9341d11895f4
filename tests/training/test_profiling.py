"""Which steps are traced."""

import pathlib

import jax
import pytest

from diffusion_jax.training.profiling import Trace


@pytest.fixture
def calls(monkeypatch):
    made = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder, **options: made.append(f"start {folder}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: made.append("stop"))
    return made


def _run(calls, first, last, **settings):
    with Trace(pathlib.Path("folder"), **settings) as trace:
        for step in range(first, last + 1):
            trace.before(step)
            calls.append(step)
            assert trace.after(step, {}) == (calls[-1] == "stop")
    return calls


def test_the_steps_that_are_asked_for(calls):
    assert _run(calls, 8, 13, start=7, after=2, steps=3) == [8, 9, "start folder", 10, 11, 12, "stop", 13]


def test_none(calls):
    assert _run(calls, 1, 20) == list(range(1, 21))


def test_a_run_that_ends_within_the_trace(calls):
    assert _run(calls, 1, 3, after=1, steps=10) == [1, "start folder", 2, 3, "stop"]


def test_a_run_that_fails_within_the_trace(calls):
    with pytest.raises(KeyError), Trace(pathlib.Path("folder"), after=0, steps=10) as trace:
        trace.before(1)
        raise KeyError
    assert calls == ["start folder", "stop"]
