"""The metrics file over crashes and resumes, and the optional writers."""

import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from diffusion_jax.training import writers
from diffusion_jax.training.faults import Fault


def test_rows_are_readable_at_once_and_survive_a_round_trip(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    writer = writers.JsonlWriter(path)
    writer.scalars(10, {"loss": jnp.float32(0.5), "examples_per_second": np.float64(100.25), "count": 3})
    assert writers.read_metrics(path) == [{"step": 10, "loss": 0.5, "examples_per_second": 100.25, "count": 3}]
    writer.close()


def test_nan_and_inf_are_null_and_every_line_is_strict_json(tmp_path):
    writer = writers.JsonlWriter(tmp_path / "m.jsonl")
    writer.scalars(1, {"loss": float("nan"), "norm": jnp.inf, "ok": 1.0})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=refuse) == {
        "step": 1,
        "loss": None,
        "norm": None,
        "ok": 1.0,
    }


def test_resume_drops_later_rows_so_that_each_step_is_there_once(tmp_path):
    path = tmp_path / "m.jsonl"
    first = writers.JsonlWriter(path)
    for step in (10, 20, 30):
        first.scalars(step, {"loss": 1.0 * step})
    resumed = writers.JsonlWriter(path, resume_step=20)
    resumed.scalars(30, {"loss": -1.0})
    assert [(row["step"], row["loss"]) for row in writers.read_metrics(path)] == [(10, 10.0), (20, 20.0), (30, -1.0)]
    assert [file.name for file in tmp_path.iterdir()] == ["m.jsonl"]


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 10, "loss": 1.0}\n{"step": 20, "lo')
    assert [row["step"] for row in writers.read_metrics(path)] == [10]
    writers.JsonlWriter(path, resume_step=20).scalars(30, {"loss": 0.0})
    assert [row["step"] for row in writers.read_metrics(path)] == [10, 30]


def test_a_fresh_run_drops_the_rows_of_one_that_never_saved(tmp_path):
    path = tmp_path / "m.jsonl"
    writers.JsonlWriter(path).scalars(10, {"loss": 1.0})
    writers.JsonlWriter(path)
    assert writers.read_metrics(path) == []


def test_a_foreign_file_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text("hello\n")
    with pytest.raises(ValueError, match=r"m\.jsonl, line 1: not a JSON object with an integer step: 'hello'"):
        writers.JsonlWriter(path)
    assert path.read_text() == "hello\n"


class _Recorder:
    def __init__(self):
        self.calls = []

    def scalars(self, step, values):
        self.calls.append(("scalars", step, dict(values)))

    def images(self, step, images):
        self.calls.append(("images", step, dict(images)))

    def close(self):
        self.calls.append(("close",))


def test_writers_hands_everything_to_each():
    a, b = _Recorder(), _Recorder()
    both = writers.Writers([a, b])
    both.scalars(1, {"loss": 2.0})
    both.images(1, {"samples": "sheet.png"})
    both.close()
    assert a.calls == b.calls == [("scalars", 1, {"loss": 2.0}), ("images", 1, {"samples": "sheet.png"}), ("close",)]


@pytest.mark.parametrize(
    ("writer", "module", "extra"),
    [
        (writers.TensorBoardWriter, "tensorboardX", r"diffusion_jax\[tensorboard\]"),
        (writers.WandbWriter, "wandb", r"diffusion_jax\[wandb\]"),
    ],
)
def test_a_missing_optional_package_names_its_extra(writer, module, extra, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=extra):
        writer(tmp_path)


def test_tensorboard_writes_events_and_images(tmp_path):
    pytest.importorskip("tensorboardX")
    PIL.Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "sheet.png")
    writer = writers.TensorBoardWriter(tmp_path / "events")
    writer.scalars(1, {"loss": jnp.float32(0.5)})
    before = sum(file.stat().st_size for file in (tmp_path / "events").iterdir())
    writer.images(1, {"sheet": tmp_path / "sheet.png", "array": np.zeros((4, 4, 3), np.uint8)})
    writer.close()
    assert sum(file.stat().st_size for file in (tmp_path / "events").iterdir()) > before > 0


def test_wandb_that_cannot_start_is_one_line(tmp_path, monkeypatch):
    class UsageError(Exception):
        pass

    def init(**keywords):
        raise UsageError("api_key not configured (no-tty). call wandb.login(key=[your_api_key])\nmore lines")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with pytest.raises(Fault, match=r"loggers: wandb .*api_key not configured.*WANDB_API_KEY.*WANDB_MODE") as refusal:
        writers.WandbWriter(tmp_path)
    assert "\n" not in str(refusal.value)


def test_wandb_continues_the_same_run(tmp_path, monkeypatch):
    started, logged = [], []
    run = types.SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)
    fake = types.SimpleNamespace(init=lambda **keywords: started.append(keywords) or run, Image=lambda pixels: pixels)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for step in (1, 2):
        writer = writers.WandbWriter(tmp_path, config={"seed": 0})
        writer.scalars(step, {"loss": np.float32(0.5)})
        writer.close()
    assert logged == [(1, {"loss": 0.5}), (2, {"loss": 0.5})]
    assert started[0]["id"] == started[1]["id"] and started[0]["resume"] == "allow"


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\x00\xfe\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: "):
        writers.JsonlWriter(tmp_path / "metrics.jsonl", resume_step=3)
