"""The files of launch/ that need a cluster: what can be said about them without one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jsonschema
import pytest
import yaml

from tests.runs import ROOT, TOY, flag

TRAIN = [*flag(TOY, training__num_steps=100_000, training__checkpoint_every=1000, training__log_every=50)]


def test_the_jobset_is_one():
    jobset = yaml.safe_load((ROOT / "launch" / "jobset.yaml").read_text())
    jsonschema.validate(jobset, json.loads((ROOT / "tests" / "jobset_schema.json").read_text()))
    (train,) = jobset["spec"]["replicatedJobs"]
    job = train["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    settings = dict(argument.removeprefix("--").split("=", 1) for argument in container["args"])
    assert jobset["spec"]["coordinator"] == {"replicatedJob": train["name"], "jobIndex": 0, "podIndex": 0}
    assert train["replicas"] == 1, "process ids count the pods of one job"
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"] == int(settings["num_processes"])
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never", "pods fail together, and JobSet starts them"

    variables = {entry["name"]: entry for entry in container["env"]}
    assert set(re.findall(r"\$\((\w+)\)", " ".join(container["args"]))) <= set(variables)
    read = {name: entry["valueFrom"]["fieldRef"] for name, entry in variables.items() if "value" not in entry}
    assert {name: field["fieldPath"] for name, field in read.items()} == {
        "COORDINATOR": "metadata.annotations['jobset.sigs.k8s.io/coordinator']",
        "PROCESS_ID": "metadata.annotations['batch.kubernetes.io/job-completion-index']",
    }
    assert settings["coordinator"] == f"$(COORDINATOR):{container['ports'][0]['containerPort']}"
    assert settings["process_id"] == "$(PROCESS_ID)"
    (script,) = container["command"]
    assert os.access(ROOT / script, os.X_OK)
    assert (ROOT / settings["config"].split(":")[0]).exists()
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
    assert any(settings["workdir"].startswith(f"{path}/") for path in mounts)


def _pod(folder, *arguments):
    return subprocess.Popen(
        ["launch/pod.sh", *arguments, f"--workdir={folder}"],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_pod_that_is_stopped_too_early_fails_and_one_that_is_done_does_not(tmp_path):
    pod, deadline = _pod(tmp_path, *TRAIN), time.monotonic() + 120
    while not (tmp_path / "metrics.jsonl").exists():
        assert pod.poll() is None and time.monotonic() < deadline, pod.communicate()[0]
        time.sleep(0.05)
    pod.send_signal(signal.SIGTERM)
    output, _ = pod.communicate(timeout=120)
    assert pod.returncode == 75, output
    assert "the same command goes on from there" in output
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    pod = _pod(tmp_path, *TRAIN, f"--config.training.num_steps={json.loads(rows[-1])['step'] + 1}")
    output, _ = pod.communicate(timeout=120)
    assert pod.returncode == 0, output


@pytest.mark.slow
def test_a_pod_gives_the_code_of_a_command_that_fails(tmp_path):
    pod = _pod(tmp_path, "--config=nowhere.py")
    assert "nowhere.py" in pod.communicate(timeout=60)[0]
    assert pod.returncode == 2


GCLOUD = """#!/usr/bin/env bash
# Stands in for gcloud: notes its arguments, and says the next state in the file `states`.
printf '%s\\n' "$*" >>"$FOLDER/calls"
case "$*" in
*describe*)
  head -n 1 "$FOLDER/states"
  sed -i 1d "$FOLDER/states"
  ;;
*launch/pod.sh*) exit "$(cat "$FOLDER/code")" ;;
esac
"""


@pytest.mark.parametrize(
    ("states", "code", "removed"),
    [
        (["NONE", "WAITING_FOR_RESOURCES", "ACTIVE"], 0, 1),
        (["ACTIVE"], 75, 0),
        (["SUSPENDED", "PROVISIONING", "ACTIVE"], 0, 2),
    ],
)
def test_tpu_pod_asks_waits_installs_and_runs_everywhere(tmp_path, states, code, removed):
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    (tmp_path / "states").write_text("".join(f"{state}\n" for state in states))
    (tmp_path / "code").write_text(str(code))
    environment = {**os.environ, "FOLDER": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}", "POLL": "0"}
    environment |= {"TPU": "slice", "ZONE": "zone", "TYPE": "v6e-32", "WORKDIR": "/mnt/run", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        ["launch/tpu_pod.sh", "--config=configs/dit.py", "--config.seed=3"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    calls = (tmp_path / "calls").read_text()
    created = [line for line in calls.splitlines() if " create " in line]
    assert len(created) == (states[0] != "ACTIVE")
    assert all("--accelerator-type=v6e-32" in line and "--node-id=slice" in line for line in created)
    assert calls.count(" delete ") == removed
    (ran,) = [line for line in calls.splitlines() if "launch/pod.sh" in line]
    assert "tpu-vm ssh slice --zone=zone --worker=all" in ran
    for part in ("--config=configs/dit.py", "--config.seed=3", "--workdir=/mnt/run", "--coordinator=auto"):
        assert part in ran


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "launch").glob("*.sh*")))
def test_scripts_say_how_they_are_used(script, tmp_path):
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    done = subprocess.run(["bash", ROOT / "launch" / script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("usage: ")
