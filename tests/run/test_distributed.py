"""Several processes as one job: the same training, one stop for all, and going on with another number of them."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from diffusion_jax.config.sections import ConfigError
from diffusion_jax.run import distributed, train
from tests.runs import ROOT, TOY, flag, toy

SETTINGS = dict(
    network__hidden=128,
    training__batch_size=12,
    training__num_steps=2000,
    training__checkpoint_every=1000,
    training__log_every=10,
    optimizer__learning_rate=1e-5,  # larger steps amplify rounding, which differs with the number of devices
)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, False),  # a batch script, outside of srun
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "n[1-2]"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_PROCESS_ADDRESSES": "10.0.0.1:8471,10.0.0.2:8471"}, True),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.1"}, True),
    ],
)
def test_a_cluster_is_recognised_by_its_environment(environment, expected):
    assert distributed.in_cluster(environment) is expected


@pytest.mark.parametrize(
    "arguments", [("host:1", 2, -1), ("", 2, 0), ("host:1", 2, 2), ("host", 2, 0), ("host:1", 0, 0), ("auto", 2, 0)]
)
def test_half_a_cluster_is_refused(arguments):
    with pytest.raises(ConfigError, match="--coordinator="):
        distributed.initialize(*arguments)


def _rows(folder):
    return {row["step"]: row["loss"] for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())}


def _stopped_after(folder, number, rows, **mesh):
    """Train as `number` processes, tell one of them to stop once `rows` more rows are logged; the step reached."""
    before = len(_rows(folder)) if (folder / "metrics.jsonl").exists() else 0
    processes = subprocess.Popen(
        ["launch/local_processes.sh", str(number), *flag(TOY, **SETTINGS, **mesh), f"--workdir={folder}"],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    try:
        while not (folder / "metrics.jsonl").exists() or len(_rows(folder)) < before + rows:
            assert processes.poll() is None, processes.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        second = subprocess.run(
            ["pgrep", "-P", str(processes.pid), "-f", "process_id=1"], capture_output=True, text=True, check=True
        )
        os.kill(int(second.stdout.split()[0]), signal.SIGTERM)  # one process is told; all stop after the same step
        output, _ = processes.communicate(timeout=240)
    finally:
        if processes.poll() is None:
            os.killpg(processes.pid, signal.SIGKILL)
    assert processes.returncode == 0, output
    assert output.count("the same command goes on from there") == 1, output
    stopped = max(_rows(folder))
    assert stopped < SETTINGS["training__num_steps"]
    assert (folder / "checkpoints" / str(stopped)).is_dir()
    return stopped


@pytest.mark.slow
def test_any_number_of_processes_trains_like_one_and_goes_on_from_the_others(tmp_path):
    """Two processes that split the network, and read the same rows, then three that split the batch, then one.

    A step that read other examples, or in another order, would have another loss.
    """
    train.train(toy(**SETTINGS), tmp_path / "one")
    folder = tmp_path / "many"
    stops = [_stopped_after(folder, 2, 3, mesh__data=1, mesh__tensor=2), _stopped_after(folder, 3, 3)]
    assert 30 <= stops[0] < stops[1]
    train.train(toy(**SETTINGS), folder)
    whole, broken = _rows(tmp_path / "one"), _rows(folder)
    assert set(whole) == set(broken) - set(stops) | (set(stops) & set(whole))
    for step, loss in whole.items():
        np.testing.assert_allclose(broken[step], loss, rtol=1e-4, err_msg=str(step))
