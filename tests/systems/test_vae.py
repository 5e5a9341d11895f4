"""VAEs, autoencoders with decoder noise: the ELBO of a linear one, importance-weighted bounds, and what is refused."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion_jax import systems
from diffusion_jax.config import build, from_file
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.likelihood import exact, iwae_likelihood
from diffusion_jax.losses.first_stage import gaussian_likelihood
from diffusion_jax.systems import bottlenecks
from diffusion_jax.systems.autoencoder import DecoderNoise
from diffusion_jax.types import System, Train
from tests.runs import ROOT

DIM, LATENTS = 5, 2
TRAIN = Train(step=jnp.int32(0), num_steps=10)


def linear_vae(**fields) -> systems.Autoencoder:
    """z ~ N(0, I) of 2 numbers, x = W z + sigma eps of 5, q(z | x) = N(A x, diag(exp(log_var))), as 1 x 1 images."""

    def encode(params, x):
        mean = x @ params["encoder"].T
        return jnp.concatenate([mean, jnp.broadcast_to(params["log_var"], mean.shape)], axis=-1)

    made = systems.Autoencoder(
        init_network=lambda key: {},
        encode=encode,
        decode=lambda params, z: z @ params["decoder"].T,
        bottleneck=bottlenecks.Gaussian(kl_weight=1.0, size=DIM),
        reconstruction=None,
        perceptual=None,
        adversary=None,
        shape=(1, 1, DIM),
        latent_shape=(1, 1, LATENTS),
        noise=DecoderNoise(),
    )
    return dataclasses.replace(made, **fields)


def data(n=64):
    """Rows with a covariance of falling eigenvalues and mean 0."""
    x = np.random.default_rng(0).normal(size=(n, DIM)) @ np.diag([2.0, 1.5, 0.7, 0.5, 0.4])
    return np.float32(x - x.mean(0))


@functools.cache
def principal():
    """(parameters of the linear VAE that is probabilistic PCA of `data`, its log-likelihood per row in closed form).

    W = U (Lambda - sigma^2)^(1/2) and sigma^2 the mean of the discarded eigenvalues (Tipping and Bishop 1999); W^T W is
    diagonal, and so is the covariance sigma^2 (W^T W + sigma^2)^-1 of the posterior.
    """
    x = data()
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    kept, variance = values[::-1][:LATENTS], values[::-1][LATENTS:].mean()
    decoder = vectors[:, ::-1][:, :LATENTS] * np.sqrt(kept - variance)
    network = {
        "decoder": jnp.float32(decoder),
        "encoder": jnp.float32(decoder.T / kept[:, None]),
        "log_var": jnp.float32(np.log(variance / kept)),
    }
    noise = {"log_sigma": jnp.float32(0.5 * np.log(variance))}
    params = {"network": network, "decoder": noise, "frozen": {"bottleneck": {}, "latents": {}}}
    log_det = np.log(kept).sum() + (DIM - LATENTS) * np.log(variance)
    return params, -0.5 * (DIM * np.log(2 * np.pi) + log_det + DIM)


def images(x):
    return jnp.asarray(x)[:, None, None]


def test_the_likelihood_is_that_of_a_gaussian_with_the_mean_squared_error_as_variance():
    x, y = (jax.random.normal(jax.random.key(i), (6, 2, 3, 1)) for i in (0, 1))
    log_sigma = jnp.linspace(-1, 1, 6).reshape(2, 3, 1)
    expected = -stats.norm(y, np.exp(np.broadcast_to(log_sigma, x.shape))).logpdf(x).mean((1, 2, 3))
    np.testing.assert_allclose(gaussian_likelihood(log_sigma)(x, y), expected, rtol=1e-5)
    best = 0.5 * jnp.log(jnp.square(x - y).mean())
    slope = jax.grad(lambda value: gaussian_likelihood(value)(x, y).mean())(best)
    assert abs(slope) < 1e-5


def test_the_elbo_of_probabilistic_pca_is_its_log_likelihood_for_every_latent():
    system, (params, expected), x = linear_vae(), principal(), data()
    assert isinstance(system, System)
    covariance = np.asarray(params["network"]["decoder"]) @ np.asarray(params["network"]["decoder"]).T
    covariance = covariance + np.exp(2 * float(params["decoder"]["log_sigma"])) * np.eye(DIM)
    log_prob = stats.multivariate_normal(np.zeros(DIM), covariance).logpdf(x)
    assert log_prob.mean() == pytest.approx(expected, rel=1e-5)
    for seed in range(3):
        found = system.log_weight(params, jax.random.key(seed), images(x))
        np.testing.assert_allclose(found, log_prob, rtol=1e-4, atol=1e-3)


def negative_elbo(params, draws=400):
    """The mean over data and latents in nats per dimension, with the same latents for all parameters."""
    x = images(np.tile(data(), (draws, 1)))
    return -float(linear_vae().log_weight(params, jax.random.key(0), x).mean()) / DIM


def test_it_is_the_optimum():
    """No change of the decoder, its noise or the encoder lowers the negative ELBO."""
    params, expected = principal()
    least = negative_elbo(params)
    assert least == pytest.approx(-expected / DIM, abs=1e-3)
    for path, change in [
        (("network", "decoder"), 1.15),
        (("network", "decoder"), 0.85),
        (("network", "encoder"), 1.15),
        (("network", "encoder"), 0.85),
        (("network", "log_var"), 1.2),
        (("network", "log_var"), 0.8),
        (("decoder", "log_sigma"), 0.8),
        (("decoder", "log_sigma"), 1.2),
    ]:
        group, name = path
        changed = {**params, group: {**params[group], name: change * params[group][name]}}
        assert negative_elbo(changed) > least + 1e-3, path


def test_the_loss_is_the_reconstruction_in_nats_and_the_kl():
    """Its mean over latents is that of the weights, whose KL is not in closed form."""
    system, (params, _) = linear_vae(), principal()
    x = images(np.tile(data(16), (500, 1)))
    loss, metrics = system.loss(params, jax.random.key(0), {"x": x}, TRAIN)
    weights = -system.log_weight(params, jax.random.key(1), x) / DIM
    error = 5 * float(jnp.sqrt((loss.var() + weights.var()) / len(x)))
    assert float(loss.mean()) == pytest.approx(float(weights.mean()), abs=error)
    np.testing.assert_allclose(loss, metrics["reconstruction"] + metrics["kl"] / DIM, rtol=1e-5)
    gradients = jax.grad(lambda p: system.loss(p, jax.random.key(0), {"x": x}, TRAIN)[0].mean())(params)
    assert float(jnp.abs(gradients["decoder"]["log_sigma"])) < 0.1  # near the optimum, and trained


def test_bounds_grow_with_the_number_of_latents_and_stay_below_the_likelihood():
    """ELBO <= IWAE_k <= log p, with an encoder that is not the posterior (arXiv:1509.00519, theorem 1)."""
    system, (params, expected), x = linear_vae(), principal(), images(np.tile(data(), (50, 1)))
    worse = {**params["network"], "encoder": 0.6 * params["network"]["encoder"]}
    worse["log_var"] = params["network"]["log_var"] + 0.7
    params = {**params, "network": worse}
    weight = functools.partial(system.log_weight, params)
    weights = jnp.stack([weight(jax.random.key(seed), x) for seed in range(64)])
    bounds = [float(exact.log_mean_exp(weights[:k]).mean()) for k in (1, 2, 8, 64)]
    assert all(b > a + 1e-3 for a, b in itertools.pairwise(bounds)) and bounds[-1] <= expected + 0.01
    assert bounds[0] < expected - 0.2

    found = iwae_likelihood(num_samples=16, dequantization="none")(weight, jax.random.key(0), x)
    assert (np.asarray(found["bits_per_dim_iwae"]) <= np.asarray(found["bits_per_dim"]) + 1e-6).all()
    assert found["bits_per_dim_iwae"].mean() >= -expected / (DIM * np.log(2)) - 0.01
    alone = iwae_likelihood(num_samples=1, dequantization="none")(weight, jax.random.key(0), x)
    np.testing.assert_allclose(alone["bits_per_dim"], alone["bits_per_dim_iwae"], rtol=1e-6)


def test_bounds_of_the_exact_posterior_are_the_likelihood():
    system = linear_vae(likelihood=iwae_likelihood(num_samples=4, dequantization="none"))
    params, expected = principal()
    found = system.evaluate(params, jax.random.key(0), {"x": images(data())})
    for name in ("bits_per_dim", "bits_per_dim_iwae"):
        assert float(found[name].mean()) == pytest.approx(-expected / (DIM * np.log(2)), rel=1e-4)


def read(variant="digits_vae", **changes):
    config = from_file(f"{ROOT}/configs/autoencoder_kl.py:{variant}")
    config.network.update(block_out_channels=(8, 8), norm_num_groups=4)
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.slow
def test_the_config_trains_the_noise_of_every_value_and_samples_from_the_prior():
    system = build.system(read())
    params = jax.jit(system.init)(jax.random.key(0))
    assert params["decoder"]["log_sigma"].shape == (8, 8, 1)
    x = jnp.linspace(-1, 1, 128).reshape(2, 8, 8, 1)
    mean_loss = lambda noise: system.loss({**params, "decoder": noise}, jax.random.key(0), {"x": x}, TRAIN)[0].mean()
    assert float(jnp.abs(jax.jit(jax.grad(mean_loss))(params["decoder"])["log_sigma"]).min()) > 0
    drawn = system.sample(params, jax.random.key(0), 3)["samples"]
    np.testing.assert_allclose(system.sample(params, jax.random.key(0), 2)["samples"], drawn[:2], atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("digits_vae", {"data.dequantize": False}, "config.data.dequantize=False must be true"),
        ("digits_vae", {"evaluation.likelihood.num_samples": 0}, "num_samples is 0"),
        ("digits_vae", {"loss.name": "l3"}, "or gaussian"),
        ("digits", {"evaluation.likelihood.name": "iwae"}, "needs config.loss.name='gaussian'"),
    ],
)
def test_what_does_not_fit_is_refused(variant, changes, message):
    config = read(variant)
    config.update_from_flattened_dict(changes)
    if changes.get("loss.name"):
        config.loss = dict(name="l3")
    with pytest.raises(ConfigError, match=message):
        build.system(config)
