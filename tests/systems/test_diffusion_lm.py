"""Diffusion-LM: rounding and the bound against closed forms, the clamping trick, and the command."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config import build
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.losses import rounding
from diffusion_jax.networks.functional import count_parameters
from diffusion_jax.processes import EDM, bcast
from diffusion_jax.run import evaluate, sample, train
from tests.config.test_configs import read
from tests.systems.test_discrete_diffusion import TEXT

TABLE = jnp.array([[1.5, -0.5], [-1.0, 1.0], [0.5, 2.0]])
PRIOR = jnp.array([0.6, 0.3, 0.1])


def tiny(**sections):
    config = read("diffusion_lm:python")
    config.data.length = 12
    config.system.update(embedding_size=8, num_times=4, first=0.05)
    config.process.num_steps = config.times.num_steps = config.sampling.steps = 20
    config.network.update(hidden_size=16, depth=1, num_heads=2, cond_dim=8)
    config.training.update(num_steps=4, batch_size=8, log_every=1, checkpoint_every=4, sample_every=0)
    config.sampling.update(num_samples=4, batch_size=4)
    config.evaluation.update(num_samples=8, after_training=False)
    for key, value in sections.items():
        config[key].update(value)
    return config


def posterior_bias(sigma):
    return jnp.log(PRIOR) - jnp.sum(TABLE**2, -1) / (2 * sigma**2)


def exact(process):
    """D(x_t, t) = E[e_w | x_t] of one token with the law PRIOR."""

    def D(x, t, cond=None):
        alpha, sigma = (bcast(jnp.broadcast_to(f(t), x.shape[:1]), x) for f in (process.alpha, process.sigma))
        distance = jnp.sum((x[..., None, :] - alpha[..., None] * TABLE) ** 2, -1)
        return jax.nn.softmax(jnp.log(PRIOR) - distance / (2 * sigma**2)) @ TABLE

    return D


def test_rounding_is_the_posterior_of_gaussian_embeddings():
    x = jnp.array([[[0.3, 0.1], [-0.7, 1.2]]])
    found = rounding.log_rounding(TABLE, posterior_bias(1.0), x)
    density = np.exp(-0.5 * ((np.asarray(x)[..., None, :] - np.asarray(TABLE)) ** 2).sum(-1)) * np.asarray(PRIOR)
    np.testing.assert_allclose(jnp.exp(found), density / density.sum(-1, keepdims=True), rtol=1e-5)
    nats = rounding.rounding_nats(TABLE, posterior_bias(1.0), x, jnp.array([[2, 0]]))
    np.testing.assert_allclose(nats[0], [-found[0, 0, 2], -found[0, 1, 0]], rtol=1e-6)
    np.testing.assert_array_equal(rounding.nearest(TABLE, x), TABLE[jnp.array([[0, 1]])])


def enumerated(bias, D=None):
    """The bound of each of three tokens and its standard error, with the noise of `first` 1."""
    process, system = EDM(), build.system(tiny())
    first = 1 / process.sigma_max
    diffusion = dataclasses.replace(system.diffusion, process=process, shape=(1, 2))
    spec = system.spec._replace(shape=(1,), values=3)
    system = dataclasses.replace(system, diffusion=diffusion, spec=spec, first=first, num_times=1)
    params = {"embedding": {"table": TABLE, "bias": bias}}
    tokens = jnp.tile(jnp.arange(3)[:, None], (20_000, 1))
    nats = np.asarray(system.bound(params, D or exact(process), jax.random.key(0), tokens)).reshape(-1, 3)
    return nats.mean(0), nats.std(0) / np.sqrt(len(nats))


def test_the_bound_of_the_exact_model_is_the_code_length_of_each_token():
    mean, error = enumerated(posterior_bias(1.0))
    assert error.max() < 0.02
    np.testing.assert_array_less(np.abs(mean + np.log(PRIOR)), 4 * error)


@pytest.mark.parametrize("wrong", ["rounding", "denoiser"])
def test_the_bound_of_another_model_is_larger(wrong):
    """In the mean over tokens: the rounding without its prior, or a D that always says the mean embedding."""
    bias = jnp.zeros(3) if wrong == "rounding" else posterior_bias(1.0)
    D = None if wrong == "rounding" else lambda x, t, cond=None: jnp.broadcast_to(PRIOR @ TABLE, x.shape)
    mean, error = enumerated(bias, D)
    entropy = -float(jnp.sum(PRIOR * jnp.log(PRIOR)))
    assert float(PRIOR @ mean) - entropy > 0.02 + 4 * float(error.max())


def test_the_loss_is_the_sum_of_its_terms_and_reaches_the_embeddings():
    system = build.system(tiny())
    params = system.init(jax.random.key(0))
    batch = {"x": jnp.arange(24).reshape(2, 12)}

    @jax.jit
    def gradients(params):
        of = lambda name: lambda p: system.loss(p, jax.random.key(1), batch, None)[1][name].sum()
        return {name: jax.grad(of(name))(params)["embedding"]["table"] for name in ("denoising", "rounding", "prior")}

    loss, parts = jax.jit(lambda p: system.loss(p, jax.random.key(1), batch, None))(params)
    assert loss.shape == (2,) and set(parts) == {"denoising", "rounding", "prior"}
    np.testing.assert_allclose(loss, sum(parts.values()), rtol=1e-6)
    table, alpha = params["embedding"]["table"], system.diffusion.process.alpha(jnp.float32(1))
    np.testing.assert_allclose(parts["prior"], jnp.mean((alpha * table[batch["x"]]) ** 2, (1, 2)), rtol=1e-5)
    for gradient in gradients(params).values():
        assert float(jnp.abs(gradient[:24]).max()) > 0


def test_clamped_denoisers_give_embeddings_and_samples_are_tokens():
    system = build.system(tiny())
    params, x = system.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (2, 12, 8))
    found = system.denoiser(params)(x, jnp.float32(0.5)).reshape(-1, 1, 8)
    assert float(jnp.abs(found - params["embedding"]["table"]).sum(-1).min(1).max()) == 0
    free = dataclasses.replace(system, clamp=False).denoiser(params)(x, jnp.float32(0.5)).reshape(-1, 1, 8)
    assert float(jnp.abs(free - params["embedding"]["table"]).sum(-1).min(1).max()) > 0.1
    draw = jax.jit(system.draw)
    samples = draw(params, jax.random.key(2), jnp.arange(4), None, {})["samples"]
    assert samples.shape == (4, 12) and samples.dtype == jnp.int32
    few = draw(params, jax.random.key(2), jnp.arange(2, 4), None, {})["samples"]
    np.testing.assert_array_equal(samples[2:], few)


@pytest.mark.slow
def test_a_short_training_learns_a_sentence(tmp_path):
    """A period of 24 characters costs 0.38 bits per character, its letters alone 3.1, all 96 characters 6.6."""
    (tmp_path / "a.txt").write_text(TEXT)
    config = tiny(training=dict(num_steps=2000, batch_size=32, log_every=100, checkpoint_every=2000))
    config.data.path = str(tmp_path / "a.txt")
    config.network.update(hidden_size=32, depth=2)
    config.optimizer.update(learning_rate=5e-3, warmup_steps=20)
    config.system.num_times = 16
    config.evaluation.num_samples = 32
    train.train(config, tmp_path / "run")
    evaluate.evaluate(config, tmp_path / "run")
    values = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert np.log2(24) / 12 - 0.15 < values["held_out_bits_per_token"] < 2
    sample.sample(config, tmp_path / "run")
    written = (tmp_path / "run" / "samples" / "samples.txt").read_text()
    assert written.startswith("=== 0\n") and np.load(tmp_path / "run" / "samples" / "samples.npz")["samples"].max() < 96


def test_refused_configs():
    config = tiny()
    config.data = read("ddpm").data
    with pytest.raises(ConfigError, match=r"must be tokens.*choose 'text'"):
        build.build(config)
    with pytest.raises(ConfigError, match=r"config\.system.*first"):
        build.build(tiny(system=dict(first=1.5)))
    with pytest.raises(ConfigError, match=r"embedding_size=0"):
        build.build(tiny(system=dict(embedding_size=0)))
    for field, name in (("guidance", "classifier_free"), ("editing", "sdedit")):
        with pytest.raises(ConfigError, match=rf"config\.{field}\.name='{name}' must be 'none'"):
            build.build(tiny(**{field: dict(name=name)}))
    config = tiny()
    config.evaluation.likelihood.name = "ode"
    with pytest.raises(ConfigError, match=r"likelihood\.name='ode' must be 'none'"):
        build.build(config)


def test_the_published_sizes():
    """12 blocks of 12 d^2 + 6 (128 + 1) d + 5 d weights and the layers around them, summed by hand."""
    d, c = 768, 128
    for name, width in (("e2e", 16), ("rocstories", 128)):
        config = read(f"diffusion_lm:{name}")
        system = build.system(config)
        shapes = jax.eval_shape(system.init, jax.random.key(0))
        block = 12 * d * d + 4 * d + d + 6 * d * (c + 1)
        rest = (width + 1) * d + width * (d + 1) + 2 * d * (c + 1) + 256 * c + c + c * c + c
        assert count_parameters(shapes["network"]) == 12 * block + rest
        assert shapes["embedding"]["table"].shape == (config.data.vocabulary, width)
