"""The figures of the default model, kept honest by a shorter training that must reach a weaker bar."""

import json
import pathlib

import pytest

from diffusion_jax.config import from_file
from diffusion_jax.run import train

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "ncsn.py"


@pytest.mark.slow
@pytest.mark.optimized
def test_a_quarter_of_the_training_gives_all_digits(tmp_path):
    config = from_file(str(CONFIG))
    config.training.num_steps = config.training.num_steps // 4
    config.training.sample_every = 0
    config.optimizer.warmup_steps = 50
    config.ema.rates = (0.99,)
    train.train(config, tmp_path)
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert figures["num_samples"] == 500
    assert figures["classifier_test_accuracy"] >= 0.97
    assert figures["class_entropy_ratio"] >= 0.93  # the full training must reach 0.95
    assert figures["confidence_ratio"] >= 0.80  # 0.90
    assert figures["classifier_frechet_ratio"] <= 9.0  # 3.0; noise has more than 100
