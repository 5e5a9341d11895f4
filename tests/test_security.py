"""What a config, a folder or the environment must not be able to do: write elsewhere, give away secrets."""

import json
import sys
import types

import pytest

from diffusion_jax.config import checks, saved
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.run import plan, train
from diffusion_jax.run.job import prepare
from tests.runs import TOY, command, flag, listing, toy


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "..", ".hidden", "", "a\\b", "a\x00b", "a\nb", "x" * 300])
def test_samples_stay_in_their_folder(name):
    with pytest.raises(ConfigError, match=r"config\.sampling\.file=.* must be the name of a file in WORKDIR/samples"):
        prepare(toy(sampling__file=name))


@pytest.mark.parametrize("name", ["samples", "scale_1.5", "heun-18", "Ärger"])
def test_ordinary_names_of_samples(name):
    checks.check_keys(toy(sampling__file=name))


@pytest.mark.parametrize(
    "key", ["wandb_api_key", "training.token", "data.password", "network.access_token", "solver.API_KEY", "secret"]
)
def test_a_secret_in_a_config_is_refused_and_not_repeated(monkeypatch, capsys, tmp_path, key):
    before = listing(tmp_path)
    with pytest.raises(SystemExit) as exit:
        command(monkeypatch, *flag(TOY), f"--config.{key}=hunter2", f"--workdir={tmp_path}")
    said = "".join(capsys.readouterr())
    assert exit.value.code == 2 and f"config.{key} looks like a secret" in said
    assert "hunter2" not in said and listing(tmp_path) == before


def test_the_key_of_a_logger_is_written_nowhere(monkeypatch, capsys, tmp_path):
    logged = []
    fake = types.ModuleType("wandb")
    fake.__spec__ = types.SimpleNamespace(name="wandb")
    fake.Image = lambda pixels: pixels
    fake.init = lambda **keywords: (
        logged.append(keywords) or types.SimpleNamespace(log=lambda *a, **k: logged.append((a, k)), finish=lambda: None)
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    config = toy(training__loggers=("jsonl", "wandb"))
    train.train(config, tmp_path)
    plan.plan(config)
    assert logged and "hunter2" not in str(logged)
    assert "hunter2" not in "".join(capsys.readouterr())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.json", "metrics.jsonl"} <= {path.name for path in files}
    assert not [path for path in files if b"hunter2" in path.read_bytes()]


@pytest.mark.parametrize(
    "content", ["[" * 10**5, "[]", "3", '"a"', "null", "1" * 10**5, '{"seed": ' + "9" * 5000 + "}", "\x00"]
)
def test_a_config_json_that_holds_something_else(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        saved.read_config(tmp_path)


def test_a_config_json_cannot_name_more_than_there_is(tmp_path):
    from diffusion_jax.config import build

    (tmp_path / "checkpoints").mkdir()
    for section, key, value in [("network", "name", "os.system"), ("system", "name", "__class__"), ("data", "a.b", 1)]:
        content = toy().to_dict()
        content[section][key] = value
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=r"config\.weights='.*': its config\.json describes no model: "):
            build.trained(str(tmp_path), "config.weights")
