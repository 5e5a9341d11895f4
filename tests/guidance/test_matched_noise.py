"""Denoising at matched time: D is the Wiener filter, draws have twice its error, and their mean V (1 + 1/K)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax import solvers
from diffusion_jax.config import build
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.evaluation.translation import calibration
from diffusion_jax.guidance.matched_noise import NOISY, denoising
from diffusion_jax.processes import row_keys
from diffusion_jax.processes.base import log_snr
from diffusion_jax.run import requests
from diffusion_jax.run.job import prepare
from diffusion_jax.solvers.sampling import sample
from tests.oracles import PROCESSES, Gaussian
from tests.runs import digits

# Two pixels of a Gaussian image, which neither have zero mean nor are independent.
COVARIANCE = np.array([[0.5, 0.3], [0.3, 0.4]])
PRIOR = Gaussian(mean=jnp.array([0.2, -0.4]), covariance=jnp.asarray(COVARIANCE, jnp.float32))
NOISE = 0.4
WIENER = COVARIANCE @ np.linalg.inv(COVARIANCE + NOISE**2 * np.eye(2))
VARIANCE = np.trace(COVARIANCE - WIENER @ COVARIANCE) / 2  # E Var[x | y], a pixel
encode = lambda x, times: x


def noisy(num: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.asarray(PRIOR.sample(jax.random.key(7), num))
    return x, x + NOISE * np.float32(np.random.default_rng(0).standard_normal(x.shape))


def denoised(process, solver, y: np.ndarray, steps: int, seed: int = 0, noise: float = NOISE) -> np.ndarray:
    times = jnp.linspace(1.0, 0.0, steps + 1)

    @jax.jit
    def run(key, y):
        keys = row_keys(key, jnp.arange(len(y)))
        x, below = denoising(noise).start(process, encode, keys, jnp.zeros_like(y), times, {NOISY: y})
        return sample(solver, process, PRIOR.denoiser(process), key, x, below)

    return np.asarray(run(jax.random.key(seed), jnp.asarray(y)))


@pytest.mark.parametrize("name", ["vp", "cosine", "edm", "rectified_flow"])
def test_one_step_is_the_wiener_filter(name):
    """D(alpha y, t*) = m + C (C + s^2 I)^-1 (y - m), whatever the process."""
    _, y = noisy(16)
    mean = np.asarray(PRIOR.mean)
    found = denoised(PROCESSES[name], solvers.ddim(), y, 1)
    np.testing.assert_allclose(found, mean + (y - mean) @ WIENER.T, atol=5e-3)  # EDM ends at sigma 0.002
    other = denoised(PROCESSES[name], solvers.ddim(), y, 1, noise=2 * NOISE)
    assert np.abs(other - found).max() > 0.05  # the time matters


def test_the_start_is_the_image_at_the_time_of_its_noise():
    process, y, keys = PROCESSES["vp"], jnp.ones((3, 2)), jax.random.split(jax.random.key(0), 3)
    times = jnp.linspace(1.0, 0.001, 11)
    x, below = denoising(NOISE).start(process, encode, keys, y, times, {NOISY: y})
    assert float(log_snr(process, below[0])) == pytest.approx(-2 * np.log(NOISE), abs=1e-3)
    np.testing.assert_allclose(x, process.alpha(below[0]) * y, rtol=1e-5)
    assert len(below) == 11 and float(below[-1]) == pytest.approx(0.001, rel=1e-3) and (jnp.diff(below) < 0).all()
    _, all_clean = denoising(1e-6).start(process, encode, keys, y, times, {NOISY: y})
    assert np.allclose(all_clean, 0.001)  # less noise than at the last time


def test_draws_have_twice_the_error_of_the_estimate_and_their_mean_less():
    """The reverse SDE from t* draws from p(x | y): MSE 2 V, of the mean of K draws V (1 + 1/K), calibration 1."""
    x, y = noisy(8000)
    process, k = PROCESSES["vp"], 4
    estimate = denoised(process, solvers.ddim(), y, 1)
    assert np.square(estimate - x).mean() == pytest.approx(VARIANCE, rel=0.05)
    draws = denoised(process, solvers.ancestral(), np.tile(y, (k, 1)), 100).reshape(k, *y.shape)
    law = calibration(draws, x)
    assert law["mse"] == pytest.approx(2 * VARIANCE, rel=0.05)
    assert law["mean_mse"] == pytest.approx(VARIANCE * (1 + 1 / k), rel=0.05)
    assert law["gain"] == pytest.approx(law["gain_exact"], rel=0.05) and law["gain_exact"] == 1.6
    assert law["calibration"] == pytest.approx(1, abs=0.05)
    assert law["spread"] == pytest.approx(VARIANCE**0.5, rel=0.03)


def test_the_ode_draws_from_no_posterior():
    """The probability-flow ODE gives one image for each y, between the estimate and the draws in error."""
    x, y = noisy(8000)
    process = PROCESSES["vp"]
    found = denoised(process, solvers.ddim(), y, 100)
    np.testing.assert_array_equal(found, denoised(process, solvers.ddim(), y, 100, seed=1))
    error = np.square(found - x).mean() / VARIANCE
    assert 1.02 < error < 1.9


def test_noise_that_multiplies_is_additive_after_the_logarithm():
    """x = 1 + 2 log v / log 256 of v exp(s n) is that of v plus 2 s n / log 256."""
    rng = np.random.default_rng(0)
    v, n, s = rng.uniform(0.1, 1, 1000), rng.standard_normal(1000), 0.3
    log = lambda v: 1 + 2 * np.log(v) / np.log(256)
    np.testing.assert_allclose(log(v * np.exp(s * n)) - log(v), 2 * s * n / np.log(256), atol=1e-12)


def config(**editing) -> ConfigDict:
    chosen = ConfigDict(dict(name="denoising", **editing))
    return digits(network__hidden=8, editing=chosen, sampling__steps=2, evaluation__num_samples=20)


def test_held_out_examples_get_the_noise_and_samples_of_one_share_it():
    made = config(noise=0.3)
    made.sampling.samples_per_condition = 5
    job = prepare(made)
    cond = requests.conditions(job, 20)
    assert cond[NOISY].shape == (20, 8, 8, 1)
    np.testing.assert_array_equal(cond[NOISY][0], cond[NOISY][4])
    panels = requests.compared(job, cond)
    residual = panels["measured"] - panels["original"]
    assert residual.std() == pytest.approx(0.3, rel=0.15)


@pytest.mark.parametrize(
    ("editing", "words"),
    [
        (dict(noise=0.0), ["config.editing", "noise is 0.0; it must be positive"]),
        (dict(noise=-0.1), ["noise is -0.1; it must be positive"]),
        (dict(noise=0.1, strength=0.5), ["strength"]),
    ],
)
def test_what_is_no_noise_is_refused(editing, words):
    with pytest.raises(ConfigError) as refusal:
        build.system(config(**editing))
    assert all(word in str(refusal.value) for word in words), str(refusal.value)
