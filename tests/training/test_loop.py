"""The loop: what happens at which step and in which order, how it stops, and what it refuses to save."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.training.checkpoints import Checkpoints
from diffusion_jax.training.loop import Interrupt, NotFinite, train_loop
from diffusion_jax.training.profiling import Trace
from diffusion_jax.training.step import TrainState


class _Events(Checkpoints):
    """Writes down saves, logs and pictures instead of making them."""

    def __init__(self, directory):
        super().__init__(directory)
        self.happened = []
        self.rows = {}

    def save(self, step, state, data_iterator, *, wait=False):
        self.happened.append(("save", step, int(state.step)))

    def latest_step(self):
        return max((event[1] for event in self.happened if event[0] == "save"), default=None)

    def scalars(self, step, values):
        self.happened.append(("log", step))
        self.rows[step] = dict(values)

    def images(self, step, images):
        pass

    def draw(self, state, step):
        self.happened.append(("draw", step))
        return "a picture"


def _run(tmp_path, stop=None, bad=None, at=None, on_step=None, metrics=None, **settings):
    events = _Events(tmp_path)
    state = TrainState(jnp.int32(settings.get("start", 0)), {}, {}, (), jax.random.key(0))

    def train_step(state, batch):
        step = int(state.step) + 1
        assert int(batch["x"]) == step, "every step takes the next batch"
        if on_step:
            on_step(step)
        values = {"loss": jnp.float32(1 / step), "grad_norm": jnp.float32(2.0), **(metrics or {})}
        if bad and step >= at:
            values |= {bad: jnp.float32(np.nan)}
        return TrainState(jnp.int32(step), state.params, state.ema, state.opt_state, state.key), values

    defaults = dict(start=0, num_steps=10, log_every=3, checkpoint_every=4, sample_every=5)
    final = train_loop(
        state,
        train_step,
        iter([{"x": i} for i in range(settings.get("start", 0) + 1, 100)]),
        lambda data: iter([{"x": jnp.int32(batch["x"])} for batch in data]),
        batch_size=2,
        checkpoints=events,
        writer=events,
        learning_rate=lambda step: 0.1 * step,
        draw=events.draw,
        stop=stop or Interrupt(),
        trace=Trace(tmp_path),
        **{**defaults, **settings},
    )
    return final, events


def _steps(events, kind):
    return [event[1] for event in events.happened if event[0] == kind]


def test_cadence(tmp_path):
    final, events = _run(tmp_path)
    assert final.step == 10
    assert _steps(events, "log") == [3, 6, 9, 10]
    assert _steps(events, "save") == [4, 8, 10]
    assert _steps(events, "draw") == [5, 10]
    assert [state_step for kind, _, *state_step in events.happened if kind == "save"] == [[4], [8], [10]]


def test_a_step_is_logged_and_saved_before_its_picture(tmp_path):
    _, events = _run(tmp_path)
    assert [event[0] for event in events.happened if event[1] == 10] == ["log", "save", "draw"]


def test_no_pictures_but_the_last(tmp_path):
    _, events = _run(tmp_path, sample_every=0)
    assert _steps(events, "draw") == [10]


def test_what_is_logged(tmp_path):
    _, events = _run(tmp_path)
    row = events.rows[6]
    assert set(row) == {"loss", "grad_norm", "learning_rate", "examples_per_second"}
    np.testing.assert_allclose(row["loss"], 1 / 6, rtol=1e-6)
    np.testing.assert_allclose(row["learning_rate"], 0.5)  # the rate that step 6 used, after 5 steps
    assert row["examples_per_second"] > 0


def test_going_on_from_a_step(tmp_path):
    final, events = _run(tmp_path, start=6)
    assert final.step == 10
    assert _steps(events, "log") == [9, 10]
    assert _steps(events, "save") == [8, 10]


@pytest.mark.parametrize("bad", ["loss", "grad_norm"])
def test_not_finite(tmp_path, bad):
    with pytest.raises(NotFinite) as refusal:
        _run(tmp_path, bad=bad, at=7)
    for words in (f"{bad} is nan at step 8", "step 4 in", "not saved", "config.optimizer.learning_rate"):
        assert words in str(refusal.value)


def test_not_finite_saves_nothing(tmp_path):
    stop = Interrupt()
    with pytest.raises(NotFinite, match=r"step 1\b.*checkpoint is none"):
        _run(tmp_path, bad="loss", at=1, log_every=1, checkpoint_every=1, stop=stop)
    assert not list(tmp_path.iterdir())


def test_not_finite_is_not_saved_on_the_way_out(tmp_path):
    """An interruption must not save a broken step either."""
    stop = Interrupt()

    def interrupt(step):
        stop.requested = step == 2

    with pytest.raises(NotFinite, match="at step 2"):
        _run(tmp_path, bad="loss", at=2, log_every=100, checkpoint_every=100, stop=stop, on_step=interrupt)


def test_steps_that_the_optimizer_skipped_are_no_reason_to_stop(tmp_path):
    skipped = {"loss": jnp.float32(jnp.nan), "skipped_in_a_row": jnp.float32(2.0)}
    final, events = _run(tmp_path, metrics=skipped, skip_non_finite=2)
    assert final.step == 10
    assert _steps(events, "save") == [4, 8, 10]
    with pytest.raises(NotFinite, match="loss is nan at step 3"):
        _run(tmp_path, metrics=skipped, skip_non_finite=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_loop_after_its_step(tmp_path, number):
    with Interrupt() as stop:
        final, events = _run(
            tmp_path, stop=stop, on_step=lambda step: os.kill(os.getpid(), number) if step == 6 else None
        )
        assert stop.requested
    assert final.step == 6
    assert _steps(events, "log") == [3, 6]
    assert _steps(events, "save") == [4, 6]
    assert _steps(events, "draw") == [5], "no time for a picture on the way out"


def test_a_second_ctrl_c_raises():
    with Interrupt() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):  # the handler runs between two instructions
                pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_answered_at_once(number, capfd):
    with Interrupt():
        os.kill(os.getpid(), number)
        assert "stopping after this step" in capfd.readouterr().err
        if number != signal.SIGINT:
            os.kill(os.getpid(), number)
            assert not capfd.readouterr().err, "once"


def test_a_hangup_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_are_given_back():
    numbers = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
    before = [signal.getsignal(number) for number in numbers]
    with Interrupt():
        assert all(signal.getsignal(number) != handler for number, handler in zip(numbers, before, strict=True))
    assert [signal.getsignal(number) for number in numbers] == before
