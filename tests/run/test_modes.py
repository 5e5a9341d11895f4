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
    assert set(drawn) == {"samples", "seed"}
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


def test_single_pictures(images, capsys):
    """And the sheet, of which the message says how much it shows."""
    config = digits(**CLASSES, sampling__format="png", sampling__file="single", sampling__num_samples=260)
    config.sampling.batch_size = 130
    sample.sample(config, images)
    paths = sorted((images / "samples" / "single").iterdir())
    assert [path.name for path in paths] == [f"{i:05}.png" for i in range(260)]
    drawn = np.load(images / "samples" / "single.npz")["samples"]
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(paths[7])), drawn[7, ..., 0])
    output, error = capsys.readouterr()
    assert "the first 256 of 260 in the picture" in output and str(images / "samples" / "single") in output
    assert "sample   0% 0/260" in error and "sample 100% 260/260" in error


def test_single_pictures_of_what_has_none(points):
    with pytest.raises(ConfigError, match=r"config\.sampling\.format='png' must be ''.*'points'"):
        sample.sample(toy(sampling__format="png"), points)
    with pytest.raises(ConfigError, match=r"config\.sampling\.format='jpg' must be.*'png'"):
        sample.sample(digits(sampling__format="jpg"), points)


def test_the_file_may_be_named_with_its_suffix(points):
    sample.sample(toy(sampling__file="out.npz"), points)
    assert (points / "samples" / "out.npz").exists() and not (points / "samples" / "out.npz.npz").exists()
    assert (points / "samples" / "out.png").exists()


def test_earlier_samples_are_kept(images, capsys):
    def drawn(seed):
        sample.sample(digits(**CLASSES, sampling__file="a.b", sampling__seed=seed, sampling__format="png"), images)
        return capsys.readouterr().out

    folder = images / "samples"
    (folder / "a.npz").write_text("of another name")
    assert "earlier" not in drawn(0)
    first = (folder / "a.b.npz").read_bytes()
    assert f"earlier samples of this name are now {folder / 'a.b.1.npz'}" in drawn(1)
    assert str(folder / "a.b.2.npz") in drawn(2)
    assert (folder / "a.b.1.npz").read_bytes() == first != (folder / "a.b.npz").read_bytes()
    assert {path.name for path in folder.glob("a*")} == {
        "a.npz",
        *(f"a.b{number}{kind}" for number in ("", ".1", ".2") for kind in (".npz", ".png", "")),
    }


@pytest.mark.slow
def test_held_out_values_do_not_depend_on_the_batch_size(points):
    def values(size, likelihood="ode"):
        config = toy(training__batch_size=size, evaluation__num_samples=9, evaluation__metrics=())
        if likelihood == "ode":
            config.evaluation.likelihood = ConfigDict(dict(name="ode", dequantization="none", t_min=1e-2))
        evaluate.evaluate(config, points)
        return json.loads((points / "evaluation.json").read_text())

    small, middle, whole = values(4), values(8, "none"), values(32)
    np.testing.assert_allclose([small["held_out_loss"], middle["held_out_loss"]], whole["held_out_loss"], rtol=1e-5)
    np.testing.assert_allclose(small["held_out_bits_per_dim"], whole["held_out_bits_per_dim"], rtol=1e-4)


def test_likelihoods_that_do_not_arrive_are_counted(points):
    config = toy(evaluation__num_samples=8, evaluation__metrics=())
    config.evaluation.likelihood = ConfigDict(dict(name="ode", dequantization="none", t_min=1e-2, max_steps=2))
    with pytest.warns(UserWarning, match=r"bits_per_dim, nats of 8 of 8 held-out.*0, 1, 2.*likelihood\.max_steps"):
        evaluate.evaluate(config, points)
    found = json.loads((points / "evaluation.json").read_text())
    assert found["held_out_bits_per_dim"] is None and found["held_out_bits_per_dim_num"] == 0
    assert found["held_out_not_finite"] == 8 and found["held_out_not_finite_examples"] == list(range(8))
    assert found["held_out_loss"] > 0 and "held_out_loss_num" not in found


def test_means_are_over_the_examples_that_arrived():
    values = {"bits": np.array([1.0, np.nan, 3.0, np.inf]), "loss": np.arange(4.0)}
    with pytest.warns(UserWarning, match="bits of 2 of 4 held-out examples not finite: examples 1, 3"):
        assert evaluate.means(values) == {
            "held_out_bits": 2.0,
            "held_out_bits_num": 2,
            "held_out_loss": 1.5,
            "held_out_not_finite": 2,
            "held_out_not_finite_examples": [1, 3],
        }


def test_a_likelihood_at_no_noise_is_refused(points):
    config = toy()
    config.evaluation.likelihood = ConfigDict(dict(name="ode", dequantization="none", t_min=0.0))
    with pytest.raises(ConfigError, match=r"sigma > 0.*sigma = 0 at t = 0.*likelihood\.t_min"):
        evaluate.evaluate(config, points)


def test_every_evaluation_is_kept(points):
    (points / "evaluations.jsonl").unlink(missing_ok=True)
    (points / "evaluation.json").write_text('{"step": 2, "solver": "of old"}')
    for seed in (3, 4):
        evaluate.evaluate(toy(sampling__seed=seed, evaluation__num_samples=4), points)
    before, *rows = [json.loads(line) for line in (points / "evaluations.jsonl").read_text().splitlines()]
    assert before == {"step": 2, "solver": "of old"}
    assert [row["seed"] for row in rows] == [3, 4] and all(row["time"] for row in rows)
    assert {**json.loads((points / "evaluation.json").read_text()), "time": rows[1]["time"]} == rows[1]


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


@pytest.mark.slow
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
