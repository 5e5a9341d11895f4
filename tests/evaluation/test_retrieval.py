"""The retrieval score, on images whose nearest neighbours are known."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax.config.sections import ConfigError
from diffusion_jax.data.captions import tokens_of
from diffusion_jax.evaluation.retrieval import blocks, retrieval
from diffusion_jax.run.evaluate import metrics_of
from diffusion_jax.run.job import prepare
from tests.runs import digits


def plain(*levels, size=4):
    """Images of one grey each."""
    return np.broadcast_to(np.float32(levels)[:, None, None, None], (len(levels), size, size, 3))


TRAIN = {
    "x": plain(-1, -0.5, 0, 0.5, 1),
    "tokens": tokens_of(["black", "dark", "dark", "light", "white"], 8),
    "label": np.array([0, 0, 1, 1, 1]),
}


def test_figures_of_known_neighbours():
    """Right, the other image of the same name, the right class alone, an unknown name with a class from elsewhere."""
    samples = plain(-0.9, -0.4, 0.9, 0.6)
    prompts = tokens_of(["black", "dark", "light", "shiny"], 8)
    test = {"x": plain(-0.9, 0.9), "tokens": tokens_of(["shiny", "white"], 8), "label": np.array([0, 1])}
    figures = retrieval(samples, prompts, TRAIN, test=test)
    assert figures["retrieval_caption_num"] == 3 and figures["retrieval_caption"] == pytest.approx(2 / 3)
    assert figures["retrieval_caption_chance"] == pytest.approx((1 / 5 + 2 / 5 + 1 / 5) / 3)
    # black: 0, dark: 0 (the first of its two), light: 1, shiny: 0, whose neighbour is of class 1.
    assert figures["retrieval_class_num"] == 4 and figures["retrieval_class"] == pytest.approx(3 / 4)
    assert figures["retrieval_class_chance"] == pytest.approx((3 * 2 / 5 + 3 / 5) / 4)
    assert figures["retrieval_class_balanced"] == pytest.approx((2 / 3 + 1) / 2)
    assert figures["retrieval_class_balanced_chance"] == pytest.approx(1 / 2)
    assert figures["retrieval_caption_real"] == figures["retrieval_class_real"] == 1
    assert figures["retrieval_caption_num_real"] == 1 and figures["retrieval_class_num_real"] == 2


def test_without_classes_and_without_a_known_prompt():
    train = {name: TRAIN[name] for name in ("x", "tokens")}
    assert retrieval(plain(1), tokens_of(["grey"], 8), train) == {"retrieval_caption_num": 0}
    figures = retrieval(plain(1), tokens_of(["white"], 8), train)
    assert figures == {"retrieval_caption": 1, "retrieval_caption_chance": 1 / 5, "retrieval_caption_num": 1}
    with pytest.raises(ValueError, match="as many samples as prompts, got 2 and 1"):
        retrieval(plain(1, 1), tokens_of(["white"], 8), train)
    with pytest.raises(ValueError, match="must be finite"):
        retrieval(plain(np.nan), tokens_of(["white"], 8), train)


def test_noise_is_at_chance():
    """Neighbours that have nothing to do with the prompts hit with the probability that is called chance."""
    random = np.random.default_rng(0)
    x = random.uniform(-1, 1, (4400, 4, 4, 1)).astype(np.float32)
    labels = random.choice(3, 4400, p=[0.6, 0.3, 0.1])
    tokens = labels[:, None] + 1
    train = {"x": x[:400], "tokens": tokens[:400], "label": labels[:400]}
    figures = retrieval(x[400:], tokens[400:], train)
    for name in ("caption", "class", "class_balanced"):
        assert figures[f"retrieval_{name}"] == pytest.approx(figures[f"retrieval_{name}_chance"], abs=0.03), name


def test_images_are_compared_in_blocks():
    """Sixteen per side remain, and what is left over at the right and below is of no account."""
    x = np.random.default_rng(0).uniform(-1, 1, (2, 33, 37, 3)).astype(np.float32)
    found = blocks(x)
    assert found.shape == (2, 16, 18, 3)
    np.testing.assert_allclose(found[1, 3, 5], x[1, 6:8, 10:12].mean((0, 1)), rtol=1e-5)
    np.testing.assert_array_equal(blocks(x[:, :31, :31]), x[:, :31, :31])


def test_of_a_config():
    words = tuple(f"the {i}" for i in range(10))
    config = digits()
    config.network = ConfigDict(dict(name="dit", patch_size=4, hidden_size=8, depth=1, num_heads=1, token_dim=16))
    config.network.update(vocabulary=257, max_tokens=8)
    config.data.captions = words
    config.evaluation.metrics = ("retrieval",)
    job = prepare(config)
    (metric,) = metrics_of(job, None, job.held_out)
    held_out = job.held_out.batch(np.arange(40))
    drawn = {"samples": held_out["x"], "tokens": held_out["tokens"]}
    figures = metric(drawn)
    assert figures["retrieval_caption"] == figures["retrieval_class"] > 0.9
    assert figures["retrieval_caption_real"] > 0.9 > 0.2 > figures["retrieval_caption_chance"]
    config = digits()
    config.evaluation.metrics = ("retrieval",)
    with pytest.raises(ConfigError, match=r"config\.evaluation\.metrics='retrieval'.*captions"):
        metrics_of(prepare(config), None)
