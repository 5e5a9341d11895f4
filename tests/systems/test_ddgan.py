"""Denoising diffusion GANs: the authors' tables, exact chains of a Gaussian, gradients, samples by their numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax.config import build, from_file
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.losses.adversarial import Penalty
from diffusion_jax.processes import discrete_vp
from diffusion_jax.solvers.base import posterior, transition
from diffusion_jax.types import System, Train
from tests.oracles import Gaussian
from tests.runs import ROOT, brief, changed, resumed

TARGET = Gaussian(mean=jnp.array([0.5, -1.0]), covariance=jnp.array([[0.5, 0.3], [0.3, 0.4]]))


def process_of(steps):
    return discrete_vp("vp", num_steps=steps)


def config_of(**changes):
    config = from_file(str(ROOT / "configs" / "ddgan.py"))
    config.network = ConfigDict(dict(name="mlp", hidden=8, num_layers=1, vector_dim=3))
    config.system.discriminator = ConfigDict(dict(name="mlp", hidden=8, num_layers=1))
    return brief(config, **changes)


@pytest.fixture(scope="module")
def system():
    return build.system(config_of())


def shaken(params):
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(3), x.shape), params)


def authors(steps):
    """betas, and the posterior's coefficients of x_0 and x_t and variance, as train_ddgan.py writes them."""
    t = np.arange(steps + 1, dtype=np.float64) / steps * (1 - 1e-3) + 1e-3
    log_mean_coefficient = -0.25 * t**2 * (20.0 - 0.1) - 0.5 * t * 0.1
    alpha_bars = 1 - (1 - np.exp(2 * log_mean_coefficient))
    betas = 1 - alpha_bars[1:] / alpha_bars[:-1]
    product = np.cumprod(1 - betas)
    before = np.append(1.0, product[:-1])
    of_x_0 = betas * np.sqrt(before) / (1 - product)
    of_x_t = (1 - before) * np.sqrt(1 - betas) / (1 - product)
    return betas, of_x_0, of_x_t, betas * (1 - before) / (1 - product)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_posterior_is_the_authors_table(steps):
    betas, of_x_0, of_x_t, variance = authors(steps)
    process, i = process_of(steps), jnp.arange(1, steps + 1, dtype=jnp.float32)
    t, s = i / steps, (i - 1) / steps
    a, b, v = posterior(process, t, s)
    np.testing.assert_allclose(a, of_x_t, rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(b, of_x_0, rtol=2e-5)
    np.testing.assert_allclose(v, variance, rtol=2e-5, atol=1e-7)
    alpha, spread = transition(process, t, s)
    np.testing.assert_allclose(alpha, np.sqrt(1 - betas), rtol=2e-5)
    np.testing.assert_allclose(spread, betas, rtol=2e-5)


def of_gaussian(system, steps):
    return dataclasses.replace(system, process=process_of(steps), shape=(2,), latent_dim=2, batch_size=40_000)


def exact(process):
    """G(x_t, t, z), a draw from p(x_0 | x_t) of the Gaussian."""
    D = TARGET.denoiser(process)

    def G(x, t, z):
        snr = (process.alpha(t) / process.sigma(t)) ** 2
        conditional = jnp.linalg.inv(jnp.linalg.inv(TARGET.covariance) + snr * jnp.eye(2))
        return D(x, t) + z @ jnp.linalg.cholesky(conditional).T

    return G


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_with_exact_draws_samples_are_exact_in_any_number_of_steps(system, steps):
    chain, process = of_gaussian(system, steps), process_of(steps)
    sampled = jax.jit(lambda key: chain.denoised(exact(process), key, jnp.arange(40_000)))(jax.random.key(0))
    np.testing.assert_allclose(sampled.mean(0), TARGET.mean, atol=0.02)
    np.testing.assert_allclose(np.cov(sampled.T), TARGET.covariance, atol=0.02)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_with_means_for_draws_they_are_too_narrow(system, steps):
    """The control: a generator that ignores z, as a denoiser does. With four large steps it is still wrong."""
    chain, D = of_gaussian(system, steps), TARGET.denoiser(process_of(steps))
    sampled = jax.jit(lambda key: chain.denoised(lambda x, t, z: D(x, t), key, jnp.arange(40_000)))(jax.random.key(0))
    assert np.trace(np.cov(sampled.T)) < 0.85 * np.trace(TARGET.covariance)


def test_is_a_system(system):
    assert isinstance(system, System)
    assert system.evaluations() == 4 and system.latent_dim == 3 and not system.conditions


def test_samples_depend_on_their_number_alone_and_each_step_has_a_new_z(system):
    params = shaken(system.init(jax.random.key(0)))
    whole = system.sample(params, jax.random.key(1), 5)["samples"]
    parts = dataclasses.replace(system, batch_size=2).sample(params, jax.random.key(1), 5)["samples"]
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)
    assert np.abs(whole).max() <= 1  # tanh
    seen = []

    def G(x, t, z):
        jax.debug.callback(lambda z: seen.append(np.asarray(z)), z)
        return jnp.zeros_like(x)

    system.denoised(G, jax.random.key(1), jnp.arange(5))
    jax.effects_barrier()
    assert len(np.unique(np.stack(seen))) == 4 * 5 * 3


def test_real_and_generated_pairs_have_one_law_where_the_generator_is_exact(system):
    """x_s of the forward process and the draw from the posterior, given x_t, for all t together."""
    process = process_of(4)
    pairs = {}

    def discriminate(params, x_s, c_noise, cond):
        pairs["fake" if "real" in pairs else "real"] = jnp.concatenate([x_s, cond["image"], c_noise[:, None]], -1)
        return jnp.zeros(len(x_s))

    chain = dataclasses.replace(of_gaussian(system, 4), discriminate=discriminate, penalty=Penalty(r1=0.0), tanh=False)
    # `apply` gets c_noise, T t - 1, and returns the denoiser's output as the parameterization is x_0's.
    apply = lambda params, x, c_noise, cond, **options: jax.vmap(
        lambda x, t, z: exact(process)(x[None], t[None], z[None])[0]
    )(x, c_noise, cond["vector"])
    chain = dataclasses.replace(chain, apply=lambda *a, **k: apply(*a, **k))
    x_0 = TARGET.sample(jax.random.key(5), 60_000)
    chain.loss({"network": {}, "discriminator": {}}, jax.random.key(6), {"x": x_0}, None)
    real, fake = (np.asarray(pairs[name]) for name in ("real", "fake"))
    np.testing.assert_array_equal(real[:, 2:], fake[:, 2:])
    for step in np.unique(real[:, 4]):
        rows = real[:, 4] == step
        np.testing.assert_allclose(real[rows, :4].mean(0), fake[rows, :4].mean(0), atol=0.03)
        np.testing.assert_allclose(np.cov(real[rows, :4].T), np.cov(fake[rows, :4].T), atol=0.05)


def test_the_gradient_of_each_group_is_that_of_its_own_player(system):
    params = shaken(system.init(jax.random.key(0)))
    batch = {"x": jax.random.uniform(jax.random.key(1), (8, 8, 8, 1), minval=-1)}

    def gradient(system):
        loss = lambda params: system.loss(params, jax.random.key(2), batch, Train(jnp.int32(0), 10))[0].mean()
        return jax.jit(jax.grad(loss))(params)

    same = lambda a, b: all(map(np.allclose, jax.tree.leaves(a), jax.tree.leaves(b)))
    whole = gradient(system)
    without = gradient(dataclasses.replace(system, penalty=Penalty(r1=0.0)))
    assert same(whole["network"], without["network"]) and not same(whole["discriminator"], without["discriminator"])
    silent = system.losses._replace(generator=lambda real, fake: jnp.zeros_like(real))
    found = gradient(dataclasses.replace(system, losses=silent))
    assert same(found["discriminator"], whole["discriminator"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found["network"]))


@pytest.mark.slow
def test_a_resumed_run_equals_one_that_was_not_interrupted(tmp_path):
    resumed(config_of(system__every=3, optimizer__schedule="constant"), tmp_path, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(sampling__steps=8), r"config\.sampling\.steps=8 must be 4"),
        (dict(network__vector_dim=0), r"it must read z, of config\.network\.vector_dim numbers"),
        (dict(network__image_channels=1), r"reads the conditions vector, image"),
        (dict(process=dict(name="vp")), r"config\.process\.name='vp' must be 'discrete_vp'"),
        (dict(system__discriminator__time=False), r"config\.system\.discriminator\.time=False is given"),
        (dict(solver__name="ddim"), r"config\.solver was changed"),
        (dict(sampling__grid=dict(name="karras")), r"config\.sampling\.grid was changed"),
    ],
)
def test_refusals(changes, message):
    config = config_of()
    for name, value in changes.items():
        changed(config, **{name: ConfigDict(value) if isinstance(value, dict) else value})
    with pytest.raises(ConfigError, match=message):
        build.check_read(config)
        build.system(config)
