"""Equalities between solvers and with closed forms, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import solvers
from diffusion_jax.processes import VE, VP, DiscreteVP, beta_table, row_normal
from diffusion_jax.solvers import grids
from diffusion_jax.solvers.sampling import sample
from tests.oracles import PROCESSES, Mixture

DATA = Mixture(weights=np.array([0.3, 0.7]), means=np.array([[-1.0], [1.0]]), variances=np.array([0.2, 0.1]))


def one_step(solver, process, D, keys, x, t, s):
    return solver.step(process, D, keys, x, jnp.asarray(t), jnp.asarray(s), solver.init(x))[0]


@pytest.mark.parametrize("num_steps", [1000, 20])
def test_ddim_with_eta_one_is_ancestral_sampling(num_steps):
    process = DiscreteVP.from_betas(beta_table("linear"))
    times = grids.discrete("leading")(process, num_steps)
    x_T = jax.random.normal(jax.random.key(1), (16, 1))
    ddim, ancestral = (
        sample(solver, process, DATA.denoiser(process), jax.random.key(0), x_T, times)
        for solver in (solvers.ddim(1.0), solvers.ancestral("beta_tilde"))
    )
    np.testing.assert_allclose(ddim, ancestral, atol=2e-4)


@pytest.mark.parametrize("name", PROCESSES)
def test_ancestral_step_is_the_posterior_given_x_0(name):
    """q(x_s | x_t, x_0) from Bayes' rule: precisions of N(alpha_s x_0, sigma_s^2) and of the transition add."""
    with jax.enable_x64(True):
        process, n = PROCESSES[name], 20_000
        t, s = jnp.asarray(0.6), jnp.asarray(0.4)
        alpha_t, sigma_t, alpha_s, sigma_s = (float(f(u)) for u in (t, s) for f in (process.alpha, process.sigma))
        x_0, x_t = 0.7, 0.7 * alpha_t + 1.3 * sigma_t
        ratio = alpha_t / alpha_s
        variance_ts = sigma_t**2 - ratio**2 * sigma_s**2
        precision = 1 / sigma_s**2 + ratio**2 / variance_ts
        mean = (alpha_s * x_0 / sigma_s**2 + ratio * x_t / variance_ts) / precision
        keys = jax.random.split(jax.random.key(0), n)
        D = lambda x, t: jnp.full_like(x, x_0)
        x = jnp.full((n, 1), x_t)
        z = row_normal(keys, x)
        x_s = one_step(solvers.ancestral("beta_tilde"), process, D, keys, x, t, s)
        np.testing.assert_allclose(x_s, mean + precision**-0.5 * z, rtol=1e-5, atol=1e-6)
        x_s = one_step(solvers.ancestral("beta"), process, D, keys, x, t, s)
        np.testing.assert_allclose(x_s, mean + variance_ts**0.5 * z, rtol=1e-5, atol=1e-6)


def test_ancestral_steps_of_a_table_have_the_published_variances():
    """beta_i and (1 - abar_{i-1}) / (1 - abar_i) beta_i of arXiv:2006.11239, section 3.2."""
    betas = beta_table("linear")
    alpha_bar = np.cumprod(1 - betas)
    process = DiscreteVP.from_betas(betas)
    keys, zero = jax.random.split(jax.random.key(0), 3), jnp.zeros((3, 1))
    z = np.asarray(row_normal(keys, zero))
    for i in (2, 500, 1000):
        t, s = i / 1000, (i - 1) / 1000
        step = [
            one_step(solvers.ancestral(v), process, lambda x, t: 0 * x, keys, zero, t, s)
            for v in ("beta", "beta_tilde")
        ]
        np.testing.assert_allclose(step[0] / z, betas[i - 1] ** 0.5, rtol=2e-3)
        tilde = (1 - alpha_bar[i - 2]) / (1 - alpha_bar[i - 1]) * betas[i - 1]
        np.testing.assert_allclose(step[1] / z, tilde**0.5, rtol=2e-3)


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_the_step_to_t_zero_returns_the_denoiser_without_noise(variance):
    process = PROCESSES["discrete_vp"]
    keys, x = jax.random.split(jax.random.key(0), 4), jnp.ones((4, 1))
    D = DATA.denoiser(process)
    out = one_step(solvers.ancestral(variance), process, D, keys, x, 1e-3, 0.0)
    np.testing.assert_allclose(out, D(x, jnp.asarray(1e-3)), rtol=1e-5)


def test_ancestral_refuses_an_unknown_variance():
    with pytest.raises(ValueError, match="variance is 'gamma'; choose beta, beta_tilde or learned"):
        solvers.ancestral("gamma")


@pytest.mark.parametrize("solver", [solvers.ddim(), solvers.euler()], ids=["ddim", "euler"])
def test_first_order_ode_steps_of_ve_are_euler_in_sigma(solver):
    """DDIM is Euler in sigma for alpha = 1; Euler in t agrees with it for a process whose sigma is linear in t."""
    process = PROCESSES["edm"]
    keys, x = jax.random.split(jax.random.key(0), 4), 10 * jnp.ones((4, 1))
    D, t, s = DATA.denoiser(process), jnp.float32(0.5), jnp.float32(0.3)
    slope = (x - D(x, t)) / process.sigma(t)
    expected = x + (process.sigma(s) - process.sigma(t)) * slope
    np.testing.assert_allclose(one_step(solver, process, D, keys, x, t, s), expected, rtol=1e-4)


def test_heun_is_algorithm_1_of_edm():
    process = PROCESSES["edm"]
    keys, x = jax.random.split(jax.random.key(0), 4), 10 * jnp.ones((4, 1))
    D, t, s = DATA.denoiser(process), jnp.float32(0.5), jnp.float32(0.3)
    high, low = process.sigma(t), process.sigma(s)
    first = (x - D(x, t)) / high
    predicted = x + (low - high) * first
    expected = x + (low - high) * (first + (predicted - D(predicted, s)) / low) / 2
    np.testing.assert_allclose(one_step(solvers.heun(), process, D, keys, x, t, s), expected, rtol=1e-4)


def test_heun_ends_with_the_denoiser_where_sigma_vanishes():
    process = PROCESSES["rectified_flow"]
    keys, x = jax.random.split(jax.random.key(0), 4), jnp.ones((4, 1))
    D = DATA.denoiser(process)
    out = one_step(solvers.heun(), process, D, keys, x, 0.25, 0.0)
    np.testing.assert_allclose(out, D(x, jnp.float32(0.25)), rtol=1e-5)


def test_euler_maruyama_step_of_ve_is_the_papers_formula():
    process, t, s = VE(), jnp.float32(0.5), jnp.float32(0.49)
    keys, x = jax.random.split(jax.random.key(0), 4), jnp.ones((4, 1))
    D = DATA.denoiser(process)
    sigma = process.sigma(t)
    g = sigma * jnp.sqrt(2 * jnp.log(5000.0))
    score = (D(x, t) - x) / sigma**2
    expected = x + g**2 * score * 0.01 + g * 0.1 * row_normal(keys, x)
    np.testing.assert_allclose(one_step(solvers.euler_maruyama(), process, D, keys, x, t, s), expected, rtol=1e-4)


def test_reverse_diffusion_steps_are_those_of_the_paper():
    """x + (sigma_t^2 - sigma_s^2) score + noise for VE; (2 - sqrt(1 - beta)) x + beta score + noise for a table."""
    keys, x = jax.random.split(jax.random.key(0), 4), jnp.ones((4, 1))
    z = row_normal(keys, x)
    ve, betas = VE(), beta_table("linear")
    table = DiscreteVP.from_betas(betas)
    for process, t, s, factor, variance in (
        (ve, 0.5, 0.45, 1.0, float(ve.sigma(jnp.float32(0.5)) ** 2 - ve.sigma(jnp.float32(0.45)) ** 2)),
        (table, 0.5, 0.499, 2 - (1 - betas[499]) ** 0.5, betas[499]),
    ):
        D = DATA.denoiser(process)
        t = jnp.float32(t)
        score = (process.alpha(t) * D(x, t) - x) / process.sigma(t) ** 2
        expected = factor * x + variance * score + variance**0.5 * z
        out = one_step(solvers.reverse_diffusion(), process, D, keys, x, t, jnp.float32(s))
        np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-4)


def test_predictor_corrector_predicts_first_and_corrects_at_the_new_time():
    calls = []
    predictor = solvers.ddim()

    def corrector(process, D, keys, x, t):
        calls.append((x, t))
        return x + 1

    keys, x = jax.random.split(jax.random.key(0), 4), jnp.ones((4, 1))
    D = DATA.denoiser(VP())
    predicted = one_step(predictor, VP(), D, keys, x, 0.5, 0.4)
    out = one_step(solvers.predictor_corrector(predictor, corrector), VP(), D, keys, x, 0.5, 0.4)
    ((seen, time),) = calls
    np.testing.assert_allclose(seen, predicted)
    assert float(time) == pytest.approx(0.4)
    np.testing.assert_allclose(out, predicted + 1)


def test_the_corrector_is_a_langevin_step_of_the_size_of_its_signal_to_noise_ratio():
    """x + e score + sqrt(2 e) z, e = 2 (snr sigma)^2: |e score| / |sqrt(2 e) z| is snr for the score -z / sigma."""
    process, t, snr = VE(), jnp.float32(0.5), 0.16
    x, keys = jax.random.normal(jax.random.key(1), (5, 3, 2)), jax.random.split(jax.random.key(0), 5)
    D = lambda x, t: jnp.zeros_like(x)
    correct = solvers.langevin_corrector(snr)
    moved, mirrored = correct(process, D, keys, x, t) - x, correct(process, D, keys, -x, t) + x
    # The noise is the same for x and -x, the score -x / sigma^2 changes its sign.
    size = 2 * (snr * process.sigma(t)) ** 2
    np.testing.assert_allclose((moved - mirrored) / 2, -size * x / process.sigma(t) ** 2, rtol=1e-3, atol=1e-5)
    noise = (moved + mirrored) / 2 / np.sqrt(2 * size)
    assert 0.3 < float(jnp.std(noise)) < 2
    np.testing.assert_allclose(jnp.sqrt(size**2 / process.sigma(t) ** 2 / (2 * size)), snr, rtol=1e-5)
