"""Fixed-step solvers of the probability-flow ODE dx/dt = alpha' D + sigma' eps in the process's own time."""

import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.parameterizations import velocity
from diffusion_jax.solvers.base import stateless
from diffusion_jax.types import Denoiser, Process, Solver


def euler() -> Solver:
    """x_s = x_t + (s - t) dx/dt. Order 1, one evaluation of D per step; inverts."""

    def step(process: Process, D: Denoiser, keys: Array, x: Array, t: Array, s: Array) -> Array:
        return x + (s - t) * velocity(process, D, x, t)

    return stateless(step)


def heun() -> Solver:
    """Trapezoidal rule with an Euler predictor. Order 2, two evaluations of D per step; inverts.

    A step that ends where sigma = 0 stays with Euler, since the ODE is singular there. arXiv:2206.00364,
    algorithm 1 (with the process `EDM`, whose time is sigma).
    """

    def step(process: Process, D: Denoiser, keys: Array, x: Array, t: Array, s: Array) -> Array:
        first = velocity(process, D, x, t)
        predicted = x + (s - t) * first
        noisy = process.sigma(s) > 0
        second = velocity(process, D, predicted, jnp.where(noisy, s, t))
        return jnp.where(noisy, x + (s - t) / 2 * (first + second), predicted)

    return stateless(step)
