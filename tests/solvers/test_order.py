import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.processes import EDM, VE, VP, Cosine, RectifiedFlow, SubVP
from diffusion_jax.sampling import sample
from tests.oracles import PROCESSES, Gaussian, Mixture
from tests.solvers.cases import CASES

# Time ranges where the ODE is smooth; the constants are milder than the defaults so that few steps show the order.
REGULAR = {
    "vp": (VP(beta_max=8.0), 0.9, 0.2),
    "sub_vp": (SubVP(beta_max=8.0), 0.9, 0.3),
    "ve": (VE(sigma_min=0.1, sigma_max=5.0), 1.0, 0.0),
    "cosine": (Cosine(), 0.9, 0.2),
    "edm": (EDM(sigma_min=0.3, sigma_max=4.0), 1.0, 0.0),
    "rectified_flow": (RectifiedFlow(), 0.95, 0.2),
}
ODE = {name: case for name, case in CASES.items() if case.order}
STEPS = (50, 100, 200)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def gaussian():
    return Gaussian(mean=jnp.array([0.3, -0.5]), covariance=jnp.array([[0.5, 0.3], [0.3, 0.4]]))


def mixture():
    return Mixture(weights=jnp.array([0.3, 0.7]), means=jnp.array([[-0.8], [0.6]]), variances=jnp.array([0.2, 0.3]))


def integrate(name, process, D, x, start, end, num_steps):
    times = jnp.linspace(start, end, num_steps + 1)
    return sample(CASES[name].solver, process, D, jax.random.key(0), x, times)


def order_of(errors):
    """Minus the slope of log error over log steps."""
    return -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]


@pytest.mark.parametrize("process_name", REGULAR)
@pytest.mark.parametrize("name", ODE)
def test_order_on_a_correlated_gaussian(name, process_name):
    process, start, end = REGULAR[process_name]
    data, (start, end) = gaussian(), jnp.array([start, end])
    mean, _ = data.marginal(process, start)
    x = mean + process.sigma(start) * jax.random.normal(jax.random.key(1), (8, 2))
    exact = data.flow(process, x, start, end)
    D = data.denoiser(process)
    errors = [float(jnp.abs(integrate(name, process, D, x, start, end, n) - exact).max()) for n in STEPS]
    assert order_of(errors) == pytest.approx(ODE[name].order, abs=0.2), errors


@pytest.mark.parametrize("name", ODE)
def test_order_on_a_mixture(name):
    """In one dimension the flow keeps every point's quantile."""
    process, start, end = REGULAR["vp"]
    data, (start, end) = mixture(), jnp.array([start, end])
    x = jnp.linspace(-2, 2, 9)[:, None]
    quantile = data.cdf(process, x, start)
    errors = []
    for n in STEPS:
        x_s = integrate(name, process, data.denoiser(process), x, start, end, n)
        errors.append(float(jnp.abs(data.cdf(process, x_s, end) - quantile).max()))
    assert order_of(errors) == pytest.approx(ODE[name].order, abs=0.2), errors


@pytest.mark.parametrize("process_name", REGULAR)
@pytest.mark.parametrize("name", ODE)
def test_inversion_returns(name, process_name):
    process, start, end = REGULAR[process_name]
    data = mixture()
    D = data.denoiser(process)
    x = jnp.linspace(-2, 2, 9)[:, None]
    out = integrate(name, process, D, x, start, end, 500)
    back = integrate(name, process, D, out, end, start, 500)
    scale = float(jnp.abs(out - x).max())
    assert scale > 0.1
    np.testing.assert_allclose(back, x, atol=0.05 * scale)


@pytest.mark.parametrize("name", ODE)
def test_the_full_table_of_a_discrete_process_follows_the_flow(name):
    process, data = PROCESSES["discrete_vp"], gaussian()
    x = jax.random.normal(jax.random.key(1), (8, 2))
    out = integrate(name, process, data.denoiser(process), x, 1.0, 0.0, 1000)
    np.testing.assert_allclose(out, data.flow(process, x, jnp.asarray(1.0), jnp.asarray(0.0)), atol=0.02)
