"""Multistep sampling with the exact consistency function of a Gaussian has exactly its law, in any number of steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import solvers
from diffusion_jax.parameterizations import denoiser, index_label, latent_consistency
from diffusion_jax.processes import EDM, VP, DiscreteVP, Trig, beta_table, prior, row_keys, row_normal
from diffusion_jax.solvers import grids
from diffusion_jax.solvers.sampling import sample
from tests.oracles import Gaussian

GAUSSIAN = Gaussian(mean=np.array([0.3, -0.2], np.float32), covariance=np.array([[0.5, 0.2], [0.2, 0.3]], np.float32))
DISCRETE = DiscreteVP.from_betas(beta_table("linear", 1000))


def function_of(process, t_min):
    start = jnp.float32(t_min)
    return lambda x, t, cond=None: GAUSSIAN.flow(process, x, t, start) / process.alpha(start)


@pytest.mark.parametrize(
    ("process", "t_min", "values"),
    [
        (EDM(), 0.0, (80.0,)),
        (EDM(), 0.0, (80.0, 0.821)),
        (EDM(sigma_min=0.3), 0.0, (80.0, 2.0, 0.5)),  # whose noise at the end is not small
        (VP(), 0.05, (100.0, 1.0, 0.6)),
        (Trig(sigma_data=0.5), 0.0, (1e6, 1.1)),
    ],
    ids=["edm_1", "edm_2", "edm_3_coarse", "vp_3", "trig_2"],
)
def test_the_law_is_exact_in_any_number_of_steps(process, t_min, values):
    number = 20_000
    times = grids.noise_levels(values, t_min)(process, len(values))
    x_T = prior(process, jax.random.key(0), (number, 2), t=times[0]) + process.alpha(times[0]) * GAUSSIAN.mean
    x = sample(solvers.consistency(t_min), process, function_of(process, t_min), jax.random.key(1), x_T, times)
    mean, covariance = GAUSSIAN.marginal(process, jnp.float32(t_min))
    np.testing.assert_allclose(x.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.03)


def test_one_step_is_the_function_itself():
    process, x = EDM(), 80 * jax.random.normal(jax.random.key(0), (5, 2))
    one = sample(solvers.consistency(), process, function_of(process, 0.0), jax.random.key(1), x, jnp.float32([1, 0]))
    np.testing.assert_allclose(one, GAUSSIAN.flow(process, x, jnp.float32(1), jnp.float32(0)), rtol=1e-5, atol=1e-6)


def test_noise_is_that_of_the_papers():
    """sqrt(tau^2 - sigma_min^2) for EDM's process (arXiv:2303.01469), alpha f + sigma z for others (2310.04378)."""
    f = jnp.full((40_000, 1), 2.0)
    keys, step = jax.random.split(jax.random.key(0), len(f)), solvers.consistency().step
    for process, s in ((EDM(sigma_min=0.3, sigma_max=1.0), jnp.float32(0.2)), (DISCRETE, jnp.float32(0.5))):
        x, _ = step(process, lambda x, t: f, keys, f, jnp.float32(1), s, ())
        spread = process.sigma(s) if process is DISCRETE else np.sqrt((0.3 + 0.7 * 0.2) ** 2 - 0.3**2)
        np.testing.assert_allclose(x.mean(), 2 * process.alpha(s), atol=0.02)
        np.testing.assert_allclose(x.std(), spread, rtol=0.02)


def test_noise_levels_name_the_steps():
    times = grids.noise_levels((80.0, 0.821))(EDM(), 2)
    np.testing.assert_allclose(EDM().sigma(times), [80, 0.821, 0.002], rtol=1e-5)
    for values in ((), (1.0, 2.0), (1.0, 0.0)):
        with pytest.raises(ValueError, match="values is"):
            grids.noise_levels(values)
    with pytest.raises(ValueError, match="num_steps is 3; it must be 2"):
        grids.noise_levels((80.0, 0.821))(EDM(), 3)
    with pytest.raises(ValueError, match=r"t_min is 1\.0"):
        solvers.consistency(1.0)


@pytest.mark.parametrize(
    ("num_steps", "timesteps"),
    [(1, [999]), (2, [999, 499]), (4, [999, 759, 499, 259]), (8, [999, 879, 759, 639, 499, 379, 259, 139])],
)
def test_times_of_latent_consistency_models_are_those_of_the_authors(num_steps, timesteps):
    """Of the timesteps 19, 39, ..., 999, and for every number of steps the indices floor(linspace) of the reversed."""
    times = grids.latent_consistency()(DISCRETE, num_steps)
    np.testing.assert_allclose(times[:-1] * 1000 - 1, timesteps, atol=1e-3)
    assert times[-1] == 0
    for steps in range(1, 51):
        indices = np.floor(np.linspace(0, 50, num=steps, endpoint=False)).astype(int)
        expected = (np.arange(1, 51) * 20 - 1)[::-1][indices]
        np.testing.assert_allclose(grids.latent_consistency()(DISCRETE, steps)[:-1] * 1000 - 1, expected, atol=1e-3)
    with pytest.raises(ValueError, match="num_steps is 51; it must be at most original_steps, 50"):
        grids.latent_consistency()(DISCRETE, 51)


def test_latent_consistency_sampling_is_the_papers():
    """Algorithm 3 of arXiv:2310.04378 in numpy, with the noise that our solver draws."""
    process, steps = DiscreteVP.from_betas(beta_table("scaled_linear", 1000)), 4
    bars = np.cumprod(1 - np.asarray(beta_table("scaled_linear", 1000), np.float64))
    timesteps = [999, 759, 499, 259]
    predict = lambda x, k: 0.3 * x + np.float32(k) / 2000  # eps
    param = latent_consistency(label=index_label)
    f = denoiser(lambda x, c_noise, cond: 0.3 * x + c_noise[:, None] / 2000, param, process)
    x = np.asarray(jax.random.normal(jax.random.key(0), (3, 2)), np.float64)
    keys = row_keys(jax.random.key(1), jnp.arange(3))
    ours = sample(
        solvers.consistency(), process, f, jax.random.key(1), jnp.float32(x), grids.latent_consistency()(process, steps)
    )
    for i, k in enumerate(timesteps):
        bar, scaled = bars[k], 10 * k
        x_0 = (x - np.sqrt(1 - bar) * predict(x, k)) / np.sqrt(bar)
        z = 0.25 / (scaled**2 + 0.25) * x + scaled / np.sqrt(scaled**2 + 0.25) * x_0
        if i + 1 < steps:
            bar = bars[timesteps[i + 1]]
            noise = np.asarray(row_normal(row_keys(keys, i), jnp.float32(x)))
            x = np.sqrt(bar) * z + np.sqrt(1 - bar) * noise
    np.testing.assert_allclose(ours, z, rtol=2e-3)
