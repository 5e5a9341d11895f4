"""Solvers of bridges against closed forms of Gaussian pairs and Gaussian Schroedinger bridges."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import processes, solvers
from diffusion_jax.processes import GaussianBridge, Reversed, brownian_bridge, i2sb_bridge, ve_bridge
from diffusion_jax.solvers import sampling
from diffusion_jax.solvers.bridge import bridge_posterior_of, bridge_velocity, kept_outside

GOLDEN = (5**0.5 - 1) / 2
BRIDGES = {"brownian": brownian_bridge(0.5), "i2sb": i2sb_bridge(), "ve": ve_bridge(0.002, 5.0)}
SOLVERS = {
    "posterior": solvers.bridge_posterior(),
    "ddim": solvers.bridge_ddim(),
    "ddim_half": solvers.bridge_ddim(0.5),
    "heun": solvers.bridge_heun(),
}


@pytest.mark.parametrize("name", BRIDGES)
def test_posterior_composes(name):
    """For a fixed x_0, q(x_r | x_t) is q(x_s | x_t) followed by q(x_r | x_s)."""
    bridge, (t, s, r) = BRIDGES[name], jnp.float32([0.9, 0.5, 0.2])
    (a1, b1, v1), (a2, b2, v2) = bridge_posterior_of(bridge, t, s), bridge_posterior_of(bridge, s, r)
    a, b, v = bridge_posterior_of(bridge, t, r)
    np.testing.assert_allclose([a2 * a1, a2 * b1 + b2, a2**2 * v1 + v2], [a, b, v], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", BRIDGES)
def test_posterior_is_that_of_the_reference(name):
    """Given x_0 and x_t, x_s does not depend on x_1: it is DDPM's posterior of the reference process."""
    bridge, (t, s) = BRIDGES[name], jnp.float32([0.7, 0.3])
    reference = solvers.base.posterior(bridge.reference, t, s)
    np.testing.assert_allclose(bridge_posterior_of(bridge, t, s), reference, rtol=1e-3, atol=1e-6)


def pair_denoiser(bridge, corr, conditioned):
    """E[x_0 | x_t] or E[x_0 | x_t, x_1] of a Gaussian pair of unit variances and correlation `corr`."""

    def D(x, t, cond=None):
        n, f, s = bridge.near(t), bridge.far(t), bridge.sigma(t)
        if not conditioned:
            return (n + f * corr) / (n**2 + f**2 + 2 * n * f * corr + s**2) * x
        x_1, rest = cond, 1 - corr**2
        return corr * x_1 + n * rest / (n**2 * rest + s**2 + 1e-12) * (x - f * x_1 - n * corr * x_1)

    return D


def slope_and_variance(solver, bridge, D, times):
    """x_0 = slope x_1 + noise, from runs that share their noise: D is linear."""
    ones, zeros = jnp.ones((3000, 1)), jnp.zeros((3000, 1))
    run = lambda x: sampling.sample(solver, bridge, lambda x_t, t: D(x_t, t, x), jax.random.key(0), x, times)
    at_0, at_1 = run(zeros), run(ones)
    return float(jnp.mean(at_1 - at_0)), float(jnp.var(at_0))


@pytest.mark.parametrize("name", SOLVERS)
def test_with_x1_the_coupling_is_right(name):
    """A Gaussian pair with correlation 0.8 over Brownian motion of variance 0.25: slope 0.8, variance 0.36."""
    bridge, times = brownian_bridge(0.5), jnp.linspace(1.0, 1e-3, 201)
    slope, variance = slope_and_variance(SOLVERS[name], bridge, pair_denoiser(bridge, 0.8, True), times)
    assert slope == pytest.approx(0.8, abs=0.004)
    assert variance == pytest.approx(0.36, rel=0.1)


def test_without_x1_the_marginal_is_right_and_the_coupling_drifts():
    """D = E[x_0 | x_t] keeps unit variance and couples by 0.880, not 0.8: why DDBM's network receives x_1."""
    bridge, times = brownian_bridge(0.5), jnp.linspace(1.0, 0.0, 401)
    slope, variance = slope_and_variance(solvers.bridge_posterior(), bridge, pair_denoiser(bridge, 0.8, False), times)
    assert slope == pytest.approx(0.880, abs=0.004)
    assert slope**2 + variance == pytest.approx(1.0, abs=0.03)


def test_schroedinger_bridge_is_characterised_by_its_precision():
    """The off-diagonal block of the precision of (x_0, x_1) is -I / s2, for no other coupling of these marginals."""
    a = jnp.float32([[1.0, 0.3], [0.3, 0.5]])
    b = jnp.float32([[0.6, -0.2], [-0.2, 1.5]])
    exact = GaussianBridge(
        mean_0=jnp.zeros(2), mean_1=jnp.ones(2), covariance_0=a, covariance_1=b, variance=jnp.float32(0.7)
    )
    c = exact.coupling
    precision = np.linalg.inv(np.block([[np.asarray(a), np.asarray(c)], [np.asarray(c).T, np.asarray(b)]]))
    np.testing.assert_allclose(precision[:2, 2:], -np.eye(2) / 0.7, atol=1e-4)


@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_exact_drifts_carry_one_gaussian_to_the_other(direction):
    a, b = jnp.float32([[1.0, 0.3], [0.3, 0.5]]), jnp.float32([[0.6, -0.2], [-0.2, 1.5]])
    exact = GaussianBridge(
        mean_0=jnp.zeros(2), mean_1=jnp.ones(2), covariance_0=a, covariance_1=b, variance=jnp.float32(0.49)
    )
    bridge = brownian_bridge(0.7)
    process, D, start, cov_start, cov_end = (
        (bridge, exact.backward, exact.mean_1, b, a)
        if direction == "backward"
        else (Reversed(bridge=bridge), exact.forward, exact.mean_0, a, b)
    )
    x = jax.random.multivariate_normal(jax.random.key(1), start, cov_start, (8000,))
    y = sampling.sample(solvers.bridge_posterior(), process, D, jax.random.key(0), x, jnp.linspace(1.0, 0.0, 61))
    np.testing.assert_allclose(np.cov(np.asarray(y).T), cov_end, atol=0.08)
    cross = np.cov(np.asarray(x).T, np.asarray(y).T)[:2, 2:]
    expected = exact.coupling if direction == "forward" else exact.coupling.T
    np.testing.assert_allclose(cross, expected, atol=0.06)


@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_ends_given_starts_have_the_coupling_of_the_bridge(direction):
    """With the noise sqrt(n) e_i the sample is linear: gain A gain' plus its noise is B, and gain A the coupling."""
    a, b = jnp.float32([[1.0, 0.3], [0.3, 0.5]]), jnp.float32([[0.6, -0.2], [-0.2, 1.5]])
    exact = GaussianBridge(
        mean_0=jnp.zeros(2), mean_1=jnp.ones(2), covariance_0=a, covariance_1=b, variance=jnp.float32(0.7)
    )
    (m, start), (n, end), c = (exact.mean_0, a), (exact.mean_1, b), exact.coupling.T
    if direction == "backward":
        (m, start), (n, end), c = (n, end), (m, start), c.T
    mean = exact.end_given_start(direction, m[None], jnp.zeros((1, 2)))
    np.testing.assert_allclose(mean[0], n, atol=1e-6)
    gain = (exact.end_given_start(direction, m + jnp.eye(2), jnp.zeros((2, 2))) - mean).T
    root = (exact.end_given_start(direction, jnp.stack([m, m]), jnp.eye(2)) - mean).T
    np.testing.assert_allclose(gain @ start, c, atol=1e-5)
    np.testing.assert_allclose(gain @ start @ gain.T + root @ root.T, end, atol=1e-5)


def test_i2sb_is_ddbm_on_its_ve_process():
    """At times of equal sigma both are one process, so that the same D gives the same samples by each solver."""
    i2sb = i2sb_bridge()
    ve = ve_bridge(1e-6, float(i2sb.reference.sigma(jnp.float32(1))))
    times = jnp.linspace(1.0, 0.05, 9)
    sigma = i2sb.reference.sigma(times)
    other = (sigma - 1e-6) / (sigma[0] - 1e-6)
    for name in ("near", "far", "sigma"):
        np.testing.assert_allclose(getattr(i2sb, name)(times), getattr(ve, name)(other), atol=2e-4)
    x_1 = jax.random.normal(jax.random.key(3), (5, 2))

    def run(solver, bridge, times):
        # D depends on the level of noise alone, which is what the two processes have in common.
        D = lambda x, t: jnp.tanh(2 * x + bridge.reference.sigma(t)) + 0.3 * x_1
        return sampling.sample(solver, bridge, D, jax.random.key(0), x_1, times)

    for solver in (solvers.bridge_posterior(), solvers.bridge_ddim(), solvers.bridge_ddim(0.5)):
        np.testing.assert_allclose(run(solver, i2sb, times), run(solver, ve, other), atol=1e-3)
    uneven = other.at[3].add(0.05)  # the control: another grid gives other samples
    assert np.abs(run(solver, i2sb, times) - run(solver, ve, uneven)).max() > 1e-2


def test_ddbm_far_from_its_end_samples_as_edm():
    """For sigma_max -> infinity a step of the ODE is DDIM's on the reference process, that of EDM."""
    bridge, (t, s) = ve_bridge(0.002, 1e5), (jnp.float32([2.0, 0.7]) - 0.002) / (1e5 - 0.002)
    x, x_1 = jax.random.normal(jax.random.key(0), (2, 4, 3))
    D, keys = lambda x, t: jnp.tanh(x), jax.random.split(jax.random.key(1), 4)
    ours, _ = solvers.bridge_ddim().step(bridge, D, keys, x, t, s, x_1)
    ddim = solvers.ddim()
    reference, _ = ddim.step(bridge.reference, D, keys, x, t, s, ddim.init(x))
    np.testing.assert_allclose(ours, reference, rtol=1e-3, atol=1e-3)
    other, _ = solvers.bridge_ddim().step(ve_bridge(0.002, 5.0), D, keys, x, jnp.float32(0.4), jnp.float32(0.14), x_1)
    assert np.abs(other - reference).max() > 1e-2


def transported(coupling, variance_0, variance_1, direction, steps=2000):
    """(Cov(x_0, x_1), variance of the new end) of what the exact denoiser of a Gaussian coupling makes, s = 1.

    The bridge is the Brownian one between pairs with this covariance and these variances; the denoiser is its Markov
    projection. The other end starts from variance 1.
    """
    v_near, v_far = (variance_0, variance_1) if direction == "backward" else (variance_1, variance_0)

    def D(x, t, cond=None):
        n, f, s2 = 1 - t, t, t * (1 - t)
        return (n * v_near + f * coupling) / (n**2 * v_near + f**2 * v_far + 2 * n * f * coupling + s2) * x

    slope, variance = 1.0, 0.0
    times = np.linspace(1, 0, steps + 1)
    for t, s in itertools.pairwise(times):
        a, b, v = (float(c) for c in _posterior(t, s))
        gain = a + b * D(1.0, t)
        slope, variance = gain * slope, gain**2 * variance + v
    return slope, slope**2 + variance


def _posterior(t, s):
    return s / t, 1 - s / t, s * (t - s) / t


def test_the_scalar_posterior_above_is_the_solvers():
    for t, s in ((0.9, 0.4), (1.0, 0.2)):
        ours = bridge_posterior_of(brownian_bridge(1.0), jnp.float32(t), jnp.float32(s))
        np.testing.assert_allclose(_posterior(t, s), ours, rtol=1e-5, atol=1e-6)


def test_imf_converges_to_the_schroedinger_bridge():
    """Iterative Markovian fitting between unit Gaussians: .5463, .6111, .6174, ... -> (sqrt 5 - 1) / 2."""
    coupling, found = 0.0, []
    for _ in range(6):
        coupling, variance = transported(coupling, 1.0, 1.0, "backward")
        assert variance == pytest.approx(1.0, abs=6e-3)
        found.append(coupling)
    np.testing.assert_allclose(found[:3], [0.5463, 0.6111, 0.6174], atol=2e-3)
    assert found[-1] == pytest.approx(GOLDEN, abs=2e-3)


def test_ipf_converges_through_ratios_of_fibonacci_numbers():
    """From the reference process, alternating: 1/2, 2/3, 3/5, 5/8, ... -> (sqrt 5 - 1) / 2."""
    coupling, v_0, v_1, found, direction = 1.0, 1.0, 2.0, [], "backward"
    for _ in range(8):
        slope, variance = transported(coupling, v_0, v_1, direction)
        coupling = slope  # the start has unit variance
        v_0, v_1 = (variance, 1.0) if direction == "backward" else (1.0, variance)
        direction = "forward" if direction == "backward" else "backward"
        found.append(coupling)
    np.testing.assert_allclose(found[:6], [1 / 2, 2 / 3, 3 / 5, 5 / 8, 8 / 13, 13 / 21], atol=2e-3)
    assert found[-1] == pytest.approx(GOLDEN, abs=2e-3)


def test_velocity_is_the_derivative_of_the_bridge():
    """With D = x_0 the ODE follows x_t = n x_0 + f x_1 + sigma eps."""
    bridge = i2sb_bridge()
    x_0, x_1, eps = (jax.random.normal(jax.random.key(i), (3, 2)) for i in range(3))
    path = lambda t: bridge.near(t) * x_0 + bridge.far(t) * x_1 + bridge.sigma(t) * eps
    x, slope = jax.jvp(path, (jnp.float32(0.4),), (jnp.float32(1),))
    np.testing.assert_allclose(bridge_velocity(bridge, x_0, x, x_1, jnp.float32(0.4)), slope, rtol=1e-3, atol=1e-5)


def test_ode_converges_in_the_order_of_its_method():
    """From a middle time, with the exact conditional denoiser: halving the step divides the error by 2 and by 4."""
    bridge = brownian_bridge(0.5)
    D, x = pair_denoiser(bridge, 0.5, True), jnp.float32([[1.3], [-0.4]])
    x_1 = jnp.float32([[0.5], [1.0]])

    def run(solver, steps):
        from_end = solver._replace(init=lambda x: x_1)
        times = jnp.linspace(0.8, 0.1, steps + 1)
        return sampling.sample(from_end, bridge, lambda x, t: D(x, t, x_1), jax.random.key(0), x, times)

    for solver, order in ((solvers.bridge_ddim(), 1), (solvers.bridge_heun(churn=0.0), 2)):
        exact = run(solvers.bridge_heun(churn=0.0), 1000)
        errors = [float(jnp.abs(run(solver, n) - exact).max()) for n in (8, 16)]
        assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)


def test_eta_one_is_the_posterior():
    bridge, D = brownian_bridge(0.5), pair_denoiser(brownian_bridge(0.5), 0.8, True)
    x_1 = jax.random.normal(jax.random.key(3), (5, 1))
    run = lambda solver: sampling.sample(
        solver, bridge, lambda x, t: D(x, t, x_1), jax.random.key(0), x_1, jnp.linspace(1.0, 0.0, 8)
    )
    # The same law: means agree to rounding where the noise is the same and enters once with its full weight.
    np.testing.assert_allclose(run(solvers.bridge_ddim(1.0)), run(solvers.bridge_posterior()), atol=2e-4)


def test_without_noise_sampling_is_deterministic_and_straight():
    """OT-ODE: for the exact pair x_0 = -x_1 the paths are straight lines between the two."""
    bridge = i2sb_bridge(noisy=False)
    x_1 = jnp.float32([[0.8], [-1.1]])
    path = sampling.sample(
        solvers.bridge_posterior(),
        bridge,
        lambda x, t: -x_1,
        jax.random.key(0),
        x_1,
        jnp.linspace(1.0, 0.0, 11),
        trajectory=True,
    )
    far = np.asarray(bridge.far(jnp.linspace(1.0, 0.0, 11)))
    np.testing.assert_allclose(path[..., 0], (2 * far - 1)[:, None] * np.asarray(x_1[:, 0]), atol=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_rows_do_not_depend_on_their_batch(name):
    bridge, times = brownian_bridge(0.5), jnp.linspace(1.0, 0.01, 6)
    D = pair_denoiser(bridge, 0.8, True)
    x_1 = jax.random.normal(jax.random.key(2), (6, 1))
    run = lambda x, ids: sampling.sample(
        SOLVERS[name], bridge, lambda x_t, t: D(x_t, t, x), jax.random.key(0), x, times, ids=ids
    )
    np.testing.assert_allclose(run(x_1, jnp.arange(6))[3:], run(x_1[3:], jnp.arange(3, 6)), rtol=1e-5, atol=1e-6)


def test_known_pixels_stay():
    bridge = i2sb_bridge()
    x_1 = jax.random.normal(jax.random.key(1), (2, 4, 4, 1))
    mask = jnp.zeros((2, 4, 4, 1)).at[:, :2].set(1.0)
    times = jnp.linspace(1.0, 0.0, 5)
    solver = kept_outside(solvers.bridge_posterior(), x_1, mask)
    y = sampling.sample(solver, bridge, lambda x, t: jnp.zeros_like(x), jax.random.key(0), x_1, times)
    np.testing.assert_allclose(y[:, 2:], x_1[:, 2:], atol=1e-6)
    np.testing.assert_allclose(y[:, :2], 0, atol=1e-6)


def test_refusals():
    x, times, D = jnp.zeros((1, 1)), jnp.linspace(1.0, 0.1, 3), lambda x, t: x
    with pytest.raises(ValueError, match="a first step with noise"):
        sampling.sample(solvers.bridge_heun(churn=0.0), brownian_bridge(), D, jax.random.key(0), x, times)
    with pytest.raises(ValueError, match="sigma > 0 where a step ends"):
        sampling.sample(solvers.bridge_heun(), i2sb_bridge(noisy=False), D, jax.random.key(0), x, times)
    with pytest.raises(ValueError, match="needs a bridge"):
        sampling.sample(solvers.bridge_ddim(), processes.VP(), D, jax.random.key(0), x, times)
    with pytest.raises(ValueError, match="a process that ends in noise"):
        sampling.sample(solvers.ddim(), brownian_bridge(), D, jax.random.key(0), x, times)
    with pytest.raises(ValueError, match="churn is 1"):
        solvers.bridge_heun(1.0)
