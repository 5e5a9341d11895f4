"""Figures that a config asks for."""

import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.config import build
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.evaluation import sheets
from diffusion_jax.modalities import image
from diffusion_jax.run import train
from tests.evaluation.test_features import projection
from tests.runs import digits, toy

pytestmark = pytest.mark.filterwarnings("ignore:.*biased upwards")


def _config(*metrics, **changes):
    config = digits(network__num_classes=10, **changes)
    config.evaluation.metrics = metrics
    return config


def _judge(config, directory=None, num=32):
    """The figures of noise."""
    train, test = build.source(config), build.source(config, evaluation=True)
    drawn = {"samples": np.random.default_rng(0).uniform(-1, 1, (num, 8, 8, 1)).astype(np.float32)}
    figures = {}
    for metric in build.metrics(config, train, directory, test):
        figures |= metric(drawn)
    return figures


def test_figures_without_inception_are_the_classifiers():
    metrics = ("classifier", "kid", "inception_score", "precision_recall", "density_coverage", "memorization")
    figures = _judge(_config(*metrics))
    own = {name for name in figures if name.startswith("classifier_")}
    assert {"classifier_kid", "classifier_score", "classifier_precision", "classifier_coverage"} < own
    assert {"classifier_memorization_probability", "classifier_frechet", "classifier_test_accuracy"} < own
    assert not [name for name in figures if name.startswith(("fid", "kid", "inception", "precision"))]
    assert figures["classifier_kid_num"] == figures["num_samples"] == 32
    assert figures["classifier_kid"] > 10 * abs(figures["classifier_kid_real"])
    assert figures["classifier_precision"] < 0.2 and figures["classifier_precision_real"] > 0.5


def test_inception_figures_and_their_reference(tmp_path, monkeypatch):
    """With a small network in the place of Inception."""
    extractor = projection(shape=(8, 8, 1))
    monkeypatch.setattr(image.features, "inception", lambda path, resize: extractor)
    (tmp_path / "weights.pth").write_bytes(b"")
    config = _config("fid", "sfid", "kid", evaluation__inception=str(tmp_path / "weights.pth"))
    first = _judge(config, tmp_path / "run")
    assert {"fid", "sfid", "kid", "fid_num", "fid_real", "num_reference"} < set(first)
    assert first["fid"] > 3 * first["fid_real"] > 0 and first["num_real"] == 32
    statistics = tmp_path / "run" / "statistics" / "inception_pytorch.npz"
    written = statistics.stat().st_mtime_ns

    assert _judge(config, tmp_path / "run") == pytest.approx(first) and statistics.stat().st_mtime_ns == written
    smaller = config.copy_and_resolve_references()
    smaller.data.split = "train[:600]"
    assert _judge(smaller, tmp_path / "run")["num_reference"] == 600 and statistics.stat().st_mtime_ns > written

    np.savez(tmp_path / "reference.npz", images=sheets.to_uint8(data.arrays(build.source(smaller))["x"]))
    config.evaluation.reference = str(tmp_path / "reference.npz")
    assert _judge(config) == pytest.approx(_judge(smaller)), "the same images by another way"


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
        build.metrics(points, build.source(points))
    np.savez(tmp_path / "images.npz", images=np.zeros((9, 8, 8, 1), np.uint8))
    config = digits(evaluation__metrics=("kid",))
    config.evaluation.metrics = ("kid",)
    config.data.name, config.data.path = "arrays", str(tmp_path / "images.npz")
    with pytest.raises(ConfigError, match=r"metrics='kid'.* evaluation\.inception=FILE"):
        build.metrics(config, build.source(config))
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"nothing")
    config.evaluation.inception = str(weights)
    with pytest.raises(ConfigError, match=r"weights\.pth is cut off, damaged"):
        build.metrics(config, build.source(config))
    config.evaluation.resize = "bicubic"
    with pytest.raises(ConfigError, match="resize='bicubic' is unknown"):
        build.metrics(config, build.source(config))
