"""Files, pictures and metrics of point clouds."""

import numpy as np
import pytest

from diffusion_jax import data, modalities
from diffusion_jax.data import ply
from diffusion_jax.evaluation.turntables import turntable
from diffusion_jax.types import Spec

CLOUD = modalities.MODALITIES["cloud"]
RNG = np.random.default_rng(0)
SAMPLES = RNG.uniform(-1, 1, (14, 32, 3)).astype(np.float32)


def test_each_cloud_is_a_file_when_asked_for(tmp_path):
    assert CLOUD.files(tmp_path / "s", {"samples": SAMPLES}, None, {"format": ""}) == []
    assert CLOUD.files(tmp_path / "s", {"samples": SAMPLES}, None, {"format": "ply"}) == [tmp_path / "s"]
    assert len(list((tmp_path / "s").iterdir())) == 14
    np.testing.assert_array_equal(ply.read(tmp_path / "s" / "00003.ply"), SAMPLES[3])
    with pytest.raises(ValueError, match="must be finite"):
        CLOUD.stored(SAMPLES * np.nan)


def test_pictures_mark_the_points_that_are_given():
    plain = CLOUD.picture({"samples": SAMPLES}, ["a"] * 14, {})
    known = SAMPLES.copy()
    known[:, 10:] = np.nan
    marked = CLOUD.picture({"samples": SAMPLES, "known": known, "original": SAMPLES}, None, {})
    orange = lambda image: ((image[..., 0].astype(int) - image[..., 2]) > 60).sum()
    assert plain.dtype == np.uint8 and plain.ndim == 3
    assert orange(marked) > 100 > orange(plain)
    assert CLOUD.picture({"samples": SAMPLES * np.inf}, None, {}) is None


def test_a_view_shows_the_nearer_of_two_points():
    """Of two points on the line of sight; half a turn later the other one is in front."""
    axis = np.array([-np.sin(np.deg2rad(30)), 0, -np.cos(np.deg2rad(30))])
    line = np.stack([0.9 * axis, -0.9 * axis])[None]
    dark = lambda known: turntable(line, known=np.array([known]), views=2)
    front = dark([True, False])
    other = dark([False, True])
    assert not np.array_equal(front, other)
    width = front.shape[1] // 2
    assert np.abs(front[:, :width].astype(int) - other[:, :width]).sum() > 0


def test_metrics_of_real_clouds_next_to_noise():
    """Held-out solids of the synthetic set against its training solids, and against uniform points."""
    train = data.load(name="clouds", num_examples=40, points=64)
    test = data.load(name="clouds", num_examples=40, points=64, evaluation=True)
    evaluation = modalities.Evaluation(
        options={"metrics": ("chamfer", "nearest_train")}, train=train, test=test, makes=Spec((64, 3), modality="cloud")
    )
    score = lambda x: {
        k: v for metric in modalities.metrics(CLOUD, evaluation) for k, v in metric({"samples": x}).items()
    }
    real = score(data.arrays(data.load(name="clouds", num_examples=40, points=64, seed=5))["x"])
    noise = score(RNG.uniform(-1, 1, (40, 64, 3)))
    copies = score(data.arrays(train)["x"] + 0.001)
    assert real["one_nna_cd"] < 0.75 < noise["one_nna_cd"] and real["num_clouds_cd"] == 40
    assert real["mmd_cd"] < noise["mmd_cd"] and real["jsd"] < noise["jsd"]
    assert copies["nearest_train_ratio"] < 0.1 < 0.7 < real["nearest_train_ratio"] < 1.3
    with pytest.raises(ValueError, match="it needs samples under known points"):
        CLOUD.metrics["completion"](evaluation)
