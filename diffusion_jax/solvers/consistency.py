"""Multistep sampling of consistency models: map to the data, add noise, map again (arXiv:2303.01469, algorithm 1)."""

import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.processes.base import row_normal
from diffusion_jax.solvers.base import stateless, transition
from diffusion_jax.types import Denoiser, Process, Solver, check


def consistency(t_min: float = 0.0) -> Solver:
    """x_s ~ q(x_s | x_{t_min} = alpha f) with the consistency function f(x_t, t) = D(x_t, t): one evaluation per step.

    f carries x_t to the beginning of its trajectory, x_{t_min} / alpha(t_min), and the forward process takes it back to
    the time s: x_s = alpha_s f + sqrt(sigma_s^2 - alpha_s^2 sigma_min^2 / alpha_min^2) z. A step to t_min adds no
    noise, so that one step is f itself. For EDM's process this is algorithm 1 of arXiv:2303.01469, with the noise
    sqrt(tau^2 - sigma_min^2); for a process with sigma(t_min) = 0 it is that of latent consistency models
    (arXiv:2310.04378, algorithm 3). Raises ValueError unless t_min is in [0, 1).
    """
    check(0 <= t_min < 1, "t_min", t_min, "in [0, 1)")

    def step(process: Process, D: Denoiser, keys: Array, x: Array, t: Array, s: Array) -> Array:
        start = jnp.float32(t_min)
        alpha_s, variance = transition(process, s, start)
        noise = jnp.where(s > start, jnp.sqrt(variance), 0)
        return alpha_s * process.alpha(start) * D(x, t) + noise * row_normal(keys, x)

    return stateless(step, falling_times=True)
