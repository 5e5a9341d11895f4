"""What the modes write, on points and on images."""

import json

import numpy as np
import PIL.Image
import pytest
from ml_collections import ConfigDict

from diffusion_jax.config import data, saved
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.data import vocabulary
from diffusion_jax.run import evaluate, sample, train
from tests.runs import digits, source_of, toy
from tests.systems.test_latent_diffusion import stage_config

CLASSES = dict(network__num_classes=10)


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    folder = tmp_path_factory.mktemp("points")
    train.train(toy(training__sample_every=2, profile__after=1, profile__steps=1), folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    train.train(digits(**CLASSES), folder)
    return folder


def test_train_writes_its_files(points):
    config = json.loads((points / "config.json").read_text())
    assert config["training"]["num_steps"] == 4
    assert config["process"] == {"name": "vp"}
    rows = [json.loads(line) for line in (points / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert {"step", "loss", "grad_norm", "learning_rate", "examples_per_second"} <= row.keys()
        assert all(np.isfinite(value) for value in row.values())
    assert {path.name for path in (points / "checkpoints").iterdir()} >= {"2", "4"}
    assert len(list((points / "profile").rglob("perfetto_trace.json.gz"))) == 1
    assert {path.name for path in (points / "samples").glob("step_*.png")} == {
        "step_00000002.png",
        "step_00000004.png",
    }


def test_train_says_where_things_are(points, capsys):
    train.train(toy(), points)  # already finished
    output = capsys.readouterr().out
    assert "resuming from step 4" in output and "trained to step 4" in output
    for part in ("checkpoints", "metrics.jsonl", "samples"):
        assert str(points / part) in output


@pytest.mark.parametrize("config", [toy(), digits(**CLASSES)], ids=["points", "images"])
@pytest.mark.parametrize("mode", [sample.sample, evaluate.evaluate], ids=["sample", "evaluate"])
@pytest.mark.parametrize("begun", [False, True])
def test_before_the_first_checkpoint(tmp_path, config, mode, begun):
    """The folder of a run that has just started is not taken for a folder of diffusers."""
    saved.write_config(tmp_path, config)
    if begun:
        (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match=f"^{tmp_path} holds no checkpoint; train first"):
        mode(config, tmp_path)


def test_train_for_longer(points, tmp_path):
    train.train(toy(training__num_steps=2), tmp_path)
    train.train(toy(training__num_steps=3), tmp_path)
    rows = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [1, 2, 3]
    assert json.loads((tmp_path / "config.json").read_text())["training"]["num_steps"] == 3


def test_train_evaluates_when_it_is_done(tmp_path):
    train.train(toy(evaluation__after_training=True), tmp_path)
    assert (tmp_path / "evaluation.json").exists()


@pytest.mark.slow
def test_each_split_is_opened_once(tmp_path, monkeypatch):
    """Although every picture of training and the evaluation after it reconstruct held-out images."""
    opened, read = [], data.source

    def source(*arguments, evaluation=False, **keywords):
        opened.append(evaluation)
        return read(*arguments, evaluation=evaluation, **keywords)

    monkeypatch.setattr(data, "source", source)
    train.train(stage_config(training__sample_every=1, evaluation__after_training=True), tmp_path)
    assert len(list((tmp_path / "samples").glob("step_*.png"))) == 4
    assert opened == [False, True]


def test_weights_start_a_new_run(points, tmp_path):
    """The parameters are the averages of the other run, so its samples are the samples of step 0."""
    config = toy(weights=str(points), training__num_steps=1, optimizer__learning_rate=1e-12)
    train.train(config, tmp_path)
    for folder in (points, tmp_path):
        sample.sample(toy(sampling__file="compare"), folder)
    a, b = (np.load(folder / "samples" / "compare.npz")["samples"] for folder in (points, tmp_path))
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_sample_points(points, capsys):
    sample.sample(toy(sampling__file="drawn"), points)
    assert str(points / "samples" / "drawn.npz") in capsys.readouterr().out
    drawn = np.load(points / "samples" / "drawn.npz")
    assert drawn["samples"].shape == (6, 2)
    assert drawn["samples"].dtype == np.float32
    assert set(drawn) == {"samples"}
    assert PIL.Image.open(points / "samples" / "drawn.png").size[0] > 100


def test_samples_do_not_depend_on_their_number_and_batch(points):
    for file, num, batch in (("a", 6, 6), ("b", 9, 4)):
        sample.sample(toy(sampling__file=file, sampling__num_samples=num, sampling__batch_size=batch), points)
    a, b = (np.load(points / "samples" / f"{file}.npz")["samples"] for file in "ab")
    assert len(b) == 9
    np.testing.assert_allclose(a, b[:6], atol=2e-6)


def test_the_seed_of_sampling(points):
    for seed in (0, 1):
        sample.sample(toy(sampling__file=f"seed{seed}", sampling__seed=seed), points)
    a, b = (np.load(points / "samples" / f"seed{seed}.npz")["samples"] for seed in (0, 1))
    assert np.abs(a - b).min() > 1e-4


def test_sample_images(images):
    sample.sample(digits(**CLASSES), images)
    drawn = np.load(images / "samples" / "samples.npz")
    assert drawn["samples"].shape == (6, 8, 8, 1)
    assert drawn["samples"].dtype == np.uint8
    np.testing.assert_array_equal(drawn["cond"], np.arange(6))
    assert PIL.Image.open(images / "samples" / "samples.png").mode == "RGB"


def test_evaluate_images(images):
    evaluate.evaluate(digits(**CLASSES), images)
    figures = json.loads((images / "evaluation.json").read_text())
    assert {"step", "solver", "steps", "seed", "num_samples", "held_out_loss"} <= figures.keys()
    assert figures["num_samples"] == 32


def test_evaluate_points(points, capsys):
    evaluate.evaluate(toy(sampling__seed=5), points)
    figures = json.loads((points / "evaluation.json").read_text())
    expected = {"step": 4, "solver": "ddim", "steps": 4, "seed": 5, "num_samples": 32}
    assert {name: figures[name] for name in expected} == expected
    assert figures["sliced_wasserstein"] > 0
    assert 0 < figures["held_out_loss"] < 10
    assert str(points / "evaluation.json") in capsys.readouterr().out


def test_latents_are_written_as_they_are(tmp_path):
    """Arrays of four channels are neither images nor points: no picture, and floats in the file."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "latents.npz", x=rng.standard_normal((64, 8, 8, 4), np.float32))
    config = digits()
    config.data.name, config.data.path = "arrays", str(tmp_path / "latents.npz")
    config.data.eval_split, config.data.channels = "train", 4
    train.train(config, tmp_path / "run")
    sample.sample(config, tmp_path / "run")
    drawn = np.load(tmp_path / "run" / "samples" / "samples.npz")["samples"]
    assert drawn.shape == (6, 8, 8, 4) and drawn.dtype == np.float32
    assert not list((tmp_path / "run").rglob("*.png"))


def test_captions_are_read_by_the_words_of_a_tokenizer(tmp_path):
    rng, names = np.random.default_rng(0), ["red heart", "blue heart", "dog face", "cat face"] * 4
    np.savez(tmp_path / "pictures.npz", images=rng.integers(0, 256, (16, 8, 8, 1), np.uint8), names=np.array(names))
    vocabulary.learn(names, 300).save(str(tmp_path / "tokenizer.json"))
    config = toy(training__num_steps=1, sampling__cond="Dog face|red cat|", sampling__num_samples=3)
    config.data = ConfigDict(dict(name="arrays", split="train", eval_split="train", image_size=8, channels=1))
    config.data.update(path=str(tmp_path / "pictures.npz"), caption_key="names", tokenizer=str(tmp_path))
    config.network = ConfigDict(dict(name="dit", patch_size=4, hidden_size=8, depth=1, num_heads=1, token_dim=4))
    config.network.update(vocabulary=300, max_tokens=4)
    config.evaluation.metrics = ("retrieval",)
    train.train(config, tmp_path / "run")
    sample.sample(config, tmp_path / "run")
    assert np.load(tmp_path / "run" / "samples" / "samples.npz")["cond"].tolist() == ["dog face", "red cat", ""]
    evaluate.evaluate(config, tmp_path / "run")
    assert "retrieval_caption" in json.loads((tmp_path / "run" / "evaluation.json").read_text())
    for changes, message in (
        (dict(vocabulary=270), r"has 2.. tokens.*config\.network\.vocabulary=270"),
        (dict(vocabulary=0), r"config\.data\.tokenizer=.*config\.network\.vocabulary > 0"),
    ):
        other = ConfigDict(config.to_dict())
        other.network.update(changes)
        with pytest.raises(ConfigError, match=message):
            source_of(other)
    config.data.tokenizer = str(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"config\.data\.tokenizer='.*none'.*holds no tokenizer"):
        sample.sample(config, tmp_path / "run")
