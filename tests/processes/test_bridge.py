"""Bridges: pinned ends, Doob's transform of the reference, I2SB's schedule, and the limits between families."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import parameterizations, processes
from diffusion_jax.processes import EDM, VP, Bridge, Brownian, Reversed, SymmetricVE
from diffusion_jax.processes.needs import unmet
from diffusion_jax.types import BridgeProcess, Needs

BRIDGES = {
    "brownian": processes.brownian_bridge(0.5),
    "i2sb": processes.i2sb_bridge(),
    "ve": processes.ve_bridge(0.002, 5.0),
    "vp": processes.vp_bridge(),
}
T = jnp.linspace(0.05, 0.95, 19)


@pytest.mark.parametrize("name", BRIDGES)
def test_ends_are_pinned(name):
    bridge = BRIDGES[name]
    near, far, sigma = (np.asarray(f(jnp.float32([0, 1]))) for f in (bridge.near, bridge.far, bridge.sigma))
    np.testing.assert_allclose(near, [1, 0], atol=1e-6)
    np.testing.assert_allclose(far, [0, 1], atol=1e-6)
    np.testing.assert_allclose(sigma, [bridge.reference.sigma(jnp.float32(0)), 0], atol=1e-6)
    assert isinstance(bridge, BridgeProcess) and not isinstance(bridge.reference, BridgeProcess)


@pytest.mark.parametrize("name", BRIDGES)
def test_is_the_reference_given_its_end(name):
    """(x_t, x_1) of the reference given x_0 is jointly Gaussian; its conditional law is the bridge."""
    bridge, reference = BRIDGES[name], BRIDGES[name].reference
    one = jnp.float32(1)
    alpha, sigma = np.asarray(reference.alpha(T), np.float64), np.asarray(reference.sigma(T), np.float64)
    alpha_1, sigma_1 = float(reference.alpha(one)), float(reference.sigma(one))
    cov = alpha_1 / alpha * sigma**2  # of x_t and x_1 = (alpha_1 / alpha) x_t + independent noise
    gain = cov / sigma_1**2
    np.testing.assert_allclose(bridge.far(T), gain, rtol=2e-5)
    np.testing.assert_allclose(bridge.near(T), alpha - gain * alpha_1, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(bridge.sigma(T) ** 2, sigma**2 - gain * cov, rtol=1e-3, atol=1e-7)


def test_brownian_bridge_is_the_textbook_one():
    bridge = BRIDGES["brownian"]
    np.testing.assert_allclose(bridge.near(T), 1 - T, atol=1e-6)
    np.testing.assert_allclose(bridge.sigma(T), 0.5 * np.sqrt(T * (1 - T)), rtol=1e-5)


@pytest.mark.parametrize(("beta_max", "variance"), [(0.3, 0.141), (1.0, 0.247)])
def test_i2sb_schedule_is_that_of_its_code(beta_max, variance):
    """Cumulative sums of the authors' thousand betas, which differ from the integral by one beta at most."""
    half = np.linspace(1e-4**0.5, (beta_max / 1000) ** 0.5, 1000)[:500] ** 2
    betas = np.concatenate([half, half[::-1]])
    forward, backward = np.cumsum(betas), np.cumsum(betas[::-1])[::-1]
    assert forward[-1] == pytest.approx(variance, abs=5e-4)
    bridge, t = processes.i2sb_bridge(beta_max=beta_max), jnp.arange(1, 1000, 37) / 1000
    index = np.asarray(t * 1000).round().astype(int) - 1
    np.testing.assert_allclose(bridge.reference.sigma(t) ** 2, forward[index], rtol=2e-3, atol=1e-6)
    far = forward / (forward + backward)
    np.testing.assert_allclose(bridge.far(t), far[index], atol=2e-3)
    np.testing.assert_allclose(bridge.sigma(t) ** 2, (forward * backward / (forward + backward))[index], atol=2e-4)


def test_i2sb_is_symmetric():
    reference = SymmetricVE(beta_max=1.0)
    total = reference.sigma(jnp.float32(1)) ** 2
    np.testing.assert_allclose(
        reference.sigma(T) ** 2 + reference.sigma(1 - T) ** 2, jnp.full_like(T, total), rtol=1e-5
    )


def test_ve_bridge_in_variance_time_is_brownian():
    """DDBM's VE bridge at sigma is the Brownian bridge at sigma^2 / sigma_max^2, as I2SB with its variance as time."""
    ve = Bridge(reference=EDM(sigma_min=0.0, sigma_max=3.0))
    brownian = Bridge(reference=Brownian(scale=3.0))
    for f in ("near", "far", "sigma"):
        np.testing.assert_allclose(getattr(ve, f)(T), getattr(brownian, f)(T**2), rtol=1e-4, atol=1e-6)


def test_vp_bridge_has_the_coefficients_of_ddbm():
    """a_t, b_t, c_t of alexzhou907/DDBM ddbm/karras_diffusion.py, in float64."""
    t = np.asarray(T, np.float64)
    log_snr = lambda t: -np.log(np.expm1(0.5 * 2 * t**2 + 0.1 * t))
    log_s = lambda t: -0.25 * t**2 * 2 - 0.5 * t * 0.1
    ratio = np.exp(log_snr(1.0) - log_snr(t))
    bridge = BRIDGES["vp"]
    np.testing.assert_allclose(bridge.far(T), ratio * np.exp(log_s(t) - log_s(1.0)), rtol=1e-4)
    np.testing.assert_allclose(bridge.near(T), (1 - ratio) * np.exp(log_s(t)), rtol=1e-4)
    np.testing.assert_allclose(bridge.sigma(T) ** 2, (1 - ratio) * np.exp(2 * log_s(t) - log_snr(t)), rtol=1e-4)


def test_reversing_twice_changes_nothing():
    bridge = BRIDGES["i2sb"]
    twice = Reversed(bridge=Reversed(bridge=bridge))
    np.testing.assert_allclose(twice.far(T), bridge.far(T), atol=1e-6)
    np.testing.assert_allclose(Reversed(bridge=bridge).far(T), bridge.near(1 - T), atol=1e-6)


def test_without_noise_the_means_stay():
    quiet, loud = processes.i2sb_bridge(noisy=False), BRIDGES["i2sb"]
    np.testing.assert_array_equal(quiet.near(T), loud.near(T))
    assert not np.any(quiet.sigma(T))


def test_the_far_end_keeps_its_digits_near_the_example():
    """DDBM's VE with sigma_max = 80, down to sigma = 0.002: far = sigma^2 / 80^2 is below the rounding of 1."""
    bridge = processes.ve_bridge()
    sigma = np.float32([0.002, 0.01, 0.5, 20])
    t = (sigma - 0.002) / (80 - 0.002)
    np.testing.assert_allclose(bridge.far(jnp.asarray(t)), (sigma / 80.0) ** 2, rtol=1e-3)


def test_samples_have_the_mean_and_deviation():
    bridge, t = BRIDGES["brownian"], jnp.float32(0.3)
    x_0, x_1 = jnp.zeros((40_000, 1)), jnp.full((40_000, 1), 2.0)
    x = np.asarray(processes.perturb_between(bridge, jax.random.key(0), x_0, x_1, t))
    assert x.mean() == pytest.approx(0.6, abs=5e-3) and x.std() == pytest.approx(0.5 * np.sqrt(0.21), rel=0.02)
    with pytest.raises(TypeError):
        processes.perturb_between(processes.brownian_bridge, jax.random.key(0), x_0, x_1, t)


def test_parts_of_bridges_and_of_noise_do_not_mix():
    times = np.float32([1, 0.5])
    assert unmet(Needs(bridge=True), VP(), times).need.startswith("a bridge")
    assert "bridge" in unmet(Needs(), BRIDGES["vp"], times).has
    assert unmet(Needs(bridge=True), BRIDGES["vp"], times) is None
    assert "sigma = 0 at t = 1" in unmet(Needs(bridge=True, sigma=True), BRIDGES["vp"], times).has


def test_ddbm_becomes_edm_far_from_its_end():
    """With x_1 = 0 on average and sigma_max -> infinity the preconditioning is EDM's."""
    far, near = processes.ve_bridge(0.002, 1e5), EDM(sigma_min=0.002, sigma_max=1e5)
    t = (jnp.geomspace(0.01, 50.0, 9) - 0.002) / (1e5 - 0.002)
    ours = parameterizations.ddbm_preconditioning(sigma_data=0.5, sigma_end=0.5)(far, t)
    edm = parameterizations.edm_preconditioning(0.5)(near, t)
    for name in ("c_in", "c_skip", "c_out"):
        np.testing.assert_allclose(getattr(ours, name), getattr(edm, name), rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(ours.c_noise, 1000 * edm.c_noise, rtol=1e-4)


def test_ddbm_inputs_and_targets_have_unit_variance():
    """For x_0 and x_1 of the given deviations and covariance, in closed form."""
    s0, s1, cov = 0.7, 0.4, 0.2
    bridge = BRIDGES["vp"]
    c = parameterizations.ddbm_preconditioning(
        label=parameterizations.time_label, sigma_data=s0, sigma_end=s1, covariance=cov
    )(bridge, T)
    a, b, s = (np.asarray(f(T), np.float64) for f in (bridge.far, bridge.near, bridge.sigma))
    variance = a**2 * s1**2 + b**2 * s0**2 + 2 * a * b * cov + s**2
    np.testing.assert_allclose(np.asarray(c.c_in) ** 2 * variance, 1, rtol=1e-5)
    # The target x_0 - c_skip x_t, over c_out: unit variance, and uncorrelated with x_t.
    with_x = b * s0**2 + a * cov
    skip = np.asarray(c.c_skip, np.float64)
    np.testing.assert_allclose(with_x - skip * variance, 0, atol=1e-5)
    np.testing.assert_allclose((s0**2 - skip * with_x) / np.asarray(c.c_out) ** 2, 1, rtol=1e-3)


def test_i2sb_prediction_inverts_its_label():
    bridge, x, x_0 = BRIDGES["i2sb"], jnp.float32([[0.3], [0.7]]), jnp.float32([[-0.2], [0.5]])
    t = jnp.float32([0.2, 0.9])
    label = (x - x_0) / bridge.reference.sigma(t)[:, None]
    D = parameterizations.denoiser(lambda x, c, cond: label, parameterizations.i2sb_prediction(), bridge)
    np.testing.assert_allclose(D(x, t), x_0, rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: processes.brownian_bridge(0.0),
        lambda: processes.i2sb_bridge(beta_max=0.0),
        lambda: processes.ve_bridge(1.0, 0.5),
        lambda: processes.vp_bridge(0.0),
        lambda: parameterizations.ddbm_preconditioning(covariance=0.3, sigma_data=0.5, sigma_end=0.5),
    ],
)
def test_impossible_numbers_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()
