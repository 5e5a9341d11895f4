"""launch/slurm.sbatch under a real SLURM on this machine: preempted, requeued, finished as if nothing had happened."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.runs import ROOT, TOY, flag

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "munged")
missing = [program for program in PROGRAMS if shutil.which(program) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)} (Debian's slurm-wlm and munge)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="SLURM's daemons are started as root"),
]
SETTINGS = dict(training__num_steps=120, training__checkpoint_every=50, training__log_every=10)

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
# A requeued job waits for its former credential to expire, two minutes by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SelectType=select/cons_tres
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000
PartitionName=main Nodes=ALL Default=YES State=UP OverSubscribe=FORCE:4
"""


def _free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _wait(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)
    return result


@pytest.fixture
def slurm(tmp_path_factory):
    """A function that runs a SLURM program against a cluster of one node, which lives as long as the test."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    conf = folder / "slurm.conf"
    host = socket.gethostname().split(".")[0]
    conf.write_text(CONF.format(host=host, folder=folder, ports=_free_ports(2), cpus=os.cpu_count()))
    environment = {**os.environ, "SLURM_CONF": str(conf), "PYTHON": sys.executable}
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munge = [f"--{option}={folder}/munge.{ending}" for option, ending in files.items()]
    daemons = []
    for arguments in (["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"], ["slurmd", "-D"]):
        with (folder / f"{arguments[0]}.out").open("w") as out:
            daemons.append(subprocess.Popen(arguments, env=environment, stdout=out, stderr=out))
        if arguments[0] == "munged":
            _wait((folder / "munge.socket").exists, 20, lambda: (folder / "munged.out").read_text())

    def run(*arguments):
        return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)

    try:
        _wait(
            lambda: "idle" in run("sinfo", "-h", "-o", "%T").stdout, 60, lambda: (folder / "slurmctld.log").read_text()
        )
        yield run
    finally:
        run("scancel", "--user=root")
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(timeout=60)


def _rows(folder):
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return {row["step"]: row["loss"] for row in map(json.loads, lines)}


def test_a_preempted_job_goes_back_into_the_queue_and_finishes_exactly(slurm, tmp_path):
    log = tmp_path / "job.log"

    def submit(folder):
        arguments = [*flag(TOY, **SETTINGS), f"--workdir={folder}"]
        options = ["--parsable", "--ntasks-per-node=2", f"--output={log}", f"--chdir={ROOT}"]
        submitted = slurm("sbatch", *options, "launch/slurm.sbatch", *arguments)
        assert submitted.returncode == 0, submitted.stderr
        return submitted.stdout.strip()

    def text():
        return (log.read_text() if log.exists() else "no log") + slurm("scontrol", "show", "job").stdout

    def over():
        queue = slurm("squeue", "-h")
        return queue.returncode == 0 and not queue.stdout.strip()

    submit(tmp_path / "whole")
    _wait(over, 180, text)
    job = submit(tmp_path / "broken")
    _wait(lambda: len(_rows(tmp_path / "broken")) >= 3, 120, text)
    assert slurm("scancel", "--signal=TERM", "--batch", job).returncode == 0  # as preemption and the time limit do
    _wait(lambda: "the same command goes on from there" in text(), 60, text)
    stopped = max(_rows(tmp_path / "broken"))
    assert stopped < SETTINGS["training__num_steps"]
    _wait(over, 180, text)
    assert f"resuming from step {stopped}" in text()

    whole, broken = _rows(tmp_path / "whole"), _rows(tmp_path / "broken")
    assert max(whole) == SETTINGS["training__num_steps"]
    assert {step: loss for step, loss in broken.items() if step in whole} == whole
