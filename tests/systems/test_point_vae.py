"""The latent model of point clouds: its networks, the two terms of its loss, and what it draws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from diffusion_jax import solvers
from diffusion_jax.losses import denoising_loss, times, weightings
from diffusion_jax.networks.conditions import NO_CONDITIONS, Conditions
from diffusion_jax.networks.functional import init_apply, init_methods
from diffusion_jax.networks.pointwise import CouplingFlow, PointNetEncoder, PointwiseNet
from diffusion_jax.parameterizations import x0_prediction
from diffusion_jax.processes import VP
from diffusion_jax.solvers import grids
from diffusion_jax.systems import Diffusion, PointVAE
from tests.networks.test_token_dit import filled

KEY = jax.random.key(0)
N, DIM = 5, 4


def flow(**options):
    return init_methods(lambda rngs: CouplingFlow(DIM, hidden=8, rngs=rngs, **options), ("to_noise", "from_noise"))


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_the_flow_has_an_inverse_and_its_determinant(depth):
    init, (to_noise, from_noise) = flow(depth=depth)
    params, z = filled(init(KEY)), jax.random.normal(KEY, (3, DIM))
    w, log_det = to_noise(params, z)
    np.testing.assert_allclose(from_noise(params, w), z, atol=1e-4)
    matrices = jax.vmap(jax.jacfwd(lambda row: to_noise(params, row[None])[0][0]))(z)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(np.asarray(matrices))[1], atol=1e-4)
    assert (np.abs(w - z).max(0) > 1e-4).sum() == (DIM if depth > 1 else DIM // 2)


def test_points_are_independent_given_the_latent_and_the_encoder_has_no_order():
    init, apply = init_apply(lambda rngs: PointwiseNet(shape=(N, 3), widths=(8, 8), vector_dim=DIM, rngs=rngs))
    params, x = filled(init(KEY)), jax.random.normal(KEY, (2, N, 3))
    cond, t = {"vector": jnp.ones((2, DIM))}, jnp.array([0.2, 0.9])
    out = apply(params, x, t, cond)
    np.testing.assert_allclose(apply(params, x.at[:, 1:].set(3.0), t, cond)[:, 0], out[:, 0], atol=1e-6)
    assert np.abs(apply(params, x, t, {"vector": -cond["vector"]}) - out).max() > 1e-4
    assert np.abs(apply(params, x, t + 0.1, cond) - out).max() > 1e-5
    init, (encode,) = init_methods(
        lambda rngs: PointNetEncoder(3, DIM, widths=(8, 8), head=(8,), rngs=rngs), ("encode",)
    )
    params = init(KEY)
    for one, other in zip(encode(params, x), encode(params, x[:, ::-1]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    mean, _ = encode(params, x)
    assert mean.shape == (2, DIM) and np.abs(mean[0] - mean[1]).max() > 1e-4
    with pytest.raises(ValueError, match="no clouds"):
        init_apply(lambda rngs: PointwiseNet(shape=(N,), rngs=rngs))[0](KEY)


def exact(params, x, c_noise, cond, *, key=None):
    """D of points N(z, 1/4) given the latent z, for x_0-prediction; its label is t."""
    t = c_noise.reshape(-1, 1, 1)
    alpha, sigma = VP().alpha(t), VP().sigma(t)
    z = cond["vector"][:, None]
    return z + alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * (x - alpha * z)


def model(mean=0.0, log_variance=0.0, **fields) -> PointVAE:
    param = x0_prediction(label=lambda process, t: t)
    diffusion = Diffusion(
        init_network=lambda key: {"a": jnp.ones(())},
        apply=exact,
        process=VP(),
        param=param,
        loss_fn=denoising_loss(exact, param, VP(), weightings.uniform(), times.uniform(1e-2)),
        solver=solvers.heun(),
        grid=grids.uniform_log_snr(1e-3, 0.999),
        steps=20,
        shape=(N, 3),
        modality="cloud",
        network_conditions=Conditions(vector_dim=3),
        batch_size=2000,
    )
    rows = lambda x, value: jnp.full((len(x), 3), value)
    return PointVAE(
        diffusion=diffusion,
        code_dim=3,
        init_encoder=lambda key: {"b": jnp.ones(())},
        encoder=lambda params, x: (rows(x, mean), rows(x, log_variance)),
        init_prior=lambda key: {"c": jnp.ones(())},
        to_noise=lambda params, z: (z / 2, jnp.full(len(z), -3 * jnp.log(2.0))),  # p(z) = N(0, 4)
        from_noise=lambda params, w: 2 * w,
        **fields,
    )


def test_the_second_term_is_the_divergence_of_gaussians():
    """KL(N(m, v) || N(0, 4)) per number, in the mean over many draws of z; nothing of it with weight 0."""
    mean, variance = 0.7, 0.5
    vae = model(mean, np.log(variance))
    params, batch = vae.init(KEY), {"x": jnp.zeros((20_000, N, 3))}
    loss, metrics = vae.loss(params, KEY, batch, None)
    expected = 3 * (np.log(2 / np.sqrt(variance)) + (variance + mean**2) / 8 - 0.5)
    assert abs(metrics["kl"].mean() - expected) < 5 * metrics["kl"].std() / np.sqrt(20_000)
    free, _ = dataclasses.replace(vae, kl_weight=0.0).loss(params, KEY, batch, None)
    np.testing.assert_allclose(loss - free, 1e-3 * metrics["kl"], atol=1e-5)
    z = jnp.array([[1.0, -2.0, 0.5]])
    np.testing.assert_allclose(vae.prior_log_prob(params, z), norm.logpdf(z, scale=2.0).sum(), rtol=1e-5)


@pytest.mark.optimized
def test_samples_have_the_law_of_latent_and_points():
    """Points of one cloud share z of variance 4, and vary by 1/4 around it."""
    vae = model()
    x = vae.sample(vae.init(KEY), KEY, 2000)["samples"]
    np.testing.assert_allclose(x.var((0, 1)), 4.25, rtol=0.12)
    np.testing.assert_allclose(x.var(1, ddof=1).mean(0), 0.25, rtol=0.1)
    assert "vector" not in vae.conditions and set(vae.batch) == {"x"}
    again = vae.sample(vae.init(KEY), KEY, 10)["samples"]
    np.testing.assert_allclose(again, x[:10], atol=1e-4)


def test_a_model_without_a_latent_is_refused():
    vae = model()
    with pytest.raises(ValueError, match="a code of 3"):
        dataclasses.replace(vae, diffusion=dataclasses.replace(vae.diffusion, network_conditions=NO_CONDITIONS))
    with pytest.raises(ValueError, match="kl_weight is -1"):
        dataclasses.replace(vae, kl_weight=-1.0)
