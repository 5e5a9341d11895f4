"""Losses of consistency models against Gaussians, whose consistency function and fixed points are known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import parameterizations as P
from diffusion_jax import solvers
from diffusion_jax.losses import consistency
from diffusion_jax.processes import EDM, VP, RectifiedFlow, Trig, bcast
from diffusion_jax.solvers import grids
from tests.oracles import Gaussian, network_of


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


GAUSSIAN = Gaussian(mean=np.array([0.3, -0.2]), covariance=np.array([[0.5, 0.2], [0.2, 0.3]]))
OTHER = Gaussian(mean=np.zeros(2), covariance=np.eye(2))
CENTRED = Gaussian(mean=np.zeros(1), covariance=np.array([[0.25]]))


# What f converges to on a grid, for N(0, 1/4) and the Karras grid from 0.002 to 80: the product of the slopes of the
# steps over that of the exact flow, sqrt((v + e^2) / (v + T^2)).
FIXED_POINTS = {10: (0.7304, 1.2196), 18: (0.8461, 1.0553), 40: (0.9297, 1.0098), 150: (0.9811, 1.0006)}


@pytest.mark.parametrize("points", FIXED_POINTS)
def test_fixed_points_are_the_products_of_the_slopes_of_the_steps(points):
    process, v = EDM(), 0.25
    times = jnp.float64(grids.karras()(process, points - 1))
    sigma = np.asarray(process.sigma(times))
    exact = np.sqrt((v + sigma[-1] ** 2) / (v + sigma[0] ** 2))
    D, x = CENTRED.denoiser(process), jnp.ones((points - 1, 1))
    keys = jax.random.split(jax.random.key(0), points - 1)
    slope = {
        name: float(solver.step(process, D, keys, x, times[:-1], times[1:], ())[0].prod()) / exact
        for name, solver in (("euler", solvers.euler()), ("heun", solvers.heun()), ("ddim", solvers.ddim()))
    }
    # Consistency training regresses x_0 + s z on x_0 + t z: its slope is that of Euler's method, which is DDIM's here.
    trained = np.prod((v + sigma[:-1] * sigma[1:]) / (v + sigma[:-1] ** 2)) / exact
    np.testing.assert_allclose([slope["euler"], slope["ddim"]], trained, rtol=1e-9)
    np.testing.assert_allclose([trained, slope["heun"]], FIXED_POINTS[points], atol=6e-5)


def consistency_network(process, param, gaussian=GAUSSIAN, t_min=0.0, time_of_label=lambda label: label / 999):
    """The network whose consistency function is the exact one: the flow of the Gaussian to t_min."""
    start = jnp.float64(t_min)
    row = jax.vmap(lambda x, t: gaussian.flow(process, x[None], t, start)[0] / process.alpha(start))
    f = lambda x, t, cond=None: row(x, t)
    return network_of(f, param, process, time_of_label)


CONTINUOUS = {
    "trig": (Trig(sigma_data=0.6), P.edm_preconditioning(0.6, P.time_label), 0.0),
    "edm": (EDM(), P.consistency(0.5, label=P.time_label), 0.0),
    "vp": (VP(), P.consistency(0.5, 1e-3, P.time_label), 1e-3),
    "rectified_flow": (RectifiedFlow(), P.edm_preconditioning(0.5, P.time_label), 0.0),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_tangent_of_the_exact_function_is_zero(name):
    process, param, t_min = CONTINUOUS[name]
    t = jnp.linspace(0.05, 0.95, 8)
    x = jax.random.normal(jax.random.key(0), (8, 2)) * bcast(
        jnp.hypot(process.alpha(t), process.sigma(t)), jnp.ones((8, 2))
    )
    network = consistency_network(process, param, t_min=t_min)
    velocity = P.velocity(process, GAUSSIAN.denoiser(process), x, t)
    output, g = consistency.tangent(network, param, process, x, t, velocity, 0.6)
    np.testing.assert_allclose(g, 0, atol=1e-9)
    loss = lambda out: consistency.tangent_loss(out, consistency.Tangent(output, g)).sum()
    np.testing.assert_allclose(jax.grad(loss)(output), 0, atol=1e-9)
    # The ODE of another distribution is not its own.
    other = P.velocity(process, OTHER.denoiser(process), x, t)
    assert jnp.abs(consistency.tangent(network, param, process, x, t, other, 0.6).tangent).max() > 1e-2


def test_on_trigflow_the_tangent_is_algorithm_1_of_the_paper():
    """g of arXiv:2410.11081 with F = -ours, cos and sin of theta, and dF / dtheta by central differences."""
    sigma_data, r = 0.6, 0.3
    process, param = CONTINUOUS["trig"][:2]
    t, x = jnp.linspace(0.1, 0.9, 5), jax.random.normal(jax.random.key(0), (5, 2))
    weights = jax.random.normal(jax.random.key(1), (2, 2))
    network = lambda x, c_noise: jnp.tanh(x @ weights) * jnp.sin(c_noise / 300)[:, None]
    z, x_0 = sigma_data * jax.random.normal(jax.random.key(2), (5, 2)), jax.random.normal(jax.random.key(3), (5, 2))
    theta = jnp.pi / 2 * t
    cos, sin = jnp.cos(theta)[:, None], jnp.sin(theta)[:, None]
    dx = cos * z - sin * x_0  # by theta

    F = lambda x, theta: -network(x / sigma_data, 999 * theta * 2 / jnp.pi)
    h = 1e-5
    dF = (F(x + h * dx, theta + h) - F(x - h * dx, theta - h)) / (2 * h)
    expected = -(cos**2) * (sigma_data * F(x, theta) - dx) - r * cos * sin * (x + sigma_data * dF)
    output, g = consistency.tangent(network, param, process, x, t, jnp.pi / 2 * dx, sigma_data, r)
    np.testing.assert_allclose(output, -F(x, theta), rtol=1e-9)
    np.testing.assert_allclose(g, expected, rtol=1e-6, atol=1e-9)
    # The gradient of the loss by F is that of f times g / (|g| + c), up to the mean over entries.
    gradient = jax.grad(lambda out: consistency.tangent_loss(out, consistency.Tangent(output, g)).sum())(output)
    norm = np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(gradient, expected / (norm + 0.1), rtol=1e-6)


def test_pseudo_huber_may_be_of_each_entry():
    a, b = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    expected = np.mean(np.sqrt((np.asarray(a) - np.asarray(b)) ** 2 + 0.001**2) - 0.001, axis=(1, 2))
    np.testing.assert_allclose(consistency.huber(c=0.001, entrywise=True).measure({}, a, b), expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"c is 0\.0; it must be positive with entrywise=True"):
        consistency.huber(entrywise=True)


def test_pseudo_huber_is_of_the_whole_example():
    a, b = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    norm = np.linalg.norm((a - b).reshape(3, -1), axis=1)
    c = 0.00054 * np.sqrt(20)
    measure = consistency.huber().measure
    np.testing.assert_allclose(measure({}, a, b), np.sqrt(norm**2 + c**2) - c, rtol=1e-6)
    np.testing.assert_allclose(consistency.huber(c=1e-8).measure({}, a, b), norm, rtol=1e-6)
    wide = 1e3
    np.testing.assert_allclose(consistency.huber(c=wide).measure({}, a, b), norm**2 / (2 * wide), rtol=1e-5)
    gradient = jax.grad(lambda a: measure({}, a, b).sum())(a).reshape(3, -1)
    np.testing.assert_allclose(np.linalg.norm(gradient, axis=1), 1, rtol=1e-4)  # whatever the distance
    np.testing.assert_array_equal(jax.grad(lambda a: measure({}, a, a.copy()).sum())(b), 0)  # finite where it is 0


def test_distances_and_weights():
    a, b = jnp.arange(6.0).reshape(2, 3), jnp.ones((2, 3))
    np.testing.assert_allclose(consistency.l2().measure({}, a, b), [2 / 3, (4 + 9 + 16) / 3])
    np.testing.assert_allclose(consistency.l1().measure({}, a, b), [2 / 3, 3])
    t, s = jnp.array([0.5, 0.2, 0.1]), jnp.array([0.1, 0.0, 0.1])
    process = EDM(sigma_min=0.0, sigma_max=10.0)
    np.testing.assert_allclose(consistency.l2("inverse_gap").weight(process, t, s), [1 / 4, 1 / 2, 0])
    np.testing.assert_array_equal(consistency.l2().weight(process, t, s), 1)
    with pytest.raises(ValueError, match="weight is 'gap'"):
        consistency.l1("gap")
    with pytest.raises(ValueError, match="c is -1"):
        consistency.huber(c=-1.0)


def test_inverse_gap_gives_the_output_of_the_network_equal_gradients_below_sigma_1():
    """The gradient of a pair by F is the weight times c_out, as that of pseudo-Huber by f has norm 1."""
    process, param = EDM(), P.consistency(0.5)
    times = jnp.float64(grids.karras()(process, 17))
    t, s = times[:-1], times[1:]
    low, high = process.sigma(t) < 1, process.sigma(t) > 5
    gradient = {
        weight: np.asarray(consistency.huber(weight=weight).weight(process, t, s) * param(process, t).c_out)
        for weight in consistency.WEIGHTS
    }
    spread = {weight: size[low].max() / size[low].min() for weight, size in gradient.items()}
    assert spread["inverse_gap"] < 2 < 50 < spread["equal"]
    # Where there is almost only noise, all pairs say the same, and have less.
    assert gradient["inverse_gap"][high].max() < gradient["inverse_gap"][low].min() / 2


@pytest.mark.parametrize("name", ["edm", "vp"])
def test_parameterization_keeps_x_at_t_min(name):
    process, param, t_min = CONTINUOUS[name]
    c = param(process, jnp.float64([t_min, 0.3]))
    np.testing.assert_allclose(process.alpha(jnp.float64(t_min)) * c.c_skip[0], 1, rtol=1e-12)
    assert c.c_out[0] == 0 and c.c_out[1] > 0.1


def test_consistency_coefficients_are_those_of_the_paper():
    """arXiv:2303.01469, appendix C, for sigma_data = 0.5 and epsilon = 0.002, at t = 0.5 and 80."""
    process = EDM()
    t = jnp.float64([(0.5 - 0.002) / (80 - 0.002), 1.0])
    c = P.consistency(0.5)(process, t)
    sigma = np.array([0.5, 80.0])
    np.testing.assert_allclose(c.c_skip, 0.25 / ((sigma - 0.002) ** 2 + 0.25), rtol=1e-6)
    np.testing.assert_allclose(c.c_out, 0.5 * (sigma - 0.002) / np.sqrt(0.25 + sigma**2), rtol=1e-6)
    np.testing.assert_allclose(c.c_in, 1 / np.sqrt(sigma**2 + 0.25), rtol=1e-6)
    np.testing.assert_allclose(c.c_noise, np.log(sigma) / 4, rtol=1e-6)


def test_edm_preconditioning_on_trig_is_trigflow():
    """D = cos x + sigma_data sin F(x / sigma_data, t), up to F's sign, at both ends too; arXiv:2410.11081, eq. 6."""
    process, t = Trig(sigma_data=0.6), jnp.float64([0.0, 0.3, 1.0])
    theta = np.pi / 2 * np.asarray(t)
    np.testing.assert_allclose(process.alpha(t), np.cos(theta), atol=1e-15)
    np.testing.assert_allclose(process.sigma(t), 0.6 * np.sin(theta), atol=1e-15)
    assert process.alpha(t)[-1] == 0
    c = P.edm_preconditioning(0.6, P.time_label)(process, t)
    np.testing.assert_allclose(c.c_in, 1 / 0.6, rtol=1e-12)
    np.testing.assert_allclose(c.c_skip, np.cos(theta), atol=1e-12)
    np.testing.assert_allclose(c.c_out, 0.6 * np.sin(theta), atol=1e-12)
