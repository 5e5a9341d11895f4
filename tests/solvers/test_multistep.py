"""DPM-Solver, UniPC and the linear multistep methods: exactness, ends of the time range, evaluations, refusals."""

import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import solvers
from diffusion_jax.processes import EDM, VP, RectifiedFlow, log_snr, time_of_log_snr
from diffusion_jax.solvers import exponential, grids
from diffusion_jax.solvers.exponential import moments, polynomial_weights
from diffusion_jax.solvers.sampling import sample
from tests.oracles import Mixture

DATA = Mixture(weights=np.array([0.3, 0.7]), means=np.array([[-1.0], [1.0]]), variances=np.array([0.2, 0.1]))
SOLVERS = {
    "dpm_solver_2s": solvers.dpm_solver(2),
    "dpm_solver_3s": solvers.dpm_solver(3),
    "dpm_solver_3m": solvers.dpm_solver(3, "multistep"),
    "dpm_solver_pp_2m": solvers.dpm_solver_pp(2),
    "dpm_solver_pp_3s_heun": solvers.dpm_solver_pp(3, "singlestep", "heun"),
    "unipc_3": solvers.unipc(3),
    "unipc_4_eps": solvers.unipc(4, prediction="eps"),
    "deis_4": solvers.deis(4),
    "lms_4": solvers.lms(4),
    "plms_4": solvers.plms(4),
    "pndm": solvers.pndm(),
}
EVALUATIONS = {"dpm_solver_2s": 12, "dpm_solver_3s": 18, "dpm_solver_pp_2m": 6, "unipc_3": 6, "plms_4": 7, "pndm": 15}


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def path(solver, process, D, x, times):
    """States at all times, [num_times, ...]."""
    run = jax.jit(lambda x, times: sample(solver, process, D, jax.random.key(0), x, times, trajectory=True))
    return run(x, times)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_moments_are_the_integrals_at_every_size_of_step(dtype):
    z = np.array([-40.0, -5.0, -1.01, -0.99, -0.1, -1e-3, -1e-9, 0.0, 1e-6, 0.3, 0.99, 1.01, 4.0, 30.0])
    nodes, weights = np.polynomial.legendre.leggauss(80)
    theta, weights = (nodes + 1) / 2, weights / 2
    found = jax.vmap(lambda z: moments(z, 5))(jnp.asarray(z, dtype))
    for k, moment in enumerate(found):
        exact = (np.exp(np.outer(z, 1 - theta)) * theta**k) @ weights
        np.testing.assert_allclose(moment, exact, rtol=1e-11 if dtype == "float64" else 1e-4)


def test_weights_for_equal_steps_are_those_of_adams():
    equal = [jnp.asarray(1 / (k + 1)) for k in range(5)]
    for nodes, published in (
        ([-1], [-1 / 2]),
        ([-1, -2], [-16 / 12, 5 / 12]),
        ([-1, -2, -3], [-59 / 24, 37 / 24, -9 / 24]),
        ([1, -1, -2], [9 / 24, -5 / 24, 1 / 24]),
    ):
        weights = polynomial_weights([jnp.asarray(float(r)) for r in nodes], equal[: len(nodes) + 1])
        np.testing.assert_allclose(weights, published, rtol=1e-12)


@pytest.mark.parametrize(
    ("solver", "kept", "degree"),
    [
        (solvers.dpm_solver_pp(2, solver_type="heun"), "x0", 1),
        (solvers.dpm_solver_pp(3), "x0", 2),
        (solvers.dpm_solver_pp(3, "singlestep", "heun"), "x0", 2),
        (solvers.dpm_solver(3, "multistep"), "eps", 2),
        (solvers.dpm_solver(2, "singlestep", "heun"), "eps", 1),
        (solvers.unipc(3), "x0", 2),
        (solvers.unipc(4, prediction="eps"), "eps", 3),
        (solvers.deis(4), "eps", 3),
        (solvers.lms(4), "ratio", 3),
    ],
)
def test_a_step_is_exact_for_polynomials_in_its_coordinate(solver, kept, degree):
    """In lambda, D (`x0`) or eps; in r = sigma / alpha, eps (`ratio`). On unequal steps, once there are enough."""
    process, x = VP(), jnp.array([[0.4], [-1.5]])
    steps = np.array([0.2, 0.22, 0.19, 0.18, 0.2, 0.21, 0.18, 0.19, 0.22, 0.2, 0.19])
    times = time_of_log_snr(process, jnp.append(-2.5, -2.5 + 2 * np.cumsum(steps)))
    half = lambda t: log_snr(process, t) / 2

    def D(x, t):
        if kept == "x0":
            return jnp.full_like(x, half(t) ** degree)
        eps = half(t) ** degree if kept == "eps" else (process.sigma(t) / process.alpha(t)) ** degree
        return (x - process.sigma(t) * eps) / process.alpha(t)

    states = np.asarray(path(solver, process, D, x, times))
    alpha, sigma, u = (np.asarray(f(times)) for f in (process.alpha, process.sigma, half))
    nodes, weights = np.polynomial.legendre.leggauss(40)
    if kept == "ratio":
        r = sigma / alpha
        increments = (r[1:] ** (degree + 1) - r[:-1] ** (degree + 1)) / (degree + 1)
    else:
        inner = u[:-1, None] + np.diff(u)[:, None] * (nodes + 1) / 2
        increments = (np.exp(inner if kept == "x0" else -inner) * inner**degree) @ weights * np.diff(u) / 2
        increments = increments if kept == "x0" else -increments
    scale = (sigma if kept == "x0" else alpha)[:, None, None]
    found = np.diff(states / scale, axis=0)[4:]
    np.testing.assert_allclose(found, np.broadcast_to(increments[4:, None, None], found.shape), rtol=1e-9)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_whole_range_of_times_is_finite_and_exact_for_one_data_point(name):
    """From alpha = 0 to sigma = 0. With D = c every x_t stays on its line between noise and c."""
    process, x, times, c = RectifiedFlow(), jnp.array([[0.4], [-1.5]]), jnp.linspace(1.0, 0.0, 9), 0.7
    states = path(SOLVERS[name], process, lambda x, t: jnp.full_like(x, c), x, times)
    alpha, sigma = (f(times)[:, None, None] for f in (process.alpha, process.sigma))
    np.testing.assert_allclose(states, alpha * c + sigma * x / sigma[0], atol=1e-10)


@pytest.mark.parametrize("name", ["dpm_solver_2s", "dpm_solver_3m", "dpm_solver_pp_2m", "unipc_3", "deis_4"])
def test_the_step_to_sigma_zero_returns_the_denoiser(name):
    process, times, x = RectifiedFlow(), jnp.linspace(1.0, 0.0, 9), jnp.array([[0.4], [-1.5]])
    D = DATA.denoiser(process)
    states = path(SOLVERS[name], process, D, x, times)
    np.testing.assert_allclose(states[-1], D(states[-2], times[-2]), rtol=1e-12)


FIRST_ORDER = {
    "dpm_solver": solvers.dpm_solver(1),
    "dpm_solver_pp": solvers.dpm_solver_pp(1),
    "deis": solvers.deis(1),
    "lms": solvers.lms(1),
    "plms": solvers.plms(1),
}


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_first_order_is_ddim(name):
    process, times, x = VP(), jnp.linspace(1.0, 0.1, 9), jnp.array([[0.4], [-1.5]])
    D = DATA.denoiser(process)
    expected = path(solvers.ddim(), process, D, x, times)
    np.testing.assert_allclose(path(FIRST_ORDER[name], process, D, x, times), expected, rtol=1e-12)


@pytest.mark.parametrize("growth", [0.5, 1.2, 1.3, 40.0])
def test_a_step_much_longer_in_log_snr_than_those_before_it_is_of_first_order(growth):
    """Whatever the number of steps; one that is as long, or shorter, goes through the past values."""
    process, x, keys = VP(), jnp.array([[0.4], [-1.5]]), jax.random.split(jax.random.key(0), 2)
    D = DATA.denoiser(process)
    levels = jnp.append(jnp.linspace(-2.0, 1.0, 25), 1 + growth * 3.0 / 24)
    times = time_of_log_snr(process, levels)
    for make in (solvers.dpm_solver_pp, solvers.deis, solvers.unipc):
        states = path(make(3), process, D, x, times)
        if make is not solvers.unipc:  # it corrects the state before it steps from it
            expected, _ = solvers.ddim().step(process, D, keys, states[-2], *times[-2:], ())
            assert bool(jnp.allclose(states[-1], expected, rtol=1e-9)) == (growth > exponential.GROWTH)
        assert np.isfinite(states).all()


@pytest.mark.parametrize("name", EVALUATIONS)
def test_a_step_of_length_zero_changes_nothing(name):
    process, x, D = VP(), jnp.array([[0.4], [-1.5]]), DATA.denoiser(VP())
    times = jnp.array([0.9, 0.7, 0.5, 0.3, 0.2, 0.1])
    repeated = jnp.array([0.9, 0.9, 0.7, 0.5, 0.5, 0.3, 0.2, 0.1, 0.1])
    expected = path(SOLVERS[name], process, D, x, times)
    found = path(SOLVERS[name], process, D, x, repeated)
    np.testing.assert_allclose(found[-1], expected[-1], rtol=1e-9)


def test_plms_is_lms_where_time_is_sigma_over_alpha_and_steps_are_equal():
    """From the same past; their starts differ."""
    process, times, x = EDM(sigma_min=0.2, sigma_max=3.0), jnp.linspace(1.0, 0.0, 9), jnp.array([[0.4], [-1.5]])
    D, keys = DATA.denoiser(process), jax.random.split(jax.random.key(0), 2)
    carry = solvers.lms(4).init(x)
    for t, s in itertools.pairwise(times[:5]):
        x, carry = solvers.lms(4).step(process, D, keys, x, t, s, carry)
    lms, plms = (f(4).step(process, D, keys, x, times[4], times[5], carry)[0] for f in (solvers.lms, solvers.plms))
    np.testing.assert_allclose(plms, lms, rtol=1e-12)


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluations_of_the_denoiser(name):
    """Over six steps: one per step for multistep methods, `order` for single-step ones, more at PNDM's starts."""
    calls = Counter()
    inner = DATA.denoiser(VP())

    def D(x, t):
        jax.debug.callback(lambda: calls.update(D=1))
        return inner(x, t)

    path(SOLVERS[name], VP(), D, jnp.ones((1, 1)), jnp.linspace(0.9, 0.1, 7)).block_until_ready()
    jax.effects_barrier()
    assert calls["D"] == EVALUATIONS[name]


@pytest.mark.parametrize("name", ["unipc_4_eps", "lms_4"])
def test_single_precision_does_not_lose_the_differences_of_small_steps(name):
    process, results = VP(), []
    for double in (True, False):
        with jax.enable_x64(double):
            times, x = grids.uniform(1e-3, 1.0)(process, 1000), jnp.linspace(-2, 2, 9)[:, None]
            results.append(np.asarray(path(SOLVERS[name], process, DATA.denoiser(process), x, times)[-1]))
    assert results[1].dtype == np.float32
    np.testing.assert_allclose(results[1], results[0], atol=2e-3)


@pytest.mark.slow
def test_samples_can_be_differentiated_by_the_numbers_of_the_process():
    """Empty places of the memory, which stand for no number, leave no trace in derivatives."""
    times, x = jnp.linspace(0.9, 0.1, 9), jnp.array([[0.4], [-1.5]])

    def end(beta_max):
        process = VP(beta_max=beta_max)
        return path(solvers.unipc(3), process, DATA.denoiser(process), x, times)[-1].sum()

    difference = (end(20.0 + 1e-4) - end(20.0 - 1e-4)) / 2e-4
    assert float(jax.grad(end)(20.0)) == pytest.approx(float(difference), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: solvers.dpm_solver(4), "order is 4; dpm_solver has orders 1 to 3"),
        (lambda: solvers.dpm_solver_pp(0), "order is 0; dpm_solver_pp has orders 1 to 3"),
        (lambda: solvers.dpm_solver(kind="multi"), "kind is 'multi'; choose singlestep or multistep"),
        (lambda: solvers.dpm_solver_pp(solver_type="rk"), "solver_type is 'rk'; choose midpoint or heun"),
        (lambda: solvers.dpm_solver_pp(3, num_steps=2), "num_steps is 2; dpm_solver_pp of order 3 needs at least 3"),
        (lambda: solvers.unipc(5), "order is 5; unipc has orders 1 to 4"),
        (lambda: solvers.unipc(variant="bh3"), "variant is 'bh3'; choose bh1 or bh2"),
        (lambda: solvers.unipc(prediction="v"), "prediction is 'v'; choose x0 or eps"),
        (lambda: solvers.unipc(4, num_steps=3), "num_steps is 3; unipc of order 4 needs at least 4"),
        (lambda: solvers.deis(5), "order is 5; deis has orders 1 to 4"),
        (lambda: solvers.lms(num_steps=3), "num_steps is 3; lms of order 4 needs at least 4"),
        (lambda: solvers.plms(-1), "order is -1; plms has orders 1 to 4"),
        (lambda: solvers.pndm(num_steps=3), "num_steps is 3; pndm of order 4 needs at least 4"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("solver", [solvers.unipc(3), solvers.lms(3)], ids=["unipc", "lms"])
def test_times_that_rise_again_use_no_value_twice(solver):
    process, variance = VP(), 0.25

    def D(x, t):
        alpha = process.alpha(t)
        return variance * alpha / (alpha**2 * variance + process.sigma(t) ** 2) * x

    x, times = jnp.array([[1.0], [-0.5]]), [1.0, 0.8, 0.6, 0.4, 0.2, 0.3, 0.4, 0.3, 0.2, 0.1]
    y = sample(solver, process, D, jax.random.key(0), x, times)  # a list of times, too
    deviation = jnp.sqrt(process.alpha(0.1) ** 2 * variance + process.sigma(0.1) ** 2)
    np.testing.assert_allclose(y, deviation * x, atol=0.15)
