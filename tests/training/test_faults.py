"""What the machine does to a run: full and read-only disks, files that vanish, reads that hang, clocks that jump."""

import importlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import PIL.Image
import pytest

from diffusion_jax.data import images
from diffusion_jax.run import train
from diffusion_jax.training import faults
from diffusion_jax.training.checkpoints import Checkpoints
from tests.runs import ROOT, TOY, digits, flag, logged_rows, start, toy


@pytest.fixture
def folder(tmp_path):
    """Forty small images."""
    (tmp_path / "images").mkdir()
    for i in range(40):
        pixels = np.full((8, 8), 6 * i, np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / "images" / f"{i:02}.png")
    return tmp_path / "images"


def _of_images(folder, **changes):
    config = digits(data__name="folder", data__path=str(folder), data__eval_split="train", **changes)
    config.data.update(name="folder", path=str(folder), eval_split="train", cache_bytes=0)
    return config


def test_a_file_that_vanishes_is_named_and_the_last_checkpoint_kept(tmp_path, folder, monkeypatch):
    read, count = images.read_image, itertools.count()

    def vanishing(path):
        if next(count) == 150:
            path.unlink()
        return read(path)

    monkeypatch.setattr(images, "read_image", vanishing)
    with pytest.raises(faults.Fault, match=r"the data cannot be read: .*images/\d\d\.png.* Step \d+ in .* is complete"):
        train.train(_of_images(folder, training__num_steps=100), tmp_path / "run")
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() >= 2
    assert logged_rows(tmp_path / "run")[-1]["step"] >= checkpoints.latest_step()


def test_a_read_that_hangs_is_given_up(tmp_path, folder, monkeypatch):
    read, count, released = images.read_image, itertools.count(), threading.Event()

    def hanging(path):
        if next(count) >= 150:
            released.wait()
        return read(path)

    monkeypatch.setattr(images, "read_image", hanging)
    config = _of_images(folder, training__num_steps=100, training__data_timeout=0.5)
    try:
        with pytest.raises(
            faults.Fault, match=r"did not come within config\.training\.data_timeout=0\.5 seconds.* Step"
        ):
            train.train(config, tmp_path / "run")
    finally:
        released.set()


@pytest.mark.slow
def test_the_command_ends_although_a_read_hangs(tmp_path, folder):
    """Opening a pipe that nobody writes to waits for ever, as a lost network drive does."""
    (folder / "39.png").unlink()
    os.mkfifo(folder / "39.png")
    arguments = flag(
        TOY,
        data__name="folder",
        data__path=folder,
        data__eval_split="train",
        data__image_size=8,
        data__channels=1,
        data__cache_bytes=0,
        evaluation__metrics="()",
        training__num_steps=10_000,
        training__data_timeout=2.0,
    )
    process = start(*arguments, f"--workdir={tmp_path / 'run'}")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 1, output
    (message,) = (line for line in output.splitlines() if line.startswith("error: "))
    assert "did not come within config.training.data_timeout=2 seconds" in message


def test_ctrl_c_ends_a_command_with_one_line(capsys):
    with pytest.raises(SystemExit) as exit, faults.one_line_if_interrupted():
        raise KeyboardInterrupt
    assert exit.value.code == 130 and capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize("command", ["evaluation", "weights", "data.prepare", "data.vocabulary", "latents"])
def test_urls_are_no_paths_of_any_command(command, monkeypatch, capsys):
    options = {
        "evaluation": ["--samples=gs://b/s.npz", "--reference=r.npz"],
        "weights": ["--from=here", "--to=gs://b/run", "--format=orbax"],
        "data.prepare": ["mnist", "--from=here", "--data_dir=gs://b/tfds"],
        "data.vocabulary": ["--path=here", "--to=gs://b/words"],
        "latents": ["encode", "--first_stage=here", "--to=gs://b/latents"],
    }[command]
    name = f"diffusion_jax.{command}.__main__" if command in ("evaluation", "weights") else f"diffusion_jax.{command}"
    with pytest.raises(SystemExit) as exit:
        importlib.import_module(name).main(options)
    message = capsys.readouterr().err
    assert exit.value.code == 2
    assert "='gs:/" in message and "must be a path" in message


def test_batches_in_time_are_those_of_the_iterator():
    assert list(faults.in_time(iter(range(5)), 10.0, "an item")) == list(range(5))
    assert list(faults.in_time(iter(range(5)), 0.0, "an item")) == list(range(5))
    with pytest.raises(ZeroDivisionError):
        list(faults.in_time((1 // n for n in (1, 0)), 10.0, "an item"))


# Everything on one small disk of its own, in a mount namespace that ends with the program.
DISK = """
import os, pathlib, subprocess, sys
from diffusion_jax.config import sections
from diffusion_jax.run import train
from diffusion_jax.training import faults
from tests.runs import logged_rows, toy
disk = pathlib.Path(sys.argv[1])
def mount(*options):
    subprocess.run(["mount", *options, disk], check=True)
mount("-t", "tmpfs", "-o", "size=1m", "tmpfs")
settings = dict(training__num_steps=300, training__keep_last=1000)
try:
    train.train(toy(**settings, training__checkpoint_every=1), disk / "run")
    sys.exit("the disk did not fill up")
except faults.Fault as fault:
    print("fault:", fault)
complete = {p.name for p in (disk / "run" / "checkpoints").iterdir() if p.name.isdigit()}
print("complete:", len(complete))
mount("-o", "remount,size=64m")
train.train(toy(**settings, training__checkpoint_every=1000), disk / "run")
assert complete <= {p.name for p in (disk / "run" / "checkpoints").iterdir()}
assert [row["step"] for row in logged_rows(disk / "run")] == list(range(1, 301))
print("left over:", [p.name for p in (disk / "run").rglob("*") if "tmp" in p.name or p.name.startswith(".")])
mount("-o", "remount,ro")
try:
    train.train(toy(training__num_steps=400), disk / "run")
except sections.ConfigError as error:
    print("refused:", error)
"""
NAMESPACE = ["unshare", "--mount", *(["--map-root-user"] if os.getuid() else [])]


def _has_namespaces():
    return (
        shutil.which("unshare")
        and subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).returncode == 0
    )


@pytest.mark.slow
def test_a_full_and_a_read_only_disk(tmp_path):
    if not _has_namespaces():
        pytest.skip("mount namespaces are not allowed here")
    (tmp_path / "disk").mkdir()
    result = subprocess.run(
        [*NAMESPACE, sys.executable, "-c", DISK, tmp_path / "disk"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    words = ("fault", "complete", "left over", "refused")
    said = dict(line.split(": ", 1) for line in result.stdout.splitlines() if line.split(": ")[0] in words)
    assert "cannot be written" in said["fault"] and "No space left on device" in said["fault"]
    assert "is complete: the same command goes on from there" in said["fault"]
    assert int(said["complete"]) >= 1
    assert said["left over"] == "[]"
    assert "is not a writable folder" in said["refused"]


@pytest.mark.parametrize("where", ["metrics.jsonl", "config.json", "samples/step_00000004.png"])
def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch, where):
    """/dev/full refuses every byte as a full disk does."""
    folder = tmp_path / "run"
    opened = type(tmp_path).open

    def full(path, *arguments, **keywords):
        name = path.name.split(".")[1] if path.name.startswith(".") else path.name.split(".")[0]
        wanted = name == where.split("/")[-1].split(".")[0] and "r" not in (arguments or ("r",))[0]
        return opened(type(path)("/dev/full") if wanted else path, *arguments, **keywords)

    monkeypatch.setattr(type(tmp_path), "open", full)
    with pytest.raises(faults.Fault, match=rf"{where} cannot be written: No space left on device\. "):
        train.train(toy(), folder)
    assert not [path for path in folder.rglob(".*")], "no half-written file is left"


def test_replacing_leaves_the_old_file_after_an_error(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(ZeroDivisionError), faults.replacing(tmp_path / "file", "w") as file:
        file.write("new")
        raise ZeroDivisionError
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]
    with faults.replacing(tmp_path / "below" / "file", "w") as file:
        file.write("new")
    assert [(path.name, path.read_text()) for path in (tmp_path / "below").iterdir()] == [("file", "new")]


@pytest.mark.slow
def test_a_clock_that_goes_backwards_changes_nothing(tmp_path, monkeypatch):
    """Each look at the wall clock shows an hour less, and the files say they are older the newer they are."""
    train.train(toy(training__num_steps=8), tmp_path / "whole")
    ticks = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 2e9 - 3600 * next(ticks))
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9) * (2 * 10**9 - 3600 * next(ticks)))
    train.train(toy(training__num_steps=4), tmp_path / "run")
    for age, path in enumerate(sorted((tmp_path / "run" / "checkpoints").iterdir(), key=lambda path: int(path.name))):
        os.utime(path, (1e9 - age, 1e9 - age))
    train.train(toy(training__num_steps=8), tmp_path / "run")
    assert next(ticks) > 0, "the clock was looked at"
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"6", "8"}
    rows, rows_whole = logged_rows(tmp_path / "run"), logged_rows(tmp_path / "whole")
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert all(row["examples_per_second"] > 0 for row in rows)
    assert [row["loss"] for row in rows[:4]] == [row["loss"] for row in rows_whole[:4]]


@pytest.mark.slow
def test_the_other_processes_end_when_one_is_killed(tmp_path):
    """Without waiting for the killed one to come back: for that, JAX's own exit takes more than a minute."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [*flag(TOY, training__num_steps=10**6, training__checkpoint_every=50), f"--workdir={tmp_path / 'run'}"]
    cluster = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    first, second = (start(*arguments, *cluster, f"--process_id={i}") for i in range(2))
    deadline = time.monotonic() + 240
    while not (tmp_path / "run" / "checkpoints" / "50").exists():
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()[0]
        time.sleep(0.05)
    second.kill()
    second.communicate()
    output, _ = first.communicate(timeout=50)
    assert first.returncode == 1, output
    (message,) = (line for line in output.splitlines() if line.startswith("error: "))
    assert "process 0 of 2 lost touch with the others" in message and "is complete: the same command" in message
