"""Names of classes in a run: printed, saved, the same when it is resumed, and asked for by samples."""

import json

import numpy as np
import PIL.Image
import pytest

from diffusion_jax.config import build
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.data import Source
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.run import plan, report, requests, train, workdir
from diffusion_jax.run.job import prepare
from diffusion_jax.run.requests import requested
from tests.runs import digits

CLASSES = Conditions(num_classes=3)


def test_classes_are_asked_for_by_name(tmp_path):
    """What consists of digits is a number; names are looked up only if there are any."""
    names = ("10", "a cat", "dog")
    (tmp_path / "c.txt").write_text("dog\n1\n")
    np.savez(tmp_path / "c.npz", label=np.array(["a cat", "dog"]))
    (tmp_path / "c.json").write_text(json.dumps([{"label": "dog"}]))
    for text, expected in (
        ("a cat", [1]),
        ("dog, 0,a cat", [2, 0, 1]),
        (str(tmp_path / "c.txt"), [2, 1]),
        (str(tmp_path / "c.npz"), [1, 2]),
        (str(tmp_path / "c.json"), [2]),
    ):
        found = requested(text, CLASSES, len(expected), classes=lambda: names)["label"]
        assert found.tolist() == expected and found.dtype == np.int32
    with pytest.raises(ValueError, match="10 is out of range"):
        requested("10", CLASSES, 1, classes=lambda: names)
    with pytest.raises(ValueError, match=r"'dig' \(did you mean 'dog'\?\).*0\.\.2.*a cat, dog"):
        requested("0,dig", CLASSES, 1, classes=lambda: names)
    assert requested("2", CLASSES, 1, classes=lambda: 1 / 0)["label"] == 2


def test_float_images_of_a_request_leave_no_doubt_about_their_range(tmp_path):
    for name in ("image", "control"):
        conditions = Conditions(**{f"{name}_shape": (2, 2, 3)})
        np.savez(tmp_path / "c.npz", **{name: np.full((1, 2, 2, 3), 0.5)})
        with pytest.raises(ValueError, match=rf"{name}: .*\[0, 1\]"):
            requested(str(tmp_path / "c.npz"), conditions, 1)
        np.savez(tmp_path / "c.npz", **{name: np.array([[[[0.5, -0.5, 0]] * 2] * 2])})
        assert requested(str(tmp_path / "c.npz"), conditions, 1)[name].shape == (1, 2, 2, 3)


def test_numbers_of_classes_are_kept_in_the_work_directory(tmp_path):
    assert workdir.read_classes(tmp_path) == ()
    workdir.write_classes(tmp_path, ())
    assert not list(tmp_path.iterdir())
    workdir.write_classes(tmp_path, ("b", "\u00e4", "a"))
    assert json.loads((tmp_path / "classes.json").read_text()) == {"b": 0, "\u00e4": 1, "a": 2}
    assert workdir.read_classes(tmp_path) == ("b", "\u00e4", "a")
    for names in ((), ("b", "\u00e4", "a")):
        workdir.check_classes(tmp_path, names)
    for names, message in ((("b", "c", "a"), "class 1 was '\u00e4' and is 'c'"), (("b",), "3 classes.*there are 1")):
        with pytest.raises(ConfigError, match=rf"classes\.json.*{message}"):
            workdir.check_classes(tmp_path, names)
    for content in ("{", "[]", '{"a": 1}', '{"a": "x"}'):
        (tmp_path / "classes.json").write_text(content)
        with pytest.raises(ConfigError, match=r"classes\.json cannot be read"):
            workdir.read_classes(tmp_path)


def test_many_classes_are_shown_in_part():
    def line(*names):
        facts = {"classes": names} if names else {}
        return report.classes(Source(entries={}, size=0, read=dict, facts=facts))

    (text,) = line(*(f"n{i:03}" for i in range(1000)))
    assert text.startswith("1000 classes: 0 n000, 1 n001, ") and text.endswith("19 n019, ... 999 n999")
    (text,) = line("1", "10", "2")
    assert "1 10" in text and "sorted as strings" in text
    assert line() == []


def _images(root):
    for split in ("train", "test"):
        for i, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for j in range(4):
                PIL.Image.new("L", (8, 8), 50 * i + j).save(root / split / name / f"{j}.png")
    return root


def _config(root, **changes):
    config = digits(**{"network__num_classes": 2, "training__num_steps": 2, **changes})
    config.data.name, config.data.path = "folder", str(root)
    return config


@pytest.mark.slow
def test_a_run_prints_saves_and_uses_the_names_of_classes(tmp_path, capsys):
    root, run = _images(tmp_path / "d"), tmp_path / "run"
    config = _config(root, sampling__cond="dog", training__sample_every=0, evaluation__after_training=False)
    plan.plan(config)
    assert "2 classes: 0 cat, 1 dog" in capsys.readouterr().out
    (root / "train" / "dog" / "0.png").write_bytes(b"")
    config.data.skip_damaged = True
    train.train(config, run)
    out = capsys.readouterr().out
    assert "2 classes: 0 cat, 1 dog" in out and "1 damaged image(s) skipped" in out and "dog/0.png" in out
    assert json.loads((run / "classes.json").read_text()) == {"cat": 0, "dog": 1}
    for split in ("train", "test"):
        (root / split / "cat").rename(root / split / "eel")
    with pytest.raises(ConfigError, match=r"class 0 was 'cat' and is 'dog'"):
        train.train(config, run)
    config.data.path = str(tmp_path / "elsewhere")
    assert requests.conditions(prepare(config), 3, run)["label"].tolist() == [1, 1, 1], "without the data"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(data__eval_split="val"), r"eval_split='val'.*after_training=False"),
        (dict(sampling__cond="dig", evaluation__after_training=False), r"sampling\.cond='dig'.*did you mean 'dog'"),
    ],
)
def test_what_evaluation_or_pictures_need_is_looked_for_before_training(tmp_path, monkeypatch, changes, message):
    root = _images(tmp_path / "d")
    options = {key: value for key, value in changes.items() if not key.startswith("data")}
    config = _config(root, **{"evaluation__after_training": True, **options})
    config.data.update({key.removeprefix("data__"): value for key, value in changes.items() if key.startswith("data")})
    monkeypatch.setattr(train, "train_loop", lambda *args, **options: pytest.fail("it trains"))
    with pytest.raises(ConfigError, match=message):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_stray_picture_is_named_where_classes_are_needed(tmp_path):
    root = _images(tmp_path / "d")
    PIL.Image.new("L", (8, 8)).save(root / "train" / "stray.png")
    with pytest.raises(ConfigError, match=r"num_classes=2 .*stray\.png"):
        build.build(_config(root)).source()
