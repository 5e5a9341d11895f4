"""A run that is killed and interrupted equals one that is not, bit for bit."""

import json
import signal
import time

import jax
import numpy as np
import pytest

from diffusion_jax import build, data, modes
from diffusion_jax.job import prepare
from diffusion_jax.training.checkpoints import Checkpoints
from tests.runs import TOY, flag, start, toy

SETTINGS = dict(training__num_steps=600, training__checkpoint_every=20, training__keep_last=2, network__dropout=0.1)


def _rows(folder):
    lines = (folder / "metrics.jsonl").read_text().split("\n")[:-1]
    return {row["step"]: row for row in map(json.loads, lines)}, len(lines)


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


def _final(folder):
    """Step, every array of the last train state as bytes, and the position of the data."""
    config = toy(**SETTINGS)
    job = prepare(config)
    batches = data.batches(build.source(config), batch_size=config.training.batch_size, seed=config.seed)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        state, step = checkpoints.restore(job.state, batches)
    raw = jax.tree.map(
        lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x, state
    )
    arrays = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(raw)}
    return step, arrays, batches.get_state()


@pytest.mark.slow
def test_killed_and_interrupted_runs_go_on_exactly(tmp_path):
    modes.train(toy(**SETTINGS), tmp_path / "whole")
    broken = tmp_path / "broken"

    code, _ = _interrupt(broken, signal.SIGKILL, after=47)
    assert code == -signal.SIGKILL
    for number, after in ((signal.SIGTERM, 150), (signal.SIGINT, 300)):
        code, output = _interrupt(broken, number, after)
        assert code == 0, output
        assert "resuming from step" in output
        assert "the same command goes on" in output
        saved = max(int(path.name) for path in (broken / "checkpoints").iterdir() if path.name.isdigit())
        assert after <= saved < SETTINGS["training__num_steps"]
        assert max(_rows(broken)[0]) == saved, "the last step is logged and saved"
    process = start(*flag(TOY, **SETTINGS), f"--workdir={broken}")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output

    step, whole, position = _final(tmp_path / "whole")
    step_of_broken, arrays, position_of_broken = _final(broken)
    assert step == step_of_broken == SETTINGS["training__num_steps"]
    assert position == position_of_broken
    assert whole.keys() == arrays.keys()
    for kind in (".params", ".ema", ".opt_state", ".key"):
        assert any(path.startswith(kind) for path in whole)
    for path in whole:
        np.testing.assert_array_equal(arrays[path], whole[path], err_msg=path)

    (rows, count), (rows_of_broken, count_of_broken) = _rows(tmp_path / "whole"), _rows(broken)
    assert count == count_of_broken == len(rows) == step, "every step is logged once"
    for k, row in rows.items():
        for name in ("loss", "grad_norm", "learning_rate"):
            assert rows_of_broken[k][name] == row[name], (k, name)
