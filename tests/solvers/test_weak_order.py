"""Solvers with noise: weak orders to rounding, and laws that are exact in any number of steps."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import solvers
from diffusion_jax.processes import log_snr
from tests.oracles import PROCESSES, Gaussian
from tests.solvers.test_order import REGULAR
from tests.solvers.weak import errors, law

STEPS = (200, 400)
ORDERS = {
    "ancestral": (solvers.ancestral(), 1),
    "euler_maruyama": (solvers.euler_maruyama(), 1),
    "reverse_diffusion": (solvers.reverse_diffusion(), 1),
    "sde_dpm_solver_pp_2": (solvers.sde_dpm_solver_pp(2), 2),
    "sde_dpm_solver_pp_2_heun": (solvers.sde_dpm_solver_pp(2, "heun"), 2),
    "exponential_sde_1": (solvers.exponential_sde(0.5, 1), 1),
    "exponential_sde_2": (solvers.exponential_sde(0.5, 2), 2),
    "seeds_1": (solvers.seeds(1), 1),
    "seeds_2": (solvers.seeds(2), 2),
    "seeds_3": (solvers.seeds(3), 2),
}
OTHERS = [("sde_dpm_solver_pp_2_heun", "ve"), ("sde_dpm_solver_pp_2_heun", "rectified_flow"), ("seeds_2", "cosine")]


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.mark.few(6)
@pytest.mark.parametrize(("name", "process"), [*((name, "vp") for name in ORDERS), *OTHERS])
def test_weak_order(name, process):
    solver, order = ORDERS[name]
    found = errors(solver, *REGULAR[process], STEPS)
    assert np.log2(found[0] / found[1]) == pytest.approx(order, abs=0.2), found


@pytest.mark.parametrize(("solver", "order"), [(solvers.euler, 1), (solvers.heun, 2)])
def test_churn_keeps_the_order(solver, order):
    """Twice the steps with half the noise in each of them."""
    churned = [errors(solver(20.0, num_steps=n), *REGULAR["edm"], (n,))[0] for n in (200, 400)]
    assert np.log2(churned[0] / churned[1]) == pytest.approx(order, abs=0.2), churned


@pytest.mark.parametrize(("name", "eta"), [("vp", 0.4), ("rectified_flow", 1.0)])
def test_a_constant_denoiser_is_solved_exactly_in_three_steps(name, eta):
    process, start, end = REGULAR[name]
    point = Gaussian(mean=jnp.array([0.7]), covariance=jnp.zeros((1, 1)))
    D = lambda x, t: jnp.full_like(x, 0.7)
    exact = [float(m.squeeze()) for m in point.marginal(process, jnp.asarray(end))]
    mean, covariance = point.marginal(process, jnp.asarray(start))
    for solver in (
        solvers.exponential_sde(eta, 3),
        solvers.seeds(2, "x0") if eta == 1 else solvers.exponential_sde(eta),
    ):
        found = law(solver, process, D, mean, covariance[0, 0], start, end, (3,))
        np.testing.assert_allclose(found[0], exact, rtol=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_seeds_solves_a_constant_eps_exactly_in_three_steps(order):
    """x_s = alpha_s / alpha_t x_t - 2 sigma_s (e^h - 1) eps + noise of variance sigma_s^2 (e^2h - 1)."""
    process, start, end = REGULAR["vp"]
    t, s, eps = jnp.asarray(start), jnp.asarray(end), 0.4
    D = lambda x, t: (x - process.sigma(t) * eps) / process.alpha(t)
    h = (log_snr(process, s) - log_snr(process, t)) / 2
    ratio, sigma = process.alpha(s) / process.alpha(t), process.sigma(s)
    mean = ratio * 1.3 - 2 * sigma * jnp.expm1(h) * eps
    variance = ratio**2 * 0.5 + sigma**2 * jnp.expm1(2 * h)
    found = law(solvers.seeds(order), process, D, 1.3, 0.5, start, end, (3,))
    np.testing.assert_allclose(found[0], [mean, variance], rtol=1e-9)


@pytest.mark.parametrize("name", ["vp", "rectified_flow", "discrete_vp"])
def test_order_one_is_ancestral_sampling(name):
    """Up to both ends, where alpha = 0 or sigma = 0."""
    process = PROCESSES[name]
    D = Gaussian(mean=jnp.zeros(2), covariance=jnp.eye(2) / 2).denoiser(process)
    keys, x = jax.random.split(jax.random.key(0), 4), jax.random.normal(jax.random.key(1), (4, 2))
    both = [solvers.ancestral(), solvers.sde_dpm_solver_pp(1), solvers.exponential_sde(1.0, 3)]

    @jax.jit
    def steps(t, s):
        return [solver.step(process, D, keys, x, t, s, solver.init(x))[0] for solver in both]

    for t, s in ((1.0, 0.6), (0.6, 0.4), (0.4, 0.0)):
        expected, *others = steps(t, s)
        assert np.isfinite(expected).all()
        for other in others:
            # A step adds multiples of x, D and noise of about 1, which are rounded before they may cancel: the error
            # is of their size, and not of what is left of them.
            np.testing.assert_allclose(other, expected, rtol=1e-6, atol=np.finfo(np.float32).eps)


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.6), (0.4, 0.0)])
@pytest.mark.parametrize("prediction", ["eps", "x0"])
def test_seeds_takes_an_ancestral_step_where_alpha_or_sigma_vanishes(prediction, t, s):
    process = PROCESSES["rectified_flow"]
    D = lambda x, t: 0.5 * x
    t, s, x = jnp.asarray(t), jnp.asarray(s), jnp.ones((2, 3))
    keys = jax.random.split(jax.random.key(0), 2)
    x_s, _ = solvers.seeds(3, prediction).step(process, D, keys, x, t, s, ())
    noise = process.sigma(s) * jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), (3,)))(keys)
    np.testing.assert_allclose(x_s, process.alpha(s) * 0.5 + noise, rtol=1e-9)


@pytest.mark.parametrize("order", [2, 3])
def test_without_noise_it_is_dpm_solver_pp(order):
    process, start, end = REGULAR["vp"]
    D = Gaussian(mean=jnp.zeros(2), covariance=jnp.eye(2) / 2).denoiser(process)
    x, keys = jax.random.normal(jax.random.key(1), (4, 2)), jax.random.split(jax.random.key(0), 4)
    times = jnp.linspace(start, end, 6)
    ends = []
    for solver in (solvers.exponential_sde(0.0, order, 5), solvers.dpm_solver_pp(order, "multistep", "heun", 5)):
        step = jax.jit(lambda y, t, s, carry, solver=solver: solver.step(process, D, keys, y, t, s, carry))
        y, carry = x, solver.init(x)
        for t, s in itertools.pairwise(times):
            y, carry = step(y, t, s, carry)
        ends.append(y)
    np.testing.assert_allclose(*ends, rtol=1e-10)


def test_churned_heun_is_algorithm_2_of_edm():
    process = PROCESSES["edm"]
    D = Gaussian(mean=jnp.zeros(2), covariance=jnp.eye(2) / 2).denoiser(process)
    keys, x = jax.random.split(jax.random.key(0), 4), 10 * jnp.ones((4, 2))
    t, s = jnp.asarray(0.3), jnp.asarray(0.2)
    sigma, low = process.sigma(t), process.sigma(s)
    z = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
    for churn, gamma in ((1.0, 0.1), (40.0, 2**0.5 - 1)):
        raised = sigma * (1 + gamma)
        time = (raised - process.sigma_min) / (process.sigma_max - process.sigma_min)
        noisier = x + jnp.sqrt(raised**2 - sigma**2) * 1.007 * z
        first = (noisier - D(noisier, time)) / raised
        predicted = noisier + (low - raised) * first
        expected = noisier + (low - raised) * (first + (predicted - D(predicted, s)) / low) / 2
        solver = solvers.heun(churn, s_noise=1.007, num_steps=10)
        np.testing.assert_allclose(solver.step(process, D, keys, x, t, s, ())[0], expected, rtol=1e-9)
    plain = solvers.heun().step(process, D, keys, x, t, s, ())[0]
    for limits in (dict(s_min=float(sigma) + 1), dict(s_max=float(sigma) - 1)):
        solver = solvers.heun(1.0, num_steps=10, **limits)
        np.testing.assert_array_equal(solver.step(process, D, keys, x, t, s, ())[0], plain)


@pytest.mark.parametrize("name", ["rectified_flow", "ve"])
def test_churn_does_not_go_beyond_the_last_time(name):
    process, D = PROCESSES[name], lambda x, t: 0.5 * x
    keys, x = jax.random.split(jax.random.key(0), 4), jnp.ones((4, 2))
    t, s = jnp.asarray(1.0), jnp.asarray(0.9)
    churned, plain = (
        solver.step(process, D, keys, x, t, s, ())[0] for solver in (solvers.heun(4.0, num_steps=10), solvers.heun())
    )
    np.testing.assert_allclose(churned, plain, rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: solvers.heun(1.0), "num_steps is None; churn=1.0 is shared"),
        (lambda: solvers.euler(-1.0, num_steps=3), "churn is -1.0; it must be at least 0"),
        (lambda: solvers.heun(1.0, s_min=2.0, s_max=1.0, num_steps=3), "s_min is 2.0 and s_max is 1.0"),
        (lambda: solvers.exponential_sde(-0.1), "eta is -0.1; it must be at least 0"),
        (lambda: solvers.exponential_sde(1.0, 4), "order is 4; exponential_sde has orders 1 to 3"),
        (lambda: solvers.sde_dpm_solver_pp(2, num_steps=1), "num_steps is 1; sde_dpm_solver_pp of order 2 needs"),
        (lambda: solvers.sde_dpm_solver_pp(2, "euler"), "solver_type is 'euler'; choose midpoint or heun"),
        (lambda: solvers.seeds(0), "order is 0; seeds has orders 1 to 3"),
        (lambda: solvers.seeds(2, "v"), "prediction is 'v'; choose eps or x0"),
    ],
)
def test_refusals(build, words):
    with pytest.raises(ValueError, match=words):
        build()
