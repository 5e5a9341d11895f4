"""Solvers of the reverse-time SDE dx = (f x - g^2 score) dt + g dw (arXiv:2011.13456, eq. 6)."""

import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.parameterizations import score
from diffusion_jax.processes.base import drift_and_diffusion, row_normal
from diffusion_jax.solvers.base import staged, stateless, transition
from diffusion_jax.solvers.langevin import Corrector
from diffusion_jax.types import Denoiser, Process, Solver


def euler_maruyama() -> Solver:
    """x_s = x + (f x - g^2 score)(s - t) + g sqrt(t - s) z. Weak order 1; alpha(t) must be positive."""

    def step(process: Process, D: Denoiser, keys: Array, x: Array, t: Array, s: Array) -> Array:
        f, g = drift_and_diffusion(process, t)
        drift = f * x - g**2 * score(process, D, x, t)
        return x + (s - t) * drift + g * jnp.sqrt(t - s) * row_normal(keys, x)

    return stateless(step, alpha=True, sigma=True, derivatives=True, falling_times=True)


def reverse_diffusion() -> Solver:
    """The forward step's own discretisation, reversed: x_s = (2 - alpha_ts) x + v score + sqrt(v) z.

    alpha_ts and v = variance_ts are the exact transition q(x_t | x_s), where the paper's code takes beta(t) / N for
    the VP process. arXiv:2011.13456, eq. 46 and appendix E.
    """

    def step(process: Process, D: Denoiser, keys: Array, x: Array, t: Array, s: Array) -> Array:
        alpha_ts, variance_ts = transition(process, t, s)
        mean = (2 - alpha_ts) * x + variance_ts * score(process, D, x, t)
        return mean + jnp.sqrt(variance_ts) * row_normal(keys, x)

    return stateless(step, sigma=True, alpha_after=True, falling_times=True)


def predictor_corrector(predictor: Solver, corrector: Corrector) -> Solver:
    """A predictor step from t to s, then corrections at s, unless sigma_s = 0 (arXiv:2011.13456, algorithm 1)."""

    def correct(process: Process, D: Denoiser, keys: Array, x: Array, t: Array, s: Array) -> Array:
        return jnp.where(process.sigma(s) > 0, corrector(process, D, keys, x, s), x)

    return staged(predictor, stateless(correct))
