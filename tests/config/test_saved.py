"""config.json of a work directory, and which changes of a config a run bears."""

import json

import pytest

from diffusion_jax.config import saved, sections
from diffusion_jax.config.sections import ConfigError
from tests.runs import toy


def test_config_round_trip(tmp_path):
    saved.write_config(tmp_path / "new" / "run", toy())
    written = saved.read_config(tmp_path / "new" / "run")
    assert written == json.loads(json.dumps(toy().to_dict()))
    assert sections.changes(toy(), written) == []
    assert [path.name for path in (tmp_path / "new" / "run").iterdir()] == ["config.json"]


def test_no_config_is_none(tmp_path):
    assert saved.read_config(tmp_path) is None
    assert saved.check_same_model(toy(), tmp_path, resume=True) == []


def test_changes_are_named(tmp_path):
    saved.write_config(tmp_path, toy())
    changed = toy(training__num_steps=9, optimizer__b1=0.8)
    assert saved.check_same_model(changed, tmp_path, resume=True) == [
        "config.optimizer.b1 is 0.8 now and was None",
        "config.training.num_steps is 9 now and was 4",
    ]


@pytest.mark.parametrize(
    "key, value",
    [
        ("network.hidden", 8),
        ("network.num_classes", 8),
        ("process.beta_max", 10.0),
        ("parameterization.label", "time"),
        ("data.image_size", 8),
    ],
)
def test_another_model_is_refused_in_every_mode(tmp_path, key, value):
    saved.write_config(tmp_path, toy())
    for resume in (True, False):
        with pytest.raises(ConfigError, match=rf"config\.{key} is {value!r} now"):
            saved.check_same_model(toy(**{key: value}), tmp_path, resume=resume)


@pytest.mark.parametrize("key, value", [("ema.rates", (0.5,)), ("optimizer.name", "lion")])
def test_another_train_state_is_refused_in_training_only(tmp_path, key, value):
    saved.write_config(tmp_path, toy())
    with pytest.raises(ConfigError, match=rf"config\.{key}"):
        saved.check_same_model(toy(**{key: value}), tmp_path, resume=True)
    assert len(saved.check_same_model(toy(**{key: value}), tmp_path, resume=False)) == 1


def test_files_of_the_frozen_parts_may_be_moved(tmp_path):
    """But texts cannot be read as bytes where they were tokens, nor other updates be gone on with."""

    def run(**changes):
        read = toy()
        read.system.update({"pipeline": "a", "tokenizer": "b"} | changes)
        return read

    saved.write_config(tmp_path, run())
    assert len(saved.check_same_model(run(pipeline="c", tokenizer="d"), tmp_path, resume=True)) == 2
    with pytest.raises(ConfigError, match=r"config\.system\.tokenizer is 'bytes' now"):
        saved.check_same_model(run(tokenizer="bytes"), tmp_path, resume=False)
    changed = run()
    changed.lora.weights = "updates.safetensors"
    with pytest.raises(ConfigError, match=r"config\.lora\.weights"):
        saved.check_same_model(changed, tmp_path, resume=True)


@pytest.mark.parametrize("key", ["first_stage", "model", "denoiser"])
def test_runs_of_the_frozen_parts_may_be_moved_but_not_exchanged(tmp_path, key):
    def run(path):
        config = toy()
        config.system.update({key: path, f"{key}_config": f"{path}.py"})
        return config

    field = f"config.system.{key}"
    other = toy(training__num_steps=9)
    saved.write_config(tmp_path, run("old"), {field: toy()})
    for resume in (True, False):
        options = dict(resume=resume)
        assert len(saved.check_same_model(run("new"), tmp_path, runs={field: other}, **options)) == 2
        with pytest.raises(ConfigError, match=rf"config\.system\.{key} is another.*process.beta_max is 3.0 now"):
            saved.check_same_model(run("new"), tmp_path, runs={field: toy(process__beta_max=3.0)}, **options)
    (tmp_path / "runs.json").unlink()  # of an older run
    saved.check_same_model(run("new"), tmp_path, resume=True, runs={field: toy(process__beta_max=3.0)})


@pytest.mark.parametrize(
    "key, refused_in_training",
    [("vote", False), ("level", False), ("quality", True), ("embeddings", True), ("cond_dropout", True)],
)
def test_what_sampling_may_choose_training_that_goes_on_may_not_change(tmp_path, key, refused_in_training):
    changed = toy()
    changed.system[key] = "other"
    saved.write_config(tmp_path, toy())
    assert len(saved.check_same_model(changed, tmp_path, resume=False)) == 1
    if not refused_in_training:
        assert len(saved.check_same_model(changed, tmp_path, resume=True)) == 1
        return
    with pytest.raises(ConfigError, match=rf"config\.system\.{key} is 'other' now"):
        saved.check_same_model(changed, tmp_path, resume=True)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00"])
def test_damaged_config(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        saved.read_config(tmp_path)
