import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import parameterizations as P
from diffusion_jax.losses import denoising_loss, times, weightings
from diffusion_jax.processes import VE, DiscreteVP, beta_table, drift_and_diffusion, log_snr, perturb, time_of_log_snr
from tests.oracles import PROCESSES, Gaussian, Mixture, network_of

PARAMETERIZATIONS = {
    "eps": P.eps_prediction(),
    "x0": P.x0_prediction(),
    "score": P.score_prediction(),
    "scaled_score": P.score_prediction(scale_by_sigma=True),
    "v": P.v_prediction(),
    "velocity": P.velocity_prediction(),
    "edm": P.edm_preconditioning(),
}
MIXTURE = Mixture(
    weights=np.array([0.2, 0.5, 0.3]),
    means=np.array([[1.0, -0.5], [-0.8, 0.3], [0.2, 1.2]]),
    variances=np.array([0.04, 0.1, 0.3]),
)
BATCH = 16

each_process = pytest.mark.parametrize("name", PROCESSES)
each_parameterization = pytest.mark.parametrize("prediction", PARAMETERIZATIONS)


@pytest.fixture(autouse=True)
def t():
    """Times of a batch, in double precision, which holds for the whole test."""
    with jax.enable_x64(True):
        yield jnp.linspace(0.05, 0.95, BATCH)


def noisy_batch(process, t):
    x_0 = MIXTURE.sample(jax.random.key(0), BATCH)
    return perturb(process, jax.random.key(1), x_0, t)[0]


def exact_network(process, prediction):
    D, param = MIXTURE.denoiser(process), PARAMETERIZATIONS[prediction]
    if prediction == "edm":
        return network_of(D, param, process, lambda label: time_of_log_snr(process, -8 * label))
    return network_of(D, param, process)


def tolerance(name):
    """The discrete process keeps float32 tables, whose rounding is amplified by 1 / alpha and by differences."""
    return {"rtol": 1e-3, "atol": 1e-3} if name == "discrete_vp" else {"rtol": 1e-6, "atol": 1e-8}


@each_process
def test_oracle_score_is_the_gradient_of_the_log_density(name, t):
    process = PROCESSES[name]
    x = noisy_batch(process, t)
    gaussian = Gaussian(mean=np.array([0.3, -1.0]), covariance=np.array([[0.5, 0.3], [0.3, 0.4]]))
    for data in (MIXTURE, gaussian):
        gradient = jax.grad(lambda x, data=data: data.log_prob(process, x, t).sum())(x)
        np.testing.assert_allclose(P.score(process, data.denoiser(process), x, t), gradient, **tolerance(name))
    np.testing.assert_allclose(gaussian.score(process, x, t), gradient, rtol=1e-9)


@each_process
@each_parameterization
def test_every_parameterization_gives_the_same_denoiser(name, prediction, t):
    process = PROCESSES[name]
    exact = MIXTURE.denoiser(process)
    x = noisy_batch(process, t)
    D = P.denoiser(exact_network(process, prediction), PARAMETERIZATIONS[prediction], process)
    np.testing.assert_allclose(D(x, t), exact(x, t), **tolerance(name))
    np.testing.assert_allclose(D(x, t[4]), exact(x, t[4]), **tolerance(name))


@each_process
@each_parameterization
def test_every_parameterization_gives_the_same_loss(name, prediction):
    """Under one weighting and key the loss is w |D - x_0|^2 / d, computed here from the definition."""
    process = PROCESSES[name]
    exact = MIXTURE.denoiser(process)
    network, param = exact_network(process, prediction), PARAMETERIZATIONS[prediction]
    x_0 = MIXTURE.sample(jax.random.key(0), 16)
    draw = times.uniform(0.05, 0.95)
    loss = denoising_loss(lambda params, *args, **kwargs: network(*args), param, process, weightings.simple(), draw)
    value, aux = loss({}, jax.random.key(5), x_0, None)
    t = aux["t"]
    _, noise_key, _ = jax.random.split(jax.random.key(5), 3)
    x_t, _ = perturb(process, noise_key, x_0, t)
    squares = jnp.mean((exact(x_t, t) - x_0) ** 2, axis=-1)
    assert value.shape == (16,)
    np.testing.assert_allclose(value, squares * jnp.exp(log_snr(process, t)), **tolerance(name))


@each_process
def test_views_are_consistent(name, t):
    process = PROCESSES[name]
    D = MIXTURE.denoiser(process)
    x = noisy_batch(process, t)
    score, epsilon = P.score(process, D, x, t), P.epsilon(process, D, x, t)
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    np.testing.assert_allclose(epsilon, -sigma * score, rtol=1e-9)
    np.testing.assert_allclose(alpha * D(x, t) + sigma * epsilon, x, rtol=1e-9)
    f, g = drift_and_diffusion(process, t)
    expected = f[:, None] * x - 0.5 * g[:, None] ** 2 * score
    np.testing.assert_allclose(P.velocity(process, D, x, t), expected, **tolerance(name))


# What each network predicts, from x_0, eps and (alpha, sigma) with their derivatives.
TARGETS = {
    "eps": lambda x_0, eps, a, s, da, ds: eps,
    "x0": lambda x_0, eps, a, s, da, ds: x_0,
    "score": lambda x_0, eps, a, s, da, ds: -eps / s,
    "scaled_score": lambda x_0, eps, a, s, da, ds: -eps,
    "v": lambda x_0, eps, a, s, da, ds: a * eps - s * x_0,
    "velocity": lambda x_0, eps, a, s, da, ds: da * x_0 + ds * eps,
}


@each_process
@pytest.mark.parametrize("target", TARGETS)
def test_a_network_that_hits_its_target_denoises_perfectly(name, target, t):
    process = PROCESSES[name]
    x_0 = MIXTURE.sample(jax.random.key(0), BATCH)
    x_t, eps = perturb(process, jax.random.key(1), x_0, t)
    a, s = process.alpha(t), process.sigma(t)
    da, ds = (jax.vmap(jax.grad(f))(t) for f in (process.alpha, process.sigma))
    output = TARGETS[target](x_0, eps, *(v[:, None] for v in (a, s, da, ds)))
    D = P.denoiser(lambda x, c_noise, cond: output, PARAMETERIZATIONS[target], process)
    np.testing.assert_allclose(D(x_t, t), x_0, **tolerance(name))


@each_process
def test_edm_preconditioning_has_unit_variance_inputs_and_targets(name, t):
    process, sigma_data = PROCESSES[name], 0.5
    c = P.edm_preconditioning(sigma_data)(process, t)
    alpha, sigma = process.alpha(t), process.sigma(t)
    np.testing.assert_allclose(c.c_in**2 * (alpha**2 * sigma_data**2 + sigma**2), 1, rtol=1e-7)
    # The target (x_0 - c_skip x_t) / c_out, for x_0 of variance sigma_data^2.
    variance = ((1 - c.c_skip * alpha) ** 2 * sigma_data**2 + c.c_skip**2 * sigma**2) / c.c_out**2
    np.testing.assert_allclose(variance, 1, rtol=1e-7)


def test_edm_preconditioning_has_the_published_values():
    """Table 1 of arXiv:2206.00364 at sigma = 2, sigma_data = 0.5."""
    process = VE(sigma_min=2.0, sigma_max=20.0)
    c = P.edm_preconditioning(0.5)(process, jnp.zeros(1))
    np.testing.assert_allclose(c.c_skip, 0.25 / 4.25)
    np.testing.assert_allclose(c.c_out, 2 * 0.5 / 4.25**0.5)
    np.testing.assert_allclose(c.c_in, 1 / 4.25**0.5)
    np.testing.assert_allclose(c.c_noise, np.log(2) / 4)


def test_labels():
    process = DiscreteVP.from_betas(beta_table("linear", 1000))
    t = jnp.arange(1, 1001) / 1000
    np.testing.assert_allclose(P.index_label(process, t), np.arange(1000), atol=1e-9)
    np.testing.assert_allclose(P.alpha_label(process, t), process.alpha(t))
    np.testing.assert_allclose(P.time_label(process, t), 999 * t)
    np.testing.assert_allclose(P.log_sigma_label(process, t), -log_snr(process, t) / 2, rtol=1e-6)
    levels = jnp.linspace(1.0, 0.0, 10)
    np.testing.assert_allclose(P.level_label(10)(VE(), levels), np.arange(10), atol=1e-9)


def test_the_denoiser_passes_time_and_conditions_on():
    seen = {}

    def network(x, c_noise, cond):
        seen.update(c_noise=c_noise, cond=cond)
        return x

    D = P.denoiser(network, P.x0_prediction(), VE())
    x, cond = jnp.ones((3, 4, 4, 2)), {"label": jnp.arange(3)}
    np.testing.assert_array_equal(D(x, jnp.asarray(0.5), cond), x)
    np.testing.assert_allclose(seen["c_noise"], [499.5] * 3)
    assert seen["cond"] is cond


@pytest.mark.parametrize("source", PROCESSES)
@each_process
def test_a_denoiser_is_that_of_another_process_at_equal_snr(name, source, t):
    process, there = PROCESSES[name], PROCESSES[source]
    x, (low, high) = noisy_batch(process, t), log_snr(there, jnp.float64([1.0, 1e-6]))
    within = (log_snr(process, t) > low) & (log_snr(process, t) < high)
    assert within.sum() > BATCH / 2
    D = P.at_equal_snr(MIXTURE.denoiser(there), there, process)
    expected = MIXTURE.denoiser(process)(x, t)
    close = {"rtol": 1e-3, "atol": 1e-3} if "discrete_vp" in (name, source) else {"rtol": 1e-6, "atol": 1e-7}
    np.testing.assert_allclose(D(x, t)[within], expected[within], **close)


@pytest.mark.parametrize("source", ["edm", "vp", "cosine"])
@pytest.mark.parametrize("end", [0.0, 1.0])
def test_ends_that_the_source_does_not_reach_are_its_own(source, end):
    """At t = 0 and 1 of a rectified flow the SNR is infinite and zero: D gives the data, and a number near the mean."""
    there, process = PROCESSES[source], PROCESSES["rectified_flow"]
    x = jnp.array([[0.3, -0.2], [1.1, 0.4]])
    D = P.at_equal_snr(MIXTURE.denoiser(there), there, process)(x, jnp.float64(end))
    expected = x if end == 0 else jnp.broadcast_to(MIXTURE.weights @ MIXTURE.means, x.shape)
    np.testing.assert_allclose(D, expected, atol=1e-3 if end == 0 else 0.05)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_latent_consistency_keeps_x_at_the_first_timestep_and_is_d_later(prediction):
    """With c_skip and c_out of the authors' code, sigma_data = .5 and 10 times the timestep, at every timestep."""
    process = DiscreteVP.from_betas(beta_table("scaled_linear", 1000))
    times = jnp.arange(1, 1001) / 1000
    x = jax.random.normal(jax.random.key(0), (1000, 2))
    network = lambda x, c_noise, cond: jnp.sin(3 * x) + c_noise[:, None] / 500
    D = P.denoiser(network, PARAMETERIZATIONS[prediction], process)(x, times)
    if prediction != "x0":  # whose label is 999 t there
        D = P.denoiser(network, getattr(P, f"{prediction}_prediction")(P.index_label), process)(x, times)
    else:
        D = P.denoiser(network, P.x0_prediction(P.index_label), process)(x, times)
    f = P.denoiser(network, P.latent_consistency(prediction), process)(x, times)
    np.testing.assert_array_equal(f[0], x[0])
    k = np.arange(1000)[:, None]
    skip, out = 0.25 / ((k / 0.1) ** 2 + 0.25), (k / 0.1) / np.sqrt((k / 0.1) ** 2 + 0.25)
    np.testing.assert_allclose(f, skip * x + out * D, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(f[1:], D[1:], rtol=4e-3, atol=0.02)
    with pytest.raises(ValueError, match="prediction is 'score'; choose eps, x0 or v"):
        P.latent_consistency("score")
