"""Fixed-step solvers of the probability-flow ODE dx/dt = alpha' D + sigma' eps in the process's own time.

Their steps without churn also take times [batch], one per row.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.parameterizations import velocity
from diffusion_jax.processes.base import bcast, log_snr, row_normal, time_of_log_snr
from diffusion_jax.solvers.base import stateless, transition
from diffusion_jax.types import Denoiser, Process, Solver


def euler(
    churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
    num_steps: int | None = None,
) -> Solver:
    """x_s = x_t + (s - t) dx/dt. Order 1, one evaluation of D per step; inverts without `churn`, see `heun`."""

    def step(process: Process, D: Denoiser, keys: Array, x: Array, t: Array, s: Array) -> Array:
        return x + bcast(s - t, x) * velocity(process, D, x, t)

    return stateless(
        _churned(step, churn, s_min, s_max, s_noise, num_steps),
        sigma=True,
        derivatives=True,
        final_derivatives=churn > 0,
    )


def heun(
    churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
    num_steps: int | None = None,
) -> Solver:
    """Trapezoidal rule with an Euler predictor. Order 2, two evaluations of D per step; inverts without `churn`.

    A step that ends where sigma = 0 stays with Euler, since the ODE is singular there. arXiv:2206.00364,
    algorithm 1 (with the process `EDM`, whose time is sigma).

    With `churn` > 0 it is the stochastic algorithm 2, for any process: where the noise-to-signal ratio
    r = sigma / alpha lies in [s_min, s_max], the forward process first takes x_t, with fresh noise, to the time of
    r (1 + gamma), gamma = min(churn / num_steps, sqrt(2) - 1), but not beyond t = 1; the step starts there. The fresh
    noise is multiplied by `s_noise`. `num_steps` is the number of steps of the whole solve.

    Raises ValueError for negative numbers, for s_min > s_max, and for churn without `num_steps`.
    """

    def step(process: Process, D: Denoiser, keys: Array, x: Array, t: Array, s: Array) -> Array:
        first = velocity(process, D, x, t)
        predicted = x + bcast(s - t, x) * first
        noisy = process.sigma(s) > 0
        second = velocity(process, D, predicted, jnp.where(noisy, s, t))
        return jnp.where(bcast(noisy, x), x + bcast(s - t, x) / 2 * (first + second), predicted)

    return stateless(
        _churned(step, churn, s_min, s_max, s_noise, num_steps),
        sigma=True,
        derivatives=True,
        final_derivatives=churn > 0,
    )


def _churned(
    step: Callable[..., Array], churn: float, s_min: float, s_max: float, s_noise: float, num_steps: int | None
) -> Callable[..., Array]:
    """`step`, begun at a raised noise level."""
    for name, value in (("churn", churn), ("s_min", s_min), ("s_noise", s_noise)):
        if not value >= 0:
            raise ValueError(f"{name} is {value}; it must be at least 0")
    if not s_min <= s_max:
        raise ValueError(f"s_min is {s_min} and s_max is {s_max}; they must satisfy s_min <= s_max")
    if churn == 0:
        return step
    if num_steps is None or num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; churn={churn} is shared among that many steps, at least 1")
    gamma = min(churn / num_steps, math.sqrt(2) - 1)

    def churned(process: Process, D: Denoiser, keys: Array, x: Array, t: Array, s: Array) -> Array:
        level = log_snr(process, t)
        ratio = process.sigma(t) / process.alpha(t)
        within = jnp.isfinite(level) & (s_min <= ratio) & (ratio <= s_max)
        raised = time_of_log_snr(process, jnp.where(within, level - 2 * math.log1p(gamma), 0))
        raised = jnp.where(within, jnp.maximum(raised, t), t)
        alpha_rt, variance_rt = transition(process, raised, t)
        noisier = alpha_rt * x + s_noise * jnp.sqrt(variance_rt) * row_normal(keys, x)
        return step(process, D, keys, jnp.where(within, noisier, x), raised, s)

    return churned
