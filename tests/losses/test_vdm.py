"""VDM's schedule and bound (arXiv:2107.00630) against closed forms on Gaussian data with the exact denoiser."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax import parameterizations, processes
from diffusion_jax.likelihood import ode
from diffusion_jax.losses import vdm
from diffusion_jax.networks.functional import fourier_features
from diffusion_jax.processes import LearnedVP, learned_vp
from tests.oracles import Gaussian, network_of

DATA = Gaussian(mean=jnp.array([0.1, -0.2]), covariance=jnp.array([[0.06, 0.03], [0.03, 0.04]]))
PARAM = parameterizations.eps_prediction(parameterizations.log_sigma_label)
ENDS = (-8.0, 6.0)
N = 124_928  # a multiple of 64


def bent(seed: int = 0, hidden: int = 8) -> LearnedVP:
    """A schedule that is far from linear."""
    rng = np.random.default_rng(seed)
    return LearnedVP(
        gamma_0=jnp.float32(ENDS[0]),
        gamma_1=jnp.float32(ENDS[1]),
        slope=jnp.asarray(rng.normal(10, 5, hidden), jnp.float32),
        shift=jnp.asarray(rng.normal(-6, 3, hidden), jnp.float32),
        height=jnp.asarray(rng.normal(0, 1, hidden), jnp.float32),
    )


LINEAR = learned_vp(*ENDS)


def exact(params, x, c_noise, cond=None, *, key=None):
    """The exact eps of DATA from c_noise = log(sigma / alpha), whatever the schedule, times params["scale"]."""
    wide = LearnedVP(gamma_0=-20.0, gamma_1=20.0)
    network = network_of(DATA.denoiser(wide), PARAM, wide, time_of_label=lambda label: (2 * label + 20) / 40)
    return params["scale"] * network(x, c_noise)


UNIT = {"scale": jnp.ones(())}


def even_times(n: int) -> jax.Array:
    return jax.random.permutation(jax.random.key(7), (jnp.arange(n) + 0.5) / n)


@pytest.mark.parametrize(
    "process", [LINEAR, bent(), learned_vp(-13.3, 5.0, hidden=32)], ids=["linear", "bent", "start"]
)
def test_gamma_rises_and_its_ends_are_exact(process):
    t = jnp.linspace(0, 1, 1001)
    gamma, slope = processes.time_derivative(process.gamma, t)
    assert float(gamma[0]) == float(process.gamma_0)
    assert float(gamma[-1]) == float(process.gamma_1)
    assert (slope > 0).all()
    assert (jnp.diff(gamma) > 0).all()
    np.testing.assert_allclose(processes.log_snr(process, t), -gamma, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(process.alpha(t) ** 2 + process.sigma(t) ** 2, 1, rtol=1e-6)
    # f = -gamma' sigmoid(gamma) / 2 and g^2 = gamma' sigmoid(gamma).
    f, g = processes.drift_and_diffusion(process, t)
    np.testing.assert_allclose(f, -0.5 * slope * jax.nn.sigmoid(gamma), rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(g**2, slope * jax.nn.sigmoid(gamma), rtol=2e-4, atol=1e-6)


def test_the_schedule_that_training_starts_from_is_nearly_linear():
    t = jnp.linspace(0, 1, 101)
    straight = learned_vp(-13.3, 5.0)
    assert len(jax.tree.leaves(straight)) == 2
    np.testing.assert_allclose(straight.gamma(t), -13.3 + 18.3 * t, rtol=1e-5, atol=1e-5)
    assert 0.01 < jnp.abs(learned_vp(-13.3, 5.0, hidden=64).gamma(t) - straight.gamma(t)).max() < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((5.0, 5.0, 0), "gamma_0 is 5.0 and gamma_1 is 5.0"), ((-13.3, 5.0, -1), "hidden is -1")],
)
def test_refused_schedules(arguments, message):
    with pytest.raises(ValueError, match=message):
        learned_vp(*arguments)


def test_exact_log_likelihood_under_a_learned_schedule():
    """The ODE takes it as any process: log p of DATA with the exact prior, to 1e-3 nats."""
    process, x = bent(), DATA.sample(jax.random.key(0), 8)
    t_min, t_max = jnp.float32(0), jnp.float32(1)
    run = functools.partial(ode.log_prob, t_min=0.0, trace="exact", rtol=1e-6, atol=1e-6)
    prior = lambda z: DATA.log_prob(process, z, t_max)
    nats = jax.jit(lambda x: run(process, DATA.denoiser(process), jax.random.key(0), x, prior_log_prob=prior).nats)(x)
    np.testing.assert_allclose(nats, DATA.log_prob(process, x, t_min), atol=1e-3)


def kl_to_marginal(process, x_0, t) -> np.ndarray:
    """KL(q(z_t | x_0) || q(z_t)) of DATA in bits per dimension, in float64."""
    alpha, variance = np.float64(process.alpha(t)), np.float64(process.sigma(t)) ** 2
    mean, covariance = np.float64(DATA.mean), np.float64(DATA.covariance)
    marginal = alpha**2 * covariance + variance * np.eye(2)
    off = alpha * (np.float64(x_0) - mean)
    square = np.sum(off @ np.linalg.inv(marginal) * off, axis=-1)
    trace = variance * np.trace(np.linalg.inv(marginal))
    return 0.5 * (square + trace - 2 + np.linalg.slogdet(marginal)[1] - 2 * np.log(variance)) / (2 * np.log(2))


@pytest.mark.parametrize("process", [LINEAR, bent()], ids=["linear", "bent"])
def test_continuous_diffusion_loss_is_its_closed_form_whatever_the_schedule(process):
    """With the exact denoiser the bound is tight for every x: KL(z_0) = KL(z_1) + diffusion loss. Both schedules have
    the same ends, so the same expected value."""
    points = jnp.array([[0.1, -0.2], [0.5, 0.1], [-0.3, 0.2]])
    loss = jax.jit(functools.partial(vdm.diffusion_loss(exact, PARAM), UNIT))
    expected = kl_to_marginal(process, points, jnp.float32(0)) - kl_to_marginal(process, points, jnp.float32(1))
    for i, x in enumerate(points):
        values = np.asarray(loss(process, jax.random.key(i), jnp.tile(x, (N, 1)), even_times(N)), np.float64)
        error = values.std() / N**0.5
        assert abs(values.mean() - expected[i]) < 4.5 * error, i
        assert error < 0.01 * expected[i]


def test_discrete_loss_is_its_closed_form_and_falls_to_the_continuous_one():
    """E over data of T steps is the upper sum of 1/2 int MMSE dSNR, whose limit is the mutual information."""
    process, x_0 = bent(), DATA.sample(jax.random.key(0), N)
    variances = np.linalg.eigvalsh(np.float64(DATA.covariance))
    snr = lambda t: np.exp(np.float64(processes.log_snr(process, jnp.asarray(t, jnp.float32))))
    limit = 0.25 * np.sum(np.log2((1 + snr(0) * variances) / (1 + snr(1) * variances)))
    means = []
    for steps in (4, 16, 64):
        grid = np.arange(1, steps + 1) / steps
        mmse = np.sum(variances / (1 + snr(grid)[:, None] * variances), axis=1)
        expected = 0.25 * np.sum((snr(grid - 1 / steps) - snr(grid)) * mmse) / np.log(2)
        t = (1 + jnp.arange(N) % steps) / steps
        loss = vdm.diffusion_loss(exact, PARAM, num_steps=steps)
        values = np.asarray(jax.jit(functools.partial(loss, UNIT))(process, jax.random.key(1), x_0, t), np.float64)
        # Times are the same number of each, so that only the noise within a time is sampled.
        per_time = values.reshape(-1, steps)
        error = np.sqrt(np.mean(per_time.var(axis=0)) / N)
        assert abs(values.mean() - expected) < 4.5 * error
        assert error < 0.01 * expected
        means.append(expected)
    assert means[0] > means[1] > means[2] > limit
    assert means[2] < 1.12 * limit
    assert (means[1] - limit) / (means[2] - limit) > 3.5  # in proportion to 1 / T, or faster


def test_gradients_of_the_three_parts_of_the_parameters():
    """Network and ends by the loss, the interior by its square: against autodiff of these two objectives."""
    n = 256
    x_0, t = DATA.sample(jax.random.key(0), n), even_times(n)
    with jax.enable_x64(True):
        process = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), bent())
        params, arguments = {"scale": jnp.asarray(0.7)}, (jax.random.key(1), jnp.asarray(x_0, jnp.float64), t)

        def mean(minimize_variance, power, params, process):
            loss = vdm.diffusion_loss(exact, PARAM, minimize_variance=minimize_variance)
            return jnp.mean(loss(params, process, *arguments) ** power)

        grad = lambda *a: jax.grad(functools.partial(mean, *a), argnums=(0, 1))(params, process)
        compute = jax.jit(lambda: (grad(True, 1), grad(False, 1), grad(False, 2)))
        (network, schedule), (plain_network, plain), (_, square) = compute()
        np.testing.assert_allclose(network["scale"], plain_network["scale"], rtol=1e-10)
        for name in ("gamma_0", "gamma_1"):
            np.testing.assert_allclose(getattr(schedule, name), getattr(plain, name), rtol=1e-8)
        for name in ("slope", "shift", "height"):
            np.testing.assert_allclose(getattr(schedule, name), getattr(square, name), rtol=1e-8)
            assert jnp.abs(getattr(schedule, name) - getattr(plain, name)).max() > 1e-3
        # And the square against a central difference.
        direction = jnp.asarray(np.random.default_rng(0).normal(size=8))
        moved = lambda h: mean(False, 2, params, LearnedVP(**{**vars(process), "shift": process.shift + h * direction}))
        slope = jax.jit(lambda h: moved(h) - moved(-h))(1e-4) / 2e-4
        np.testing.assert_allclose(slope, schedule.shift @ direction, rtol=1e-5)


def test_training_the_interior_lowers_the_variance_and_not_the_mean():
    start, optimizer = bent(), optax.adam(0.05)
    loss = vdm.diffusion_loss(exact, PARAM)

    @jax.jit
    def train(process):
        def step(state, key):
            process, opt_state = state
            x_key, t_key, key = jax.random.split(key, 3)
            arguments = (key, DATA.sample(x_key, 512), jax.random.uniform(t_key, (512,)))
            grads = jax.grad(lambda process: jnp.mean(loss(UNIT, process, *arguments)))(process)
            grads = LearnedVP(**{**vars(grads), "gamma_0": jnp.zeros(()), "gamma_1": jnp.zeros(())})
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(process, updates), opt_state), None

        (process, _), _ = jax.lax.scan(
            step, (process, optimizer.init(process)), jax.random.split(jax.random.key(0), 300)
        )
        return process

    measure = jax.jit(functools.partial(loss, UNIT))
    x_0 = DATA.sample(jax.random.key(1), N)
    before, after = (
        np.asarray(measure(p, jax.random.key(2), x_0, even_times(N)), np.float64) for p in (start, train(start))
    )
    assert after.var() < 0.5 * before.var()
    error = np.sqrt((before.var() + after.var()) / N)
    assert abs(after.mean() - before.mean()) < 4.5 * error
    assert error < 0.02 * before.mean()


@pytest.mark.parametrize("levels", [2, 17])
def test_reconstruction_is_bayes_rule_over_the_levels(levels):
    values = 2 * np.arange(levels) / (levels - 1) - 1
    k = np.random.default_rng(0).integers(0, levels, (5, 3))
    eps = np.random.default_rng(1).normal(size=(5, 3))
    process = learned_vp(-3.0, 5.0)
    alpha, sigma = float(process.alpha(jnp.float32(0))), float(process.sigma(jnp.float32(0)))
    z = alpha * values[k] + sigma * eps
    likelihoods = np.exp(-((z[..., None] - alpha * values) ** 2) / (2 * sigma**2))
    chosen = np.take_along_axis(likelihoods, k[..., None], axis=-1)[..., 0] / likelihoods.sum(-1)
    result = vdm.reconstruction(process, jnp.float32(eps), jnp.float32(values[k]), levels)
    np.testing.assert_allclose(result, -np.log2(chosen).mean(axis=1), rtol=1e-4, atol=1e-6)
    # Without noise nothing is lost, also where the densities themselves underflow.
    quiet = vdm.reconstruction(learned_vp(-30.0, 5.0), jnp.float32(eps), jnp.float32(values[k]), levels)
    np.testing.assert_allclose(quiet, 0, atol=1e-5)


def test_prior_is_the_kl_of_its_gaussians():
    process, x_0 = learned_vp(-8.0, 2.0), jnp.array([[0.5, -1.0]])
    snr = np.exp(-2.0)
    np.testing.assert_allclose(vdm.prior(process, x_0), 0.5 * snr * 1.25 / (2 * np.log(2)), rtol=1e-5)


def test_fourier_features_come_after_the_data():
    x = jnp.array([[[0.25, -0.5]]])
    seen = fourier_features(lambda params, x, c_noise, cond, *, key: x, (1, 3))({}, x, jnp.zeros(1))
    angles = np.pi * np.array([0.25, -0.5])
    expected = [x[0, 0], np.sin(2 * angles), np.cos(2 * angles), np.sin(8 * angles), np.cos(8 * angles)]
    np.testing.assert_allclose(seen[0, 0], np.concatenate(expected), atol=1e-5)


def test_refuses_a_negative_number_of_steps():
    with pytest.raises(ValueError, match="num_steps is -1"):
        vdm.diffusion_loss(exact, PARAM, num_steps=-1)
