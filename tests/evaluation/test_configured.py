"""Metrics that a config asks for."""

import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.evaluation import sheets
from diffusion_jax.modalities import image
from diffusion_jax.run import train
from diffusion_jax.run.evaluate import metrics_of
from diffusion_jax.run.job import prepare
from tests.evaluation.test_features import projection
from tests.runs import digits, toy

pytestmark = pytest.mark.filterwarnings("ignore:.*biased upwards")


def _config(*metrics, **changes):
    config = digits(network__num_classes=10, **changes)
    config.evaluation.metrics = metrics
    return config


def _of_noise(config, directory=None, num=32):
    """The metrics of noise."""
    job = prepare(config)
    drawn = {"samples": np.random.default_rng(0).uniform(-1, 1, (num, 8, 8, 1)).astype(np.float32)}
    values = {}
    for metric in metrics_of(job, directory, job.held_out):
        values |= metric(drawn)
    return values


@pytest.mark.slow
def test_values_without_inception_are_the_classifiers():
    metrics = ("classifier", "kid", "inception_score", "precision_recall", "density_coverage", "memorization")
    values = _of_noise(_config(*metrics))
    own = {name for name in values if name.startswith("classifier_")}
    assert {"classifier_kid", "classifier_score", "classifier_precision", "classifier_coverage"} < own
    assert {"classifier_memorization_probability", "classifier_frechet", "classifier_test_accuracy"} < own
    assert not [name for name in values if name.startswith(("fid", "kid", "inception", "precision"))]
    assert values["classifier_kid_num"] == values["num_samples"] == 32
    assert values["classifier_kid"] > 10 * abs(values["classifier_kid_real"])
    assert values["classifier_precision"] < 0.2 and values["classifier_precision_real"] > 0.5


def test_inception_values_and_their_reference(tmp_path, monkeypatch):
    """With a small network instead of Inception."""
    extractor = projection(shape=(8, 8, 1))
    monkeypatch.setattr(image.features, "inception", lambda path, resize: extractor)
    (tmp_path / "weights.pth").write_bytes(b"")
    config = _config("fid", "sfid", "kid", evaluation__inception=str(tmp_path / "weights.pth"))
    first = _of_noise(config, tmp_path / "run")
    assert {"fid", "sfid", "kid", "fid_num", "fid_real", "num_reference"} < set(first)
    assert first["fid"] > 3 * first["fid_real"] > 0 and first["num_real"] == 32
    statistics = tmp_path / "run" / "statistics" / "inception_pytorch.npz"
    written = statistics.stat().st_mtime_ns

    assert _of_noise(config, tmp_path / "run") == pytest.approx(first) and statistics.stat().st_mtime_ns == written
    smaller = config.copy_and_resolve_references()
    smaller.data.split = "train[:600]"
    assert _of_noise(smaller, tmp_path / "run")["num_reference"] == 600 and statistics.stat().st_mtime_ns > written

    np.savez(tmp_path / "reference.npz", images=sheets.to_uint8(data.arrays(prepare(smaller).source)["x"]))
    config.evaluation.reference = str(tmp_path / "reference.npz")
    assert _of_noise(config) == pytest.approx(_of_noise(smaller)), "the same images by another way"


@pytest.mark.parametrize(
    ("changes", "metrics", "message"),
    [
        ({}, ("fid",), r"config\.evaluation\.metrics='fid'.*'fid' needs the weights of FID's Inception network"),
        ({}, ("fiid",), r"config\.evaluation\.metrics='fiid'.*did you mean 'fid'"),
        (
            dict(evaluation__inception="/no/weights.pth"),
            ("fid",),
            r"config\.evaluation\.metrics='fid'.*/no/weights\.pth does not exist",
        ),
        (
            dict(evaluation__reference="/no/images"),
            ("kid",),
            r"config\.evaluation\.metrics='kid'.*/no/images does not exist",
        ),
    ],
)
def test_refusals_before_training(tmp_path, changes, metrics, message):
    with pytest.raises(ConfigError, match=message):
        train.train(_config(*metrics, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_points_and_unlabelled_images_are_refused(tmp_path):
    points = toy(evaluation__metrics=("kid",))
    with pytest.raises(ConfigError, match=r"config\.evaluation\.metrics='kid' .*'points'.* auto, toy"):
        metrics_of(prepare(points), tmp_path)
    np.savez(tmp_path / "images.npz", images=np.zeros((9, 8, 8, 1), np.uint8))
    config = digits(evaluation__metrics=("kid",))
    config.evaluation.metrics = ("kid",)
    config.data.name, config.data.path = "arrays", str(tmp_path / "images.npz")
    with pytest.raises(ConfigError, match=r"metrics='kid'.* evaluation\.inception=FILE"):
        metrics_of(prepare(config), tmp_path)
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"nothing")
    config.evaluation.inception = str(weights)
    with pytest.raises(ConfigError, match=r"weights\.pth is cut off, damaged"):
        metrics_of(prepare(config), tmp_path)
    config.evaluation.resize = "bicubic"
    with pytest.raises(ConfigError, match="resize='bicubic' is unknown"):
        metrics_of(prepare(config), tmp_path)
