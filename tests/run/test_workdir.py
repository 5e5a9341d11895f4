"""The work directory: that it can be written, and that one job at a time trains in it."""

import os
import pathlib
import subprocess
import sys

import pytest

from diffusion_jax.config.sections import ConfigError
from diffusion_jax.run import evaluate, sample, workdir
from tests.runs import ROOT, listing, toy


def test_writable_creates_nothing(tmp_path):
    before = listing(tmp_path)
    workdir.check_writable(tmp_path)
    workdir.check_writable(tmp_path / "a" / "b" / "c")
    assert listing(tmp_path) == before


def test_a_file_is_not_writable(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match="is not a writable folder"):
            workdir.check_writable(path)


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3:/bucket/run"])
def test_a_bucket_is_no_folder_of_this_machine(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"--workdir='(gs|s3):/.*must be a path"):
        workdir.check_writable(pathlib.Path(path))
    assert not list(tmp_path.iterdir())


def test_one_trainer_at_a_time(tmp_path):
    """The lock is that of an open file, so a second opening of the same process stands for another job."""
    folder = tmp_path / "run"
    with workdir.only_trainer(folder):
        before = listing(folder)
        refused = pytest.raises(ConfigError, match=f"is being trained in by process {os.getpid()} on .*another folder")
        with refused, workdir.only_trainer(folder):
            pytest.fail("entered")
        assert listing(folder) == before
        with workdir.only_trainer(tmp_path / "other"):
            pass
    with workdir.only_trainer(folder):
        pass


def test_a_killed_trainer_leaves_no_lock(tmp_path):
    program = (
        "import pathlib, sys, time; from diffusion_jax.run import workdir\n"
        "with workdir.only_trainer(pathlib.Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, tmp_path], cwd=ROOT, stdout=subprocess.PIPE)
    process.stdout.readline()
    with pytest.raises(ConfigError, match=f"process {process.pid} on"), workdir.only_trainer(tmp_path):
        pytest.fail("entered")
    process.kill()
    process.wait()
    with workdir.only_trainer(tmp_path):
        pass


def test_a_folder_of_earlier_pictures_is_kept_without_its_arrays(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "00099.png").write_text("old")
    kept = sample.keep_earlier(tmp_path / "samples.npz")
    assert kept == tmp_path / "samples.1.npz"
    assert not (tmp_path / "samples").exists() and (tmp_path / "samples.1" / "00099.png").exists()
    assert sample.keep_earlier(tmp_path / "samples.npz") is None
    assert sample.keep_earlier(tmp_path / "missing" / "samples.npz") is None


def test_files_and_folders_of_other_kinds_stay_where_only_some_are_written(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "latents").write_text("latents")
    (tmp_path / "mine.jpg").write_text("photograph")
    assert sample.keep_earlier(tmp_path / "mine.npz", (".npz", ".png")) is None
    (tmp_path / "mine.png").write_text("old")
    assert sample.keep_earlier(tmp_path / "mine.npz", (".npz", ".png")) == tmp_path / "mine.1.npz"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine.1.png", "mine.jpg"]


def test_metrics_before_one_that_fails_are_printed(tmp_path, monkeypatch, capsys):
    def fails(drawn):
        raise ValueError("images must be finite")

    for name, value in (
        ("metrics_of", lambda *_: [lambda drawn: {"first": 0.125}, fails]),
        ("params_of", lambda *_: ({}, 3)),
        ("draw", lambda *_: {"samples": None}),
        ("_held_out", lambda *_: {"held_out_loss": 0.625}),
    ):
        monkeypatch.setattr(evaluate, name, value)
    with pytest.raises(ConfigError, match=r"config\.evaluation\.metrics: images must be finite"):
        evaluate.evaluate(toy(), tmp_path)
    output = capsys.readouterr().out
    assert "0.625" in output and "0.125" in output
