"""Langevin dynamics: NCSN's annealed sampler and the corrector of score SDEs."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffusion_jax.parameterizations import score
from diffusion_jax.processes.base import row_keys, row_normal
from diffusion_jax.solvers.base import stateless
from diffusion_jax.types import Denoiser, Process, Solver, check

Corrector = Callable[[Process, Denoiser, Array, Array, Array], Array]  # (process, D, keys, x, t) -> x


def annealed_langevin(step_size: float = 2e-5, num_steps: int = 100) -> Solver:
    """NCSN's sampler: `num_steps` Langevin steps at each noise level it arrives at (arXiv:1907.05600, algorithm 1).

    x <- x + a/2 score(x, s) + sqrt(a) z with a = step_size sigma(s)^2 / sigma(0)^2. For processes with alpha = 1 and
    sigma(0) > 0. The grid `levels` visits each level once. Raises ValueError unless both numbers are positive.
    """
    check(step_size > 0, "step_size", step_size, "positive")
    check(num_steps >= 1, "num_steps", num_steps, "at least 1")

    def step(process: Process, D: Denoiser, keys: Array, x: Array, t: Array, s: Array) -> Array:
        a = step_size * (process.sigma(s) / process.sigma(jnp.zeros_like(s))) ** 2

        def langevin(i, x):
            return x + a / 2 * score(process, D, x, s) + jnp.sqrt(a) * row_normal(row_keys(keys, i), x)

        return jax.lax.fori_loop(0, num_steps, langevin, x)

    # Above that size a step on data without width grows: its factor is 1 - step_size / (2 sigma(0)^2).
    # All steps at a level are one step here: what is replaced before them is forgotten in them.
    return stateless(step, unit_alpha=True, falling_times=True, alone=True, least_sigma=math.sqrt(step_size) / 2)


def ncsnv2_step_size(sigmas: np.ndarray, num_steps: int) -> float:
    """The step size of `annealed_langevin` that keeps each level's variance closest to right.

    With ratio gamma of successive sigmas and a = step_size / sigma_min^2, starting a level at variance
    gamma^2 sigma_i^2 leads after T steps to sigma_i^2 times

        (1 - a)^(2T) (gamma^2 - 2a / (1 - (1 - a)^2)) + 2a / (1 - (1 - a)^2),

    which should be 1. That is for steps x + a sigma^2 score + sqrt(2a) sigma z, so a is half of ours.
    arXiv:2006.09011, proposition 3 and technique 4.
    """
    sigmas = np.sort(np.asarray(sigmas, np.float64))
    if sigmas.size < 2 or sigmas[0] <= 0:
        raise ValueError(f"sigmas must be at least two positive noise levels; got {sigmas}")
    gamma = (sigmas[-1] / sigmas[0]) ** (1 / (sigmas.size - 1))
    a = np.geomspace(1e-6, 0.99, 100_000)
    fixed = 2 * a / (1 - (1 - a) ** 2)
    reached = (1 - a) ** (2 * num_steps) * (gamma**2 - fixed) + fixed
    return float(2 * a[np.argmin(np.abs(reached - 1))] * sigmas[0] ** 2)


def langevin_corrector(snr: float = 0.16, num_steps: int = 1) -> Corrector:
    """Langevin steps whose size keeps a signal-to-noise ratio (arXiv:2011.13456, algorithms 4 and 5).

    x <- x + e score + sqrt(2 e) z with e = 2 (snr sigma(t))^2. The paper has e = 2 alpha (snr |z| / |score|)^2 with
    norms averaged over the batch. Here they are those that they have in many dimensions, |z|^2 = d and
    |score|^2 = d / sigma^2 for the score -eps / sigma: a sample does not depend on its neighbours, the step does not
    depend on x, which would change the stationary law, and it is bounded. alpha is the process's last transition
    coefficient in the paper, which is 1 up to O(1 / steps) and left out. Raises ValueError for a negative number.
    """
    check(snr >= 0, "snr", snr, "at least 0")
    check(num_steps >= 0, "num_steps", num_steps, "at least 0")

    def correct(process: Process, D: Denoiser, keys: Array, x: Array, t: Array) -> Array:
        step_size = 2 * (snr * process.sigma(t)) ** 2

        def langevin(i, x):
            noise = row_normal(row_keys(keys, i), x)
            return x + step_size * score(process, D, x, t) + jnp.sqrt(2 * step_size) * noise

        return jax.lax.fori_loop(0, num_steps, langevin, x)

    return correct
