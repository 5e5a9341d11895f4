"""First stages: the parts of the loss and whom they reach, statistics of latents, training, and what is refused."""

import dataclasses
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from diffusion_jax import systems
from diffusion_jax.config import build
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.losses import first_stage
from diffusion_jax.systems import bottlenecks
from diffusion_jax.systems.autoencoder import Adversary, Perceptual
from diffusion_jax.training.step import init_state, make_train_step
from diffusion_jax.types import System, Train
from tests.runs import ROOT, digits, with_devices

CHANNELS = 4
TRAIN = Train(step=jnp.int32(5), num_steps=10)


def linear_autoencoder(**changes) -> systems.Autoencoder:
    """Images [4, 4, 1] as latents [2, 2, 4]: 2 x 2 pixels become channels, between matrices."""

    def encode(params, x):
        b = x.shape[0]
        blocks = x.reshape(b, 2, 2, 2, 2, 1).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2, 2, CHANNELS)
        return blocks @ params["encoder"]["kernel"]

    def decode(params, z):
        b = z.shape[0]
        blocks = (z @ params["decoder"]["conv_out"]["kernel"]).reshape(b, 2, 2, 2, 2, 1)
        return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(b, 4, 4, 1)

    def init_network(key):
        kernel = jnp.eye(CHANNELS) + 0.1 * jax.random.normal(key, (CHANNELS, CHANNELS))
        moments = jnp.concatenate([kernel, 0.1 * kernel], axis=1)
        return {"encoder": {"kernel": moments}, "decoder": {"conv_out": {"kernel": kernel.T}}}

    def discriminate(params, x):
        return (jnp.tanh(x) * params["w"]).sum((1, 2, 3), keepdims=True)

    made = systems.Autoencoder(
        init_network=init_network,
        encode=encode,
        decode=decode,
        bottleneck=bottlenecks.Gaussian(kl_weight=0.1, size=16),
        reconstruction=first_stage.reconstruction("l2"),
        perceptual=None,
        adversary=Adversary(
            init=lambda key: {"w": jax.random.normal(key, (4, 4, 1))},
            discriminate=discriminate,
            loss=first_stage.hinge,
            start=5,
        ),
        shape=(4, 4, 1),
        latent_shape=(2, 2, CHANNELS),
    )
    return dataclasses.replace(made, **changes)


def images(n=8, seed=0):
    return {"x": jnp.float32(np.random.default_rng(seed).uniform(-1, 1, (n, 4, 4, 1)))}


def grad_of_last(system, params, loss):
    """The gradient of loss(x_hat) for the decoder's last kernel, through the whole network."""

    def whole(kernel):
        network = {**params["network"], "decoder": {"conv_out": {"kernel": kernel}}}
        h = system.encode(network, images()["x"])
        z = system.bottleneck(network, {}, jax.random.key(1), h)[0]
        return loss(system.decode(network, z)).mean()

    return jax.grad(whole)(params["network"]["decoder"]["conv_out"]["kernel"])


def test_every_part_reaches_its_own_group_and_the_weight_is_the_ratio_of_two_gradients():
    system = linear_autoencoder()
    assert isinstance(system, System)
    params, batch, key = system.init(jax.random.key(0)), images(), jax.random.key(1)
    x, w, discriminate = batch["x"], params["discriminator"], system.adversary.discriminate

    rec = grad_of_last(system, params, lambda y: system.reconstruction(x, y))
    deceive = grad_of_last(system, params, lambda y: first_stage.generator_loss(discriminate(w, y)))
    expected = optax.global_norm(rec) / (optax.global_norm(deceive) + 1e-4)
    loss, metrics = system.loss(params, key, batch, TRAIN)
    assert metrics["adaptive_weight"] == pytest.approx(float(expected), rel=1e-4)

    grads = jax.grad(lambda p: system.loss(p, key, batch, TRAIN)[0].mean(), allow_int=True)(params)

    def generator(network):
        h = system.encode(network, x)
        z, penalty, *_ = system.bottleneck(network, {}, key, h)
        y = system.decode(network, z)
        return (
            system.reconstruction(x, y) + penalty + expected * first_stage.generator_loss(discriminate(w, y))
        ).mean()

    for a, b in zip(
        jax.tree.leaves(grads["network"]), jax.tree.leaves(jax.grad(generator)(params["network"])), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    y = system.decode(
        params["network"], system.bottleneck(params["network"], {}, key, system.encode(params["network"], x))[0]
    )
    own = jax.grad(lambda w: first_stage.hinge(discriminate(w, x), discriminate(w, y)).mean())(w)
    np.testing.assert_allclose(grads["discriminator"]["w"], own["w"], rtol=1e-4, atol=1e-6)
    parts = metrics["reconstruction"] + metrics["penalty"] + metrics["discriminator_loss"]
    np.testing.assert_allclose(loss, parts + expected * metrics["generator_loss"], rtol=1e-4)


def test_the_discriminator_waits_for_its_start():
    system = linear_autoencoder()
    params = system.init(jax.random.key(0))
    early = Train(step=jnp.int32(4), num_steps=10)
    loss, metrics = system.loss(params, jax.random.key(1), images(), early)
    np.testing.assert_allclose(loss, metrics["reconstruction"] + metrics["penalty"], rtol=1e-6)
    grads = jax.grad(lambda p: system.loss(p, jax.random.key(1), images(), early)[0].mean())(params)
    np.testing.assert_array_equal(grads["discriminator"]["w"], 0)


def test_latents_are_standardised_by_what_was_seen():
    """With statistics of 50 batches, latents of the same batches have mean 0 and variance 1 in every channel."""
    system = linear_autoencoder(adversary=None)
    params = system.init(jax.random.key(0))
    x = [1.0 + images(seed=i)["x"] * jnp.array([0.2, 1.0]).repeat(2)[None, None, :, None] for i in range(50)]

    @jax.jit
    def follow(params, i, x):
        _, metrics = system.loss(params, jax.random.key(i), {"x": x}, Train(step=i, num_steps=50))
        return system.advance(params, Train(step=i, num_steps=50), metrics)

    for i, batch in enumerate(x):
        params = follow(params, jnp.int32(i), batch)
    h = jnp.concatenate([system.encode(params["network"], batch) for batch in x])
    z = system.latents(params, jax.random.split(jax.random.key(0), len(h)), h)
    np.testing.assert_allclose(z.mean((0, 1, 2)), 0, atol=0.1)
    np.testing.assert_allclose(z.std((0, 1, 2)), 1, atol=0.05)
    still = system.latents(params, None, h[:8])
    np.testing.assert_allclose(system.decode_latents(params, still), system.reconstruct(params, x[0]), atol=1e-5)
    fixed = linear_autoencoder(latent_scale=0.5)
    np.testing.assert_allclose(fixed.latents(params, None, h[:8]), 0.5 * h[:8, ..., :CHANNELS], rtol=1e-6)
    raw = linear_autoencoder(normalize="none").latents(params, jax.random.split(jax.random.key(0), len(h)), h)
    one = linear_autoencoder(normalize="scale").latents(params, jax.random.split(jax.random.key(0), len(h)), h)
    np.testing.assert_allclose(
        raw, linear_autoencoder().bottleneck.latent(jax.random.split(jax.random.key(0), len(h)), h)
    )
    np.testing.assert_allclose(one * raw.std(), raw, rtol=0.05, atol=1e-6)
    with pytest.raises(ValueError, match=r"normalize .*'std'"):
        linear_autoencoder(normalize="std")


def test_samples_are_reconstructions_of_given_images_or_draws_from_the_prior():
    system = linear_autoencoder(batch_size=4)
    params, x = system.init(jax.random.key(0)), np.asarray(images(6)["x"])
    drawn = system.sample(params, jax.random.key(0), 6, {"x": x})
    np.testing.assert_array_equal(drawn["original"], x)
    np.testing.assert_allclose(drawn["samples"], system.reconstruct(params, jnp.asarray(x)), atol=1e-6)
    few, many = (system.sample(params, jax.random.key(0), n)["samples"] for n in (3, 6))
    np.testing.assert_allclose(few, many[:3], atol=1e-6)
    figures = system.evaluate(params, jax.random.key(0), {"x": jnp.asarray(x)})
    assert {"loss", "reconstruction", "kl", "psnr", "ssim"} <= figures.keys()
    assert all(value.shape == (6,) for value in figures.values())


def vq_config(**changes):
    """A tiny VQGAN of the digits."""
    made = digits(**changes)
    made.loss = ConfigDict(dict(name="l1"))
    made.network = ConfigDict(
        dict(
            name="vq_model",
            block_out_channels=(4, 8),
            layers_per_block=1,
            latent_channels=2,
            num_vq_embeddings=8,
            norm_num_groups=2,
            mid_block_add_attention=False,
        )
    )
    discriminator = dict(name="patchgan", channels=4, n_layers=1, num_groups=2, start=2)
    made.system = ConfigDict(
        dict(name="vqgan", decay=0.9, perceptual=dict(name="laplacian"), discriminator=discriminator)
    )
    return made


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_one_step_trains_both_networks_and_the_codebook_follows(accumulate):
    config = vq_config()
    config.optimizer.groups = ConfigDict(dict(discriminator=dict(learning_rate=1e-3)))
    built = build.build(config)
    system, (optimizer, _) = built.system, built.parts.optimizer()
    state = jax.jit(lambda key: init_state(system, optimizer, (0.9,), key))(jax.random.key(0))
    step = jax.jit(make_train_step(system, optimizer, num_steps=4, ema_rates=(0.9,), accumulate=accumulate))
    x = {"x": jnp.float32(np.random.default_rng(0).uniform(-1, 1, (8, 8, 8, 1)))}
    before, states = state.params, []
    for _ in range(3):
        state, metrics = step(state, x)
        states.append(state.params)
    assert {"reconstruction", "perplexity", "usage", "commitment", "adaptive_weight", "loss"} <= metrics.keys()
    assert "statistics" not in metrics
    assert all(np.isfinite(value).all() and np.shape(value) == () for value in metrics.values())
    # The discriminator moves from step 2 on.
    first = before["discriminator"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(states[1]["discriminator"]["conv_in"]["kernel"], first)
    assert not np.array_equal(states[2]["discriminator"]["conv_in"]["kernel"], first)
    size = states[2]["frozen"]["bottleneck"]["size"]
    assert (size > 0).all() and metrics["usage"] > 0
    codes = [params["network"]["quantize"]["embedding"]["embedding"] for params in (before, states[2])]
    assert not np.array_equal(*codes)
    assert "frozen" not in state.ema["0.9"]


def test_a_perceptual_loss_has_no_negative_weight():
    with pytest.raises(ValueError, match=r"weight=-1\.0 must be at least 0"):
        Perceptual(init=dict, distance=lambda params, x, y: x, weight=-1.0)


def test_refuses_what_does_not_fit():
    def refused(match, **changes):
        config = vq_config()
        with config.unlocked():
            config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
        with pytest.raises(ConfigError, match=match):
            build.system(config)

    refused(r"config\.network\.name='unet' must be 'vq_model'", network__name="unet")
    refused(r"image_size=9 must be a multiple of 2", data__image_size=9)
    refused(r"config\.network.*\(8, 8, 3\).*\(8, 8, 1\)", network__out_channels=3)
    refused(r"config\.loss=.*must be dict\(name=\.\.\.\) with one of l1, l2", loss__name="denoising")
    refused(r"config\.system\.decay=2\.0|decay=2\.0", system__decay=2.0)
    refused(r"system\.kl_weight=1\.0: vqgan takes no 'kl_weight'", system__kl_weight=1.0)
    refused(r"n_layers=3.*\(8, 8, 1\)", system__discriminator__n_layers=3)
    refused(r"loss='wasserstein' is unknown; choose one of hinge, vanilla", system__discriminator__loss="wasserstein")
    refused(r"sides of at least 16 pixels", system__perceptual__name="lpips")
    refused(r"attention_levels=\(2,\) must be among the levels 0\.\.1", network__attention_levels=(2,))


SHARDED = """
    import dataclasses, jax, jax.numpy as jnp, numpy as np, optax
    from jax.sharding import NamedSharding, PartitionSpec
    from diffusion_jax.systems import bottlenecks
    from diffusion_jax.training import mesh as meshes
    from diffusion_jax.training.step import init_state, make_train_step
    from tests.systems.test_autoencoder import images, linear_autoencoder

    made = linear_autoencoder()
    table = {"quantize": {"embedding": {"embedding": jax.random.normal(jax.random.key(2), (8, 8))}}}
    system = dataclasses.replace(
        made,
        init_network=lambda key: {**made.init_network(key), **table},
        decode=lambda params, z: made.decode(params, z[..., :4]),
        bottleneck=bottlenecks.Codebook(decay=0.5),
        latent_shape=(2, 2, 8),
    )
    optimizer = optax.adam(1e-2)
    step = make_train_step(system, optimizer, num_steps=9, ema_rates=(0.9,))
    batches = [images(16, seed) for seed in range(8)]

    def run(mesh):
        state = jax.jit(lambda key: init_state(system, optimizer, (0.9,), key))(jax.random.key(0))
        state = jax.device_put(state, meshes.state_sharding(mesh, state))
        jitted, losses = jax.jit(step), []
        for batch in batches:
            state, metrics = jitted(state, jax.device_put(batch, meshes.batch_sharding(mesh)))
            losses.append(float(metrics["loss"]))
        return losses, jax.device_get((state.params, state.ema))

    one = run(jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor")))
    for sizes in (dict(), dict(fsdp=4)):
        many = run(meshes.make_mesh(**sizes))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
"""


@pytest.mark.slow
def test_eight_devices_train_as_one():
    """Loss curve, both networks, codebook and statistics, with the discriminator from step 5 on."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SHARDED)],
        env=with_devices(8),
        cwd=ROOT,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()
