"""Solvers of bridges: from x_1, an example of the second data set, back to x_0.

The state starts as x_1, which the carry keeps. With n = near, f = far and x_0 = D(x_t, t), a step from t to s < t is

    posterior   x_s = (f_s / f_t) x_t + (n_s - n_t f_s / f_t) x_0 + sqrt(sigma_s^2 - (f_s / f_t)^2 sigma_t^2) z
    ODE         x_s = n_s x_0 + f_s x_1 + (sigma_s / sigma_t) (x_t - n_t x_0 - f_t x_1)

The first samples q(x_s | x_t, x_0), which does not depend on x_1 (arXiv:2302.05872, eq. 4). The second is the
exponential integrator of the probability-flow ODE that is conditioned on x_1 (arXiv:2405.15885).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.processes.base import bcast, row_keys, row_normal, time_derivative
from diffusion_jax.types import BridgeProcess, Denoiser, Needs, Solver, check

Time = Float[Array, "*n"]


def bridge_posterior_of(process: BridgeProcess, t: Time, s: Time) -> tuple[Time, Time, Time]:
    """(a, b, v) of q(x_s | x_t, x_0) = N(a x_t + b x_0, v I) for s < t, the formula above."""
    a = process.far(s) / process.far(t)
    return a, process.near(s) - a * process.near(t), jnp.maximum(process.sigma(s) ** 2 - (a * process.sigma(t)) ** 2, 0)


def bridge_velocity(process: BridgeProcess, x_0: Array, x: Array, x_1: Array, t: Time) -> Float[Array, "batch *shape"]:
    """dx/dt of the ODE conditioned on x_1: n' x_0 + f' x_1 + (sigma' / sigma) (x - n x_0 - f x_1); sigma(t) > 0.

    It is f x - g^2 (score / 2 - h) of DDBM (arXiv:2309.16948), h the drift to x_1, written in D.
    """
    (n, dn), (f, df), (sigma, d_sigma) = (
        time_derivative(g, jnp.asarray(t)) for g in (process.near, process.far, process.sigma)
    )
    n, dn, f, df, rate = (bcast(c, x) for c in (n, dn, f, df, d_sigma / sigma))
    return dn * x_0 + df * x_1 + rate * (x - n * x_0 - f * x_1)


def _from_end(step: Callable[..., Array], **needs: Any) -> Solver:
    """A solver from `step(process, D, keys, x, x_1, t, s) -> x_s`; the carry x_1 is where sampling starts."""
    return Solver(
        init=lambda x: x,
        step=lambda process, D, keys, x, t, s, x_1: (step(process, D, keys, x, x_1, t, s), x_1),
        needs=Needs(bridge=True, falling_times=True, **needs),
    )


def _posterior_step(
    process: BridgeProcess, x_0: Array, keys: Array, x: Array, t: Time, s: Time
) -> Float[Array, "batch *shape"]:
    a, b, v = bridge_posterior_of(process, t, s)
    return a * x + b * x_0 + jnp.sqrt(v) * row_normal(keys, x)


def bridge_posterior() -> Solver:
    """Posterior sampling, I2SB's: x_s ~ q(x_s | x_t, x_0 = D), in which a process without noise adds none (OT-ODE)."""
    return _from_end(lambda process, D, keys, x, x_1, t, s: _posterior_step(process, D(x, t), keys, x, t, s))


def bridge_ddim(eta: float = 0.0) -> Solver:
    """DDIM of bridges (DBIM, arXiv:2405.15885): the ODE above, with a fraction `eta` of the posterior's noise.

    x_s = n_s x_0 + f_s x_1 + sqrt(sigma_s^2 - eta^2 v) eps + eta sqrt(v) z with eps = (x_t - n_t x_0 - f_t x_1) /
    sigma_t. Where sigma_t = 0, at x_1 itself, eps is unknown and the step is that of the posterior: the ODE from x_1
    needs a first step with noise. eta = 1 is `bridge_posterior`. Raises ValueError unless eta is in [0, 1].
    """
    check(0 <= eta <= 1, "eta", eta, "in [0, 1]")

    def step(process: BridgeProcess, D: Denoiser, keys: Array, x: Array, x_1: Array, t: Array, s: Array) -> Array:
        x_0 = D(x, t)
        a, b, v = bridge_posterior_of(process, t, s)
        z, sigma = row_normal(keys, x), process.sigma(t)
        eps = (x - process.near(t) * x_0 - process.far(t) * x_1) / jnp.where(sigma > 0, sigma, 1)
        kept = jnp.sqrt(jnp.maximum(process.sigma(s) ** 2 - eta**2 * v, 0))
        moved = process.near(s) * x_0 + process.far(s) * x_1 + kept * eps + eta * jnp.sqrt(v) * z
        return jnp.where(sigma > 0, moved, a * x + b * x_0 + jnp.sqrt(v) * z)

    return _from_end(step)


def bridge_heun(churn: float = 0.33) -> Solver:
    """DDBM's hybrid sampler: a stochastic step over the fraction `churn` of each step, then Heun's method on the ODE.

    Three evaluations of D per step. The stochastic step samples the posterior, to which the authors' Euler-Maruyama
    step tends; it is finite at x_1. arXiv:2309.16948. With churn = 0 two evaluations, and the first time
    must be one with sigma > 0: from x_1 itself the ODE is singular. Raises ValueError unless churn is in [0, 1).
    """
    check(0 <= churn < 1, "churn", churn, "in [0, 1)")

    def step(process: BridgeProcess, D: Denoiser, keys: Array, x: Array, x_1: Array, t: Array, s: Array) -> Array:
        mid = t + churn * (s - t)
        if churn:
            x = _posterior_step(process, D(x, t), keys, x, t, mid)
        first = bridge_velocity(process, D(x, mid), x, x_1, mid)
        ahead = x + (s - mid) * first
        return x + (s - mid) / 2 * (first + bridge_velocity(process, D(ahead, s), ahead, x_1, s))

    return _from_end(step, sigma=churn == 0, sigma_after=True)


def kept_outside(solver: Solver, x_1: Float[Array, "batch *shape"], mask: Float[Array, "batch h w 1"]) -> Solver:
    """`solver` of inpainting: where `mask` is 0 the state is the known x_1, with the bridge's noise, after every step.

    As in I2SB's code, where known pixels of x_0 and x_1 are the same and their noise is sigma(s).
    """

    def step(process, D, keys, x, t, s, carry):
        x, carry = solver.step(process, D, keys, x, t, s, carry)
        known = x_1 + process.sigma(s) * row_normal(row_keys(keys, 1), x_1)
        return mask * x + (1 - mask) * known, carry

    return solver._replace(step=step)
