import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.processes import EDM, VE, VP, Cosine, RectifiedFlow, SubVP
from diffusion_jax.solvers.sampling import sample
from tests.oracles import PROCESSES, Gaussian, Mixture
from tests.solvers.cases import CASES, RELATIVES

# Time ranges where the ODE is smooth; the constants are milder than the defaults so that few steps show the order.
REGULAR = {
    "vp": (VP(beta_max=8.0), 0.9, 0.2),
    "sub_vp": (SubVP(beta_max=8.0), 0.9, 0.3),
    "ve": (VE(sigma_min=0.1, sigma_max=5.0), 1.0, 0.0),
    "cosine": (Cosine(), 0.9, 0.2),
    "edm": (EDM(sigma_min=0.3, sigma_max=4.0), 1.0, 0.0),
    "rectified_flow": (RectifiedFlow(), 0.95, 0.2),
}
ODE = {name: case for name, case in (CASES | RELATIVES).items() if case.order}
PAIRS = [(n, p) for n, case in ODE.items() for p in (case.processes or REGULAR)]
STEPS = (400, 800)
MOST_STEPS = 800


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def gaussian():
    return Gaussian(mean=jnp.array([0.3, -0.5]), covariance=jnp.array([[0.5, 0.3], [0.3, 0.4]]))


def mixture():
    return Mixture(weights=jnp.array([0.3, 0.7]), means=jnp.array([[-0.8], [0.6]]), variances=jnp.array([0.2, 0.3]))


@functools.cache
def compiled(name, process_name, data):
    """run(x, times, num_steps), one program for every number of steps up to `MOST_STEPS`."""
    solver, (process, _, _) = ODE[name].solver, REGULAR[process_name]
    D = data().denoiser(process)

    @jax.jit
    def run(x, times, num_steps):
        keys = jax.random.split(jax.random.key(0), x.shape[0])
        step = lambda i, state: solver.step(process, D, keys, state[0], times[i], times[i + 1], state[1])
        return jax.lax.fori_loop(0, num_steps, step, (x, solver.init(x)))[0]

    return run


def integrate(name, process_name, data, x, start, end, num_steps):
    """Steps that grow from the start, so that the first ones of a multistep method, of low order, do not count."""
    fraction = jnp.minimum(jnp.arange(MOST_STEPS + 1) / num_steps, 1) ** 2
    return compiled(name, process_name, data)(x, start + (end - start) * fraction, num_steps)


def order_of(errors):
    """Minus the slope of log error over log steps."""
    return -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]


@pytest.mark.parametrize(("name", "process_name"), PAIRS)
def test_order_on_a_correlated_gaussian(name, process_name):
    process, start, end = REGULAR[process_name]
    data, (start, end) = gaussian(), jnp.array([start, end])
    mean, _ = data.marginal(process, start)
    x = mean + process.sigma(start) * jax.random.normal(jax.random.key(1), (8, 2))
    exact = data.flow(process, x, start, end)
    errors = [float(jnp.abs(integrate(name, process_name, gaussian, x, start, end, n) - exact).max()) for n in STEPS]
    assert order_of(errors) == pytest.approx(ODE[name].order, abs=0.2), errors


@pytest.mark.few(4)
@pytest.mark.parametrize("name", [name for name in ODE if name in CASES or "3s" in name])
def test_order_on_a_mixture(name):
    """In one dimension the flow keeps every point's quantile.

    Here D is not affine, which matters to methods with inner stages.
    """
    process, start, end = REGULAR["vp"]
    data, (start, end) = mixture(), jnp.array([start, end])
    x = jnp.linspace(-2, 2, 9)[:, None]
    quantile = data.cdf(process, x, start)
    errors = []
    for n in STEPS:
        x_s = integrate(name, "vp", mixture, x, start, end, n)
        errors.append(float(jnp.abs(data.cdf(process, x_s, end) - quantile).max()))
    assert order_of(errors) == pytest.approx(ODE[name].order, abs=0.2), errors


@pytest.mark.parametrize(("name", "process_name"), PAIRS)
def test_inversion_returns(name, process_name):
    _, start, end = REGULAR[process_name]
    x = 2 * jax.random.normal(jax.random.key(1), (8, 2))
    times = jnp.linspace(start, end, MOST_STEPS + 1)
    run = compiled(name, process_name, gaussian)
    out = run(x, times, MOST_STEPS)
    back = run(out, times[::-1], MOST_STEPS)
    scale = float(jnp.abs(out - x).max())
    assert scale > 0.1
    np.testing.assert_allclose(back, x, atol=(0.05 if ODE[name].order == 1 else 1e-3) * scale)


@pytest.mark.parametrize("name", [name for name in ODE if name in CASES])
def test_the_full_table_of_a_discrete_process_follows_the_flow(name):
    process, data = PROCESSES["discrete_vp"], gaussian()
    x = jax.random.normal(jax.random.key(1), (8, 2))
    D, times = data.denoiser(process), jnp.linspace(1.0, 0.0, 1001)
    out = sample(ODE[name].solver, process, D, jax.random.key(0), x, times)
    np.testing.assert_allclose(out, data.flow(process, x, jnp.asarray(1.0), jnp.asarray(0.0)), atol=0.02)
