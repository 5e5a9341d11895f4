"""Kill the command again and again, at random moments, and compare what it arrives at with a run left alone.

    python -m tests.soak --kills 100

A fifth of the kills comes at any time of the start, when a run reads its checkpoint; the others once a random step is
reached, a few milliseconds later. Checkpoints are written every other step, so that most kills hit one.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import signal
import subprocess
import tempfile
import time

import numpy as np

from tests import conftest
from tests.runs import TOY, final_state, flag, logged_rows, start, toy

_STEPS_PER_KILL = 10
_TIMEOUT = 300.0  # seconds until a step must be reached


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tally:
    """How often a run was killed, how often that cut off the writing of a checkpoint, and its last step."""

    kills: int
    cut_off: int
    step: int


def soak(folder: pathlib.Path, *, kills: int, seed: int = 0) -> Tally:
    """Train in `folder`/killed with `kills` kills and in `folder`/whole with none.

    Raises AssertionError unless both end with the same bytes in every array of the train state, the same position in
    the data and the same metrics of every step, each logged once.
    """
    settings = dict(
        training__num_steps=_STEPS_PER_KILL * (kills + 1), training__checkpoint_every=2, network__dropout=0.1
    )
    _finish(start(*flag(TOY, **settings), f"--workdir={folder / 'whole'}"))
    killed, random = folder / "killed", np.random.default_rng(seed)
    arguments = (*flag(TOY, **settings), f"--workdir={killed}")
    tally = Tally(kills=0, cut_off=0, step=0)
    for number in range(1, kills + 1):
        process = start(*arguments)
        began = time.monotonic()
        starting = number % 5 == 0
        if starting:
            until = time.monotonic() + random.uniform(0.5, 8.0)
            while time.monotonic() < until and not _resumed(process, killed / "metrics.jsonl"):
                time.sleep(0.001)
        else:
            _wait(process, killed, number * _STEPS_PER_KILL - int(random.integers(_STEPS_PER_KILL)))
            time.sleep(random.uniform(0, 0.03))
        process.kill()
        output, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL, output
        # One that is killed while it starts may leave the unfinished checkpoint of its predecessor.
        cut_off = not starting and any((killed / "checkpoints").glob("*tmp*"))
        tally = dataclasses.replace(tally, kills=number, cut_off=tally.cut_off + cut_off)
        what = "while it started" if starting else "in a checkpoint" if cut_off else "between checkpoints"
        print(f"kill {number} after {time.monotonic() - began:.1f} s, {what}", flush=True)
    _finish(start(*arguments))
    _assert_same(folder / "whole", killed, settings)
    return dataclasses.replace(tally, step=settings["training__num_steps"])


def _finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate()
    assert process.returncode == 0, output


def _wait(process: subprocess.Popen, folder: pathlib.Path, step: int) -> None:
    """Until `step` is logged by this process, whose predecessors may have logged it too."""
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + _TIMEOUT
    while not (metrics.exists() and _resumed(process, metrics) and f'{{"step": {step},' in metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.001)


def _resumed(process: subprocess.Popen, metrics: pathlib.Path) -> bool:
    """Whether `process` is past the point where it drops the rows beyond its checkpoint: it holds the file open."""
    try:
        opened = [path.resolve() for path in pathlib.Path(f"/proc/{process.pid}/fd").iterdir()]
    except OSError:
        return False
    return metrics.resolve() in opened


def _assert_same(whole: pathlib.Path, killed: pathlib.Path, settings: dict) -> None:
    config = toy(**settings)
    (step, arrays, position), (step_killed, arrays_killed, position_killed) = (
        final_state(config, folder) for folder in (whole, killed)
    )
    assert step == step_killed == config.training.num_steps
    assert position == position_killed
    assert arrays.keys() == arrays_killed.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(arrays_killed[name], array, err_msg=name)
    rows, rows_killed = logged_rows(whole), logged_rows(killed)
    assert [row["step"] for row in rows_killed] == [row["step"] for row in rows] == list(range(1, step + 1))
    for row, row_killed in zip(rows, rows_killed, strict=True):
        for name in ("loss", "grad_norm", "learning_rate"):
            assert row_killed[name] == row[name], (row["step"], name)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--workdir", type=pathlib.Path, help="kept afterwards; by default a temporary folder")
    options = parser.parse_args()
    conftest.environment()
    with tempfile.TemporaryDirectory() as scratch:
        began = time.monotonic()
        tally = soak(options.workdir or pathlib.Path(scratch), kills=options.kills, seed=options.seed)
        print(
            f"{tally.kills} kills, {tally.cut_off} of them while a checkpoint was written: step {tally.step}, "
            f"every array, metric and position as without them; {time.monotonic() - began:.0f} s"
        )


if __name__ == "__main__":
    main()
