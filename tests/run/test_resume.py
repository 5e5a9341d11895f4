"""A run that is killed and interrupted equals one that is not, bit for bit."""

import signal
import time

import numpy as np
import pytest

from diffusion_jax.run import train
from tests.runs import TOY, final_state, flag, logged_rows, start, toy
from tests.soak import soak

SETTINGS = dict(training__num_steps=600, training__checkpoint_every=20, training__keep_last=2, network__dropout=0.1)


def _interrupt(folder, number, after):
    """Start the command, send the signal once step `after` is logged; the exit code."""
    process = start(*flag(TOY, **SETTINGS), f"--workdir={folder}")
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and f'{{"step": {after},' in metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.002)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


@pytest.mark.slow
def test_killed_and_interrupted_runs_go_on_exactly(tmp_path):
    train.train(toy(**SETTINGS), tmp_path / "whole")
    broken = tmp_path / "broken"

    code, _ = _interrupt(broken, signal.SIGKILL, after=47)
    assert code == -signal.SIGKILL
    for number, after in ((signal.SIGTERM, 150), (signal.SIGINT, 300), (signal.SIGHUP, 400)):
        code, output = _interrupt(broken, number, after)
        assert code == 0, output
        assert "resuming from step" in output
        assert "the same command goes on" in output
        saved = max(int(path.name) for path in (broken / "checkpoints").iterdir() if path.name.isdigit())
        assert after <= saved < SETTINGS["training__num_steps"]
        assert logged_rows(broken)[-1]["step"] == saved, "the last step is logged and saved"
    process = start(*flag(TOY, **SETTINGS), f"--workdir={broken}")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output

    step, whole, position = final_state(toy(**SETTINGS), tmp_path / "whole")
    step_of_broken, arrays, position_of_broken = final_state(toy(**SETTINGS), broken)
    assert step == step_of_broken == SETTINGS["training__num_steps"]
    assert position == position_of_broken
    assert whole.keys() == arrays.keys()
    for kind in (".params", ".ema", ".opt_state", ".key"):
        assert any(path.startswith(kind) for path in whole)
    for path in whole:
        np.testing.assert_array_equal(arrays[path], whole[path], err_msg=path)

    rows, rows_of_broken = logged_rows(tmp_path / "whole"), logged_rows(broken)
    assert [row["step"] for row in rows] == [row["step"] for row in rows_of_broken] == list(range(1, step + 1))
    for row, row_of_broken in zip(rows, rows_of_broken, strict=True):
        for name in ("loss", "grad_norm", "learning_rate"):
            assert row_of_broken[name] == row[name], (row["step"], name)


@pytest.mark.slow
def test_kills_at_random_moments_leave_no_trace(tmp_path):
    assert soak(tmp_path, kills=2).kills == 2
