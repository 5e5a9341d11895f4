"""From a config to a system and to the data that it reads."""

import numpy as np

from diffusion_jax.config import build
from tests.runs import toy


def test_source_splits():
    built = build.build(toy())
    train, test = built.source(), built.source(evaluation=True)
    assert len(train) == len(test) == 256
    assert np.abs(train.batch(np.arange(5))["x"] - test.batch(np.arange(5))["x"]).min() > 0
