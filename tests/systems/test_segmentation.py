"""Diffusion of masks whose posterior is known: independent pixels, and masks of two modes; pixels from features."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config import build, defaults, from_file, replace
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.evaluation.segmentation import segmentation
from diffusion_jax.processes import Cosine, prior
from diffusion_jax.run import sample, train
from diffusion_jax.solvers import ancestral, ddim, sampling
from diffusion_jax.systems.pixel_classifier import PixelClassifier, denoiser_features, patch_features
from tests.networks import random_params

PROCESS = Cosine()
TIMES = jnp.linspace(1.0, 0.0, 65)


def independent(f):
    """E[x_0 | x_t] of pixels that are 1 with probability f and -1 otherwise."""

    def D(x, t):
        alpha, sigma = PROCESS.alpha(t), PROCESS.sigma(t)
        return jnp.tanh(alpha * x / jnp.maximum(sigma, 1e-4) ** 2 + jnp.arctanh(2 * f - 1))

    return D


def drawn(D, shape, num, solver, seed):
    ids = jnp.arange(num)
    x_T = prior(PROCESS, jax.random.key(seed), (num, *shape), ids=ids, t=TIMES[0])
    return jax.jit(lambda x: sampling.sample(solver, PROCESS, D, jax.random.key(seed + 1), x, TIMES, ids=ids))(x_T)


@pytest.mark.parametrize("solver", [ancestral(), ddim()], ids=["ancestral", "ddim"])
def test_draws_of_independent_pixels_have_their_probabilities(solver):
    """Bayes' segmentation of two classes of Gaussian intensities: the mean of k draws is f with sqrt(f (1 - f) / k)."""
    intensity = jax.random.normal(jax.random.key(0), (8, 8, 1)) + 0.5
    f = jax.nn.sigmoid(2 * intensity * 0.8)  # means -0.8 and 0.8, unit variances
    D, k = independent(f), 256
    np.testing.assert_allclose(D(jnp.ones((8, 8, 1)), 1.0), 2 * f - 1, atol=1e-5)  # one step is the posterior mean
    x = drawn(D, (8, 8, 1), k, solver, 1)
    assert np.mean(np.abs(np.abs(x) - 1) < 0.05) > 0.99
    z = ((x > 0).mean(0) - f) / jnp.sqrt(f * (1 - f) / k)
    assert np.abs(z).max() < 4.5 and 0.7 < float(jnp.std(z)) < 1.3
    truth = jnp.where(jax.random.uniform(jax.random.key(5), (64, 8, 8, 1)) < f, 1, -1)
    assert segmentation(x, truth)["segmentation_calibration"] == pytest.approx(1, abs=0.1)
    sure = drawn(independent(jax.nn.sigmoid(8 * intensity)), (8, 8, 1), 256, solver, 3)
    assert segmentation(sure, truth)["segmentation_calibration"] > 1.3


def test_masks_of_two_modes_keep_both_and_their_mean_is_neither():
    one = jnp.where(jnp.arange(16).reshape(4, 4, 1) % 4 < 2, 1.0, -1.0)
    weight = 0.3

    def D(x, t):
        alpha, sigma = PROCESS.alpha(t), PROCESS.sigma(t)
        evidence = alpha * jnp.sum(x * one, (1, 2, 3), keepdims=True) / jnp.maximum(sigma, 1e-4) ** 2
        return one * jnp.tanh(evidence + math.atanh(2 * weight - 1))

    x = np.asarray(drawn(D, (4, 4, 1), 400, ancestral(), 0))
    agreement = (x * np.asarray(one)).mean((1, 2, 3))
    assert np.all(np.abs(np.abs(agreement) - 1) < 0.05)  # every draw is one of the two, as a whole
    assert np.mean(agreement > 0) == pytest.approx(weight, abs=4 * math.sqrt(weight * (1 - weight) / 400))
    np.testing.assert_allclose(D(jnp.zeros((1, 4, 4, 1)), 1.0)[0], (2 * weight - 1) * one, atol=1e-6)  # regression


def constant(logits):
    """A pixel classifier on 5 x 4 images whose members have these logits [members, classes] everywhere."""
    spread = jnp.asarray(logits, jnp.float32)[:, None, None, None]
    return PixelClassifier(
        init_members=lambda key: {},
        logits=lambda params, h: jnp.broadcast_to(spread, (len(spread), *h.shape[:3], spread.shape[-1])),
        features=patch_features(3),
        init_frozen=lambda key: {},
        shape=(5, 4, 1),
        image_shape=(5, 4, 3),
        pixels=7,
    )


IMAGE = jax.random.normal(jax.random.key(0), (2, 5, 4, 3))
PARAMS = {"network": {}, "frozen": {}}


def test_the_uncertainty_is_the_divergence_of_the_members():
    agree, split = constant([[0.0, 1.0]] * 3), constant([[-40.0, 40.0], [40.0, -40.0]])
    p, uncertainty = agree.probabilities(PARAMS, IMAGE)
    np.testing.assert_allclose(p[..., 1], jax.nn.sigmoid(1.0), rtol=1e-6)
    np.testing.assert_allclose(uncertainty, 0, atol=1e-6)
    p, uncertainty = split.probabilities(PARAMS, IMAGE)
    np.testing.assert_allclose(p, 0.5)
    np.testing.assert_allclose(uncertainty, math.log(2), rtol=1e-6)


def test_the_majority_is_another_vote_than_the_mean():
    mean = constant([[0.0, 0.5], [0.0, 0.5], [8.0, 0.0]])
    majority = dataclasses.replace(mean, vote="majority")
    drawn = [m.draw(PARAMS, jax.random.key(0), jnp.arange(2), {"image": IMAGE})["samples"] for m in (mean, majority)]
    assert np.all(drawn[0] < 0)
    np.testing.assert_allclose(drawn[1], 2 * 2 / 3 - 1, rtol=1e-6)
    with pytest.raises(ValueError, match="vote is 'median'; choose mean or majority"):
        dataclasses.replace(mean, vote="median")
    with pytest.raises(ValueError, match="pixels is 21; it must be at least 0 and at most the 20 pixels of an image"):
        dataclasses.replace(mean, pixels=21)


def test_the_loss_is_the_cross_entropy_of_labelled_pixels():
    system = constant([[0.0, 1.0]])
    mask = jnp.where(jnp.arange(20).reshape(1, 5, 4, 1) < 6, 1.0, -1.0)
    batch = {"x": mask, "image": IMAGE[:1]}
    inside, outside = -math.log(jax.nn.sigmoid(1.0)), -math.log(jax.nn.sigmoid(-1.0))
    loss = lambda system: float(system.loss(PARAMS, jax.random.key(0), batch, None)[0][0])
    assert loss(system) == pytest.approx((6 * inside + 14 * outside) / 20, rel=1e-5)
    assert loss(dataclasses.replace(system, min_pixels=7)) == pytest.approx(outside, rel=1e-5)
    chosen = system._chosen(jax.random.key(1), (3, 2, 20))
    np.testing.assert_array_equal(chosen.sum(-1), 7)
    assert not np.array_equal(chosen[0], chosen[1])  # members see other pixels


def test_patches_are_the_pixels_around_each_pixel():
    h = np.asarray(patch_features(3)(PARAMS, IMAGE)).reshape(2, 5, 4, 3, 3, 3)
    np.testing.assert_allclose(h[:, 2, 1].transpose(0, 2, 3, 1), IMAGE[:, 1:4, :3], rtol=1e-6)
    np.testing.assert_array_equal(h[:, 0, :, :, 0], 0)  # nothing above the first row


@pytest.fixture(scope="module")
def denoiser():
    """A diffusion model of pictures at 8 x 8 pixels with the network of `pixel_classifier:composites_denoiser`."""
    config = from_file("configs/pixel_classifier.py:composites_denoiser")
    replace(config, data=dict(image_size=8))
    replace(config, network=dict(model_channels=8, channel_mult=(1, 2), attention_resolutions=(4,)))
    config.network.num_head_channels = config.network.num_groups = 4
    system = build.system(config)
    return system, random_params(system.init)


def test_features_are_those_of_the_image_and_of_nothing_else(denoiser):
    system, params = denoiser
    frozen = {"frozen": {"denoiser": params["network"]}}
    x = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))
    features = jax.jit(denoiser_features(system, (0.1, 0.5), (0, 3)))
    h = features(frozen, x)
    assert h.shape == (3, 8, 8, 2 * (16 + 8))
    np.testing.assert_allclose(features(frozen, x[::-1])[::-1], h, atol=1e-5)
    nothing = jax.jit(denoiser_features(system, (1.0,), (0, 3)))(frozen, x)  # alpha(1) = 0
    np.testing.assert_allclose(nothing, jnp.broadcast_to(nothing[:1], nothing.shape), atol=1e-4)
    assert np.abs(h - h[:1]).max() > 1e-2


def test_the_last_features_give_the_output_of_the_network(denoiser):
    """The normalisation and the convolution after the decoder path, written out."""
    system, params = denoiser
    x, t = jax.random.normal(jax.random.key(1), (2, 8, 8, 3)), jnp.float32(0.3)
    last = system.features(params, x, t)[-1]
    norm, conv = (params["network"]["out"][i] for i in ("0", "2"))
    groups = last.reshape(2, -1, 4, 2)
    h = (groups - groups.mean((1, 3), keepdims=True)) / jnp.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)
    h = jax.nn.silu(h.reshape(last.shape) * norm["scale"] + norm["bias"])
    out = jax.lax.conv_general_dilated(h, conv["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    c = system.param(PROCESS, jnp.full(2, t))
    expected = c.c_skip[0] * x + c.c_out[0] * (out + conv["bias"])
    np.testing.assert_allclose(system.denoiser(params)(x, t), np.clip(expected, -1, 1), atol=2e-3)  # thresholded


def patches(**system):
    config = from_file("configs/pixel_classifier.py:composites_patches")
    for key, value in system.items():
        config.system[key] = value
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(patch=4), r"config\.system\.patch=4 must be an odd number of pixels"),
        (dict(patch=0), "exactly one of them says what features are"),
        (dict(members=0), r"config\.system\.members=0 must be at least 1"),
        (dict(hidden=()), r"config\.system\.hidden=\(\) must hold the widths"),
        (dict(vote="median"), "vote"),
        (dict(denoiser="nowhere", patch=0), r"config\.system\.denoiser='nowhere' must be the work directory"),
    ],
)
def test_impossible_classifiers_are_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        build.system(patches(**changes))


def test_data_without_masks_is_refused():
    config = patches()
    config.data = defaults().data
    with pytest.raises(ConfigError, match=r"learns masks, and config\.data\.name='digits' holds image"):
        build.system(config)


def tiny(name, **sections):
    """A config of configs/ on 8 x 8 composites, with the smallest network and two steps."""
    config = from_file(f"configs/{name}")
    replace(
        config,
        data=dict(image_size=8),
        training=dict(num_steps=2, batch_size=4, log_every=1, checkpoint_every=2),
        sampling=dict(num_samples=4, steps=2),
    )
    if config.network.name == "adm":
        replace(config, network=dict(model_channels=8, channel_mult=(1,), attention_resolutions=(8,)))
        config.network.num_head_channels = config.network.num_groups = 4
    return replace(config, **sections)


@pytest.mark.slow
def test_the_command_segments_by_both_systems(tmp_path):
    """Training, evaluation with several draws of each image, and samples with the uncertainty of pixels."""
    config = tiny("segdiff.py", evaluation=dict(num_samples=6, samples_per_condition=3))
    train.train(config, tmp_path / "segdiff")
    values = json.loads((tmp_path / "segdiff" / "evaluation.json").read_text())
    assert values["segmentation_num_images"] == 2 and values["segmentation_samples_per_image"] == 3
    assert 0 <= values["segmentation_iou"] <= values["segmentation_dice"] <= 1
    sample.sample(config, tmp_path / "segdiff")
    assert (tmp_path / "segdiff" / "samples" / "samples.png").exists()

    quiet = dict(metrics=(), after_training=False)
    train.train(tiny("pixel_classifier.py:composites_denoiser", evaluation=quiet), tmp_path / "denoiser")
    config = tiny("pixel_classifier.py", evaluation=dict(num_samples=4))
    config.system.update(denoiser=str(tmp_path / "denoiser"), blocks=(0, 1), pixels=16, members=2)
    train.train(config, tmp_path / "classifier")
    values = json.loads((tmp_path / "classifier" / "evaluation.json").read_text())
    assert {"segmentation_iou", "held_out_loss", "held_out_accuracy"} <= values.keys()
    sample.sample(config, tmp_path / "classifier")
    with np.load(tmp_path / "classifier" / "samples" / "samples.npz") as drawn:
        assert drawn["samples"].shape == (4, 8, 8, 1) and drawn["uncertainty"].shape == (4, 8, 8)
    config.system.blocks = (0, 7)
    with pytest.raises(
        ConfigError, match=r"config\.system\.blocks=\(0, 7\) must hold blocks of the decoder path, 0\.\.1"
    ):
        build.system(config)
