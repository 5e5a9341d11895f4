"""Metrics of restored images: against closed forms, and asked for by a config."""

import functools
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax import data, modalities
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.evaluation import restoration, sheets
from diffusion_jax.guidance import measurement, methods
from diffusion_jax.guidance.filters import average
from diffusion_jax.guidance.operators import half
from diffusion_jax.guidance.scans import matrix_of
from diffusion_jax.modalities import image
from diffusion_jax.networks.lpips import lpips
from diffusion_jax.run import requests
from diffusion_jax.run.evaluate import metrics_of
from diffusion_jax.run.job import prepare
from diffusion_jax.types import Spec
from tests.runs import digits

SHAPE = (4, 4, 1)
RNG = np.random.default_rng(0)
# Coordinates of Gaussian images, of a known covariance.
MIXING = RNG.standard_normal((16, 16)) / 8
TRAIN = (0.1 + RNG.standard_normal((4000, 16)) @ MIXING.T).reshape(-1, *SHAPE).astype(np.float32)


@pytest.mark.parametrize("make", [average, half])
def test_the_linear_estimate_is_the_posterior_mean_of_a_gaussian(make):
    """In its other form: (C^-1 + A^T A / q^2)^-1 (C^-1 m + A^T y / q^2)."""
    q = 0.2
    operator = make(SHAPE, noise=q)
    entry = operator.measure(TRAIN[:3])
    y, mask = operator.split(entry)
    mean, precision = TRAIN.reshape(-1, 16).mean(0), np.linalg.inv(np.cov(TRAIN.reshape(-1, 16), rowvar=False))
    matrix = np.asarray(matrix_of(operator, None if mask is None else mask[:1]), np.float64)
    there = np.linalg.inv(precision + matrix.T @ matrix / q**2)
    exact = (there @ (precision @ mean + matrix.T @ y.reshape(3, -1)[0] / q**2)).reshape(SHAPE)
    np.testing.assert_allclose(restoration.linear_estimate(entry, operator, TRAIN)[0], exact, atol=1e-3)


def test_values_of_known_samples():
    """Samples x + e and x - e: the mean is x, the standard deviation sqrt(2) e, the PSNR of one 20 log10(2 / e)."""
    truth, error = np.clip(TRAIN[:32], -0.8, 0.8), 0.05
    operator = average(SHAPE, noise=0.1)
    entry = operator.measure(truth)
    both = np.concatenate([truth + error, truth - error])
    values = restoration.restoration(both, truth, entry, operator, TRAIN)
    assert values["restoration_num_measurements"] == 32 and values["restoration_samples_per_measurement"] == 2
    np.testing.assert_allclose(values["restoration_psnr"], 20 * np.log10(2 / error), atol=1e-3)
    np.testing.assert_allclose(values["restoration_mean_psnr"], 100, atol=1)
    np.testing.assert_allclose(values["restoration_spread"], np.sqrt(2) * error, rtol=1e-4)
    exact = restoration.restoration(truth, truth, entry, operator, TRAIN)
    np.testing.assert_allclose(exact["restoration_residual"], 1, rtol=0.15)
    np.testing.assert_allclose(exact["restoration_ssim"], 1, rtol=1e-5)
    # Of the linear estimates the best is better than any other.
    assert values["restoration_psnr_lmmse"] > values["restoration_psnr_pinv"] + 0.5
    assert values["restoration_psnr_lmmse"] > values["restoration_psnr_mean"] + 0.5
    with pytest.raises(ValueError, match="3 samples of 2 measurements"):
        restoration.restoration(truth[:3], truth[:2], entry[:2], operator, TRAIN)


def test_inpainting_is_scored_on_the_unknown_pixels():
    truth = TRAIN[:4]
    operator = half(SHAPE)
    values = restoration.restoration(truth + 0.1, truth, operator.measure(truth), operator, TRAIN)
    partly = truth + np.float32(0.1) * (np.arange(4) >= 2)[:, None, None]  # wrong where it is unknown
    other = restoration.restoration(partly, truth, operator.measure(truth), operator, TRAIN)
    np.testing.assert_allclose(values["restoration_psnr"], 20 * np.log10(20), atol=1e-3)
    np.testing.assert_allclose(other["restoration_psnr"], values["restoration_psnr"], atol=1e-3)
    assert other["restoration_residual"] == 0


def _config(**changes):
    section = dict(name="measurement", operator=dict(name="average", factor=2, noise=0.05), method=dict(name="mmps"))
    config = digits(guidance=ConfigDict(section), network__hidden=8, **changes)
    config.evaluation.metrics = ("restoration",)
    config.evaluation.num_samples, config.evaluation.samples_per_condition = 6, 2
    return config


def test_a_config_measures_held_out_examples_and_compares_with_them():
    job = prepare(_config())
    cond = requests.conditions(job, 6, distinct=3)
    truth = data.shuffled(job.held_out, 3)["x"]
    assert cond["measurement"].shape == (6, 4, 4, 1)
    np.testing.assert_array_equal(cond["measurement"][:3], cond["measurement"][3:])
    exact = truth.reshape(3, 4, 2, 4, 2, 1).mean((2, 4))
    assert 0.02 < np.std(cond["measurement"][:3] - exact) < 0.08
    (metric,) = metrics_of(job, None, job.held_out)
    drawn = {"samples": np.tile(truth, (2, 1, 1, 1)), **cond}
    values = metric(drawn)
    assert values["restoration_psnr"] == pytest.approx(100) and values["restoration_num_measurements"] == 3
    with pytest.raises(ValueError, match="are not those of held-out examples"):
        metric({**drawn, "measurement": cond["measurement"] + 1})
    panels = requests.compared(job, cond)
    assert panels["measured"].shape == (6, 8, 8, 1)
    np.testing.assert_array_equal(panels["original"][:3], data.shuffled(job.held_out, 6)["x"][:3])
    sheet = image.picture({**drawn, **panels}, None, {})
    one = image.picture({"samples": drawn["samples"]}, None, {})
    assert sheet.size > one.size / 2 and sheet.shape != one.shape


def test_measurements_are_read_from_files(tmp_path):
    """Numbers as they are, also beyond [-1, 1]; images, in the shape of y; with a mask that is white where unknown."""
    guided = measurement.measurement(average((8, 8, 1), noise=0.3), methods.mmps())
    y = RNG.uniform(0, 1.4, (2, 4, 4, 1)).astype(np.float32)
    np.savez(tmp_path / "y.npz", measurement=y)
    asked = functools.partial(requests.requested, conditions=guided.conditions, num=2)
    np.testing.assert_array_equal(asked(str(tmp_path / "y.npz"))["measurement"], y)
    sheets.write_png(np.full((20, 30), 255, np.uint8), tmp_path / "photo.png")
    mask = np.zeros((20, 20), np.uint8)
    mask[:10] = 255
    sheets.write_png(mask, tmp_path / "mask.png")
    (tmp_path / "one.json").write_text(json.dumps([{"measurement": "photo.png"}]))
    np.testing.assert_array_equal(asked(str(tmp_path / "one.json"))["measurement"], np.ones((2, 4, 4, 1)))
    (tmp_path / "two.json").write_text(json.dumps([{"measurement": ["photo.png", "mask.png"]}]))
    inpainting = measurement.measurement(half((8, 8, 1)), methods.ddnm()).conditions
    entry = requests.requested(str(tmp_path / "two.json"), inpainting, 1)["measurement"]
    np.testing.assert_array_equal(entry[0, :, :, 0], np.repeat([[0.0], [1.0]], 4, 0) * np.ones(8))
    np.testing.assert_array_equal(entry[..., 0], entry[..., 1])
    np.savez(tmp_path / "y.npz", measurement=y[:, :2])
    with pytest.raises(ValueError, match="condition 'measurement' has shape"):
        asked(str(tmp_path / "y.npz"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(guidance=ConfigDict(dict(name="none"))), "config.guidance.name='measurement'"),
        (dict(evaluation__vgg="vgg16.pth", evaluation__lpips="lin.pth"), "sides of at least 16 pixels"),
        (dict(evaluation__num_samples=7), "samples_per_condition=2 must divide evaluation.num_samples=7"),
    ],
)
def test_what_has_no_truth_is_refused(change, message):
    config = _config()
    for name, value in change.items():
        section, _, key = name.partition("__")
        if key:
            config[section][key] = value
        else:
            config[section] = value
    job = prepare(config)
    with pytest.raises(ConfigError, match=message):
        metrics_of(job, None, job.held_out)


def test_lpips_of_samples_and_estimates(monkeypatch):
    """The mean distance of single samples, of their mean and of each estimate; weights from both files or none."""
    truth = TRAIN[:4]
    operator = average(SHAPE, noise=0.1)
    both = np.concatenate([truth + 0.1, truth - 0.1])
    far = lambda x, y: np.abs(x - np.clip(y, -1, 1)).mean((1, 2, 3))
    values = restoration.restoration(both, truth, operator.measure(truth), operator, TRAIN, far)
    assert values["restoration_mean_lpips"] < 1e-6 < 0.05 < values["restoration_lpips"]
    assert values["restoration_lpips_lmmse"] < values["restoration_lpips_mean"]
    init = jax.jit(lpips((16, 16, 1))[0])
    monkeypatch.setattr(image, "load_lpips", lambda vgg, lin: init(jax.random.key(0)))
    evaluation = functools.partial(modalities.Evaluation, train=None, test=None, makes=Spec((16, 16, 1)))
    distance = image._perceptual(evaluation(options=dict(vgg="a", lpips="b")))
    x = np.linspace(-1, 1, 512, dtype=np.float32).reshape(2, 16, 16, 1)
    np.testing.assert_allclose(distance(x, x), 0, atol=1e-6)
    assert distance(x, -x).min() > 1e-4
    assert image._perceptual(evaluation(options={})) is None
    with pytest.raises(ValueError, match="must both be files"):
        image._perceptual(evaluation(options=dict(vgg="a", lpips="")))
