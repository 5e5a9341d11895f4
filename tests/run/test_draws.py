"""Several draws of one image: what samples, pictures and evaluations of the command have of them."""

import json

import numpy as np
import PIL.Image
import pytest
from ml_collections import ConfigDict

from diffusion_jax.config.sections import ConfigError
from diffusion_jax.run import evaluate, sample, train
from diffusion_jax.run.evaluate import metrics_of
from diffusion_jax.run.job import prepare
from tests.runs import digits

DENOISING = ConfigDict(dict(name="denoising", noise=0.3, image=""))
EACH = dict(sampling__num_samples=6, sampling__samples_per_condition=3)
FOUR = dict(evaluation__num_samples=12, evaluation__samples_per_condition=4)


def measured(name: str, **changes) -> ConfigDict:
    """Digits, evaluated by one metric."""
    config = digits(**changes)
    config.evaluation.metrics = (name,)
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("denoising")
    train.train(digits(editing=DENOISING), folder)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Images of two channels that are the given one, and its negative."""
    folder = tmp_path_factory.mktemp("pairs")
    given = np.float32(np.random.default_rng(0).uniform(-1, 1, (24, 8, 8, 1)))
    for split, rows in (("train", slice(4, None)), ("test", slice(0, 4))):
        both = np.concatenate([given, -given], -1)[rows]
        np.savez(folder / f"{split}.npz", images=both, image=given[rows])
    return folder


def translating(pairs, **changes) -> ConfigDict:
    config = measured("translation", network__image_channels=1, **changes)
    config.data = ConfigDict(dict(name="arrays", path=str(pairs), image_size=8, channels=2, modality="image"))
    return config


def test_samples_come_with_their_mean_and_spread(run):
    sample.sample(digits(editing=DENOISING, **EACH), run)
    drawn = np.load(run / "samples" / "samples.npz")
    assert drawn["mean"].shape == drawn["spread"].shape == (2, 8, 8, 1) and drawn["mean"].dtype == np.float32
    pixels = drawn["samples"].reshape(2, 3, 8, 8, 1) / 127.5 - 1
    inside = (np.abs(pixels) < 0.99).all(1)  # saved values are limited
    np.testing.assert_allclose(pixels.mean(1)[inside], drawn["mean"][inside], atol=5e-3)
    np.testing.assert_allclose(pixels.std(1, ddof=1)[inside], drawn["spread"][inside], atol=1e-2)
    sample.sample(digits(editing=DENOISING, sampling__num_samples=6, sampling__file="single"), run)
    assert "mean" not in np.load(run / "samples" / "single.npz")


def test_denoised_images_are_compared_with_the_truth(run):
    evaluate.evaluate(measured("restoration", editing=DENOISING, **FOUR), run)
    found = json.loads((run / "evaluation.json").read_text())
    assert found["editing"] == "denoising" and found["editing_noise"] == 0.3
    assert found["restoration_samples_per_measurement"] == 4 and found["restoration_num_measurements"] == 3
    noisy = 20 * np.log10(2 / 0.3)  # half of the noise of black and white pixels is cut off
    assert noisy < found["restoration_psnr_pinv"] < noisy + 3
    assert found["restoration_psnr_lmmse"] > found["restoration_psnr_pinv"]


def test_an_image_of_ones_own_is_denoised(run, tmp_path):
    PIL.Image.fromarray(np.full((8, 8), 90, np.uint8)).save(tmp_path / "scan.png")
    config = digits(editing=DENOISING, sampling__num_samples=2, sampling__file="scan")
    config.editing.image = str(tmp_path / "scan.png")
    sample.sample(config, run)
    given = np.load(run / "samples" / "scan.npz")["cond"]
    np.testing.assert_allclose(given, np.full((2, 8, 8, 1), 90 / 127.5 - 1), atol=1e-5)
    PIL.Image.fromarray(np.full((20, 30), 90, np.uint8)).save(tmp_path / "scan.png")
    with pytest.raises(ConfigError, match=r"config\.editing\.image=.*must have 8 x 8 pixels"):
        sample.sample(config, run)


def test_a_model_of_pairs_is_compared_with_them_and_drawn_beside_them(pairs, tmp_path):
    config = translating(pairs, **FOUR)
    train.train(config, tmp_path)
    evaluate.evaluate(config, tmp_path)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["translation_samples_per_image"] == 4 and found["translation_num"] == 3
    assert found["translation_psnr_pixel"] > 60 and {"translation_calibration", "translation_channel_1_psnr"} <= {
        *found
    }
    sample.sample(translating(pairs, **EACH), tmp_path)
    sheet = np.asarray(PIL.Image.open(tmp_path / "samples" / "samples.png"))
    assert sheet.shape[1] / sheet.shape[0] == pytest.approx(7 / 2, rel=0.05)  # original, given, 3 draws, mean, spread


def test_the_utility_of_samples_by_class(tmp_path):
    config = measured("utility", network__num_classes=10, evaluation__num_samples=40)
    train.train(config, tmp_path)
    evaluate.evaluate(config, tmp_path)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["utility_real"] > 0.9 and found["utility_gaussian"] > 0.7 > found["utility_synthetic"]
    assert found["utility_num_synthetic"] == 40


def test_what_has_no_pairs_or_classes_is_refused():
    for name, words in (("translation", "condition 'image'"), ("utility", "class-conditional model")):
        with pytest.raises(ConfigError, match=rf"evaluation\.metrics='{name}'.*{words}"):
            metrics_of(prepare(measured(name)), None)
