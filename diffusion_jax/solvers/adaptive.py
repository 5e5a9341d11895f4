"""Solvers that choose their own steps between the times they are given, each row of the batch for itself.

A grid of the single step [t_max, t_min] is then the whole solve, and `sampling.steps` no longer decides the accuracy.
A step that ends where sigma = 0 goes to sigma / alpha = 1e-3 and from there, as DDIM does, to the
denoiser, with an error of that number squared.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffusion_jax.parameterizations import score
from diffusion_jax.processes.base import bcast, drift_and_diffusion, row_sum, time_of_log_snr
from diffusion_jax.projections import Projector
from diffusion_jax.solvers.base import stateless
from diffusion_jax.solvers.odes import check_adaptive, integrate, load_diffrax, rectified
from diffusion_jax.types import Denoiser, Process, Solver

LAST_RATIO = 1e-3  # of sigma to alpha, where the ODE and the SDE are left before they become singular
SHORTEST = 2.0**-20  # part of a step of the solver below which a Brownian path is a straight line


def adaptive_ode(method: str = "dopri5", rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 4096) -> Solver:
    """Adaptive Runge-Kutta pairs of diffrax on the probability-flow ODE. Inverts (s > t) from any sigma(t) > 0.

    `method` is one of heun (order 2), bosh3 (3), tsit5, dopri5 (5) and dopri8 (8). The ODE is solved in the coordinates
    of `odes.rectified`, whose z `rtol` and `atol` are of, see `odes.integrate`; t = 1 with alpha = 0 may be the
    start. D is called with one time per row.

    A row that needs more than `max_steps` steps, rejected ones included, is NaN.
    Raises ValueError for an unknown method, tolerances <= 0 or max_steps < 1.
    """
    check_adaptive(method, rtol, atol, max_steps)
    return _within(_adaptive_ode, method=method, rtol=rtol, atol=atol, max_steps=max_steps)


def _within(make: Callable[..., Solver], **options: Any) -> Solver:
    """The solver `make(None, **options)`, which can also be made for a projection, see `types.Solver.within`."""
    return make(None, **options)._replace(adaptive=True, within=lambda P: make(P, **options)._replace(adaptive=True))


def _adaptive_ode(P: Projector | None, **options: Any) -> Solver:
    def step(process: Process, D: Denoiser, keys: Array, x: Array, t: Array, s: Array) -> Array:
        end = _last_time(process, t, s)

        x, sizes = (x, None) if P is None else (P(x), P.dof(x))
        flow = rectified(process, D, t, end)
        (u, scale), (u_end, scale_end) = flow.start, flow.end
        solution = integrate(flow.velocity, x / scale, u, u_end, sizes=sizes, **options)
        x_end = _arrived(solution.finished, scale_end * solution.y)
        return _denoise(process, D, x_end, end, s)

    return stateless(step, sigma=True)


def adaptive_sde(rtol: float = 0.01, atol: float = 0.0078, first_step: float = 0.01, max_steps: int = 10_000) -> Solver:
    """Adaptive steps for the reverse-time SDE by a pair of Euler-Maruyama and stochastic improved Euler steps.

    With x' the Euler-Maruyama step of size h from x_t, and x~ the step from x_t with drift and diffusion taken at
    x' and t - h and the same noise, x'' = (x' + x~) / 2 is of weak order 2 and continues. It is accepted if the root
    mean square of (x' - x'') / max(atol, rtol max(|x'|, |x'_previous|)) over the row is E <= 1; then, or else,
    h <- 0.9 h E^-0.9, from `first_step` on. Two evaluations of D per try. The default tolerances are the paper's for
    images in [-1, 1]: atol is one of 256 grey levels. arXiv:2105.14080, algorithm 1.

    Other than in the paper, a rejected step is tried again on the same Brownian path, a virtual Brownian tree per
    row, since fresh noise would favour paths that are easy to solve. For s < t, with alpha(t) > 0. D is called with
    one time per row.

    A row that needs more than `max_steps` tries is NaN. Raises ValueError for numbers <= 0.
    """
    for name, value in (("rtol", rtol), ("atol", atol), ("first_step", first_step), ("max_steps", max_steps)):
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be positive")
    return _within(_adaptive_sde, rtol=rtol, atol=atol, first_step=first_step, max_steps=max_steps)


def _adaptive_sde(P: Projector | None, *, rtol: float, atol: float, first_step: float, max_steps: int) -> Solver:
    def step(process: Process, D: Denoiser, keys: Array, x: Array, t: Array, s: Array) -> Array:
        end = _last_time(process, t, s)
        x, size = (x, x[0].size) if P is None else (P(x), jnp.maximum(P.dof(x), 1))
        times = jnp.broadcast_to(t, x.shape[:1])
        path = _brownian_path(keys, x, t - end)

        def coefficients(x: Array, now: Float[Array, "batch"]) -> tuple[Array, Array]:
            f, g = (bcast(c, x) for c in drift_and_diffusion(process, now))
            return f * x - g**2 * score(process, D, x, now), g

        def attempt(state: _Attempt) -> _Attempt:
            x, now = state.x, state.time
            arrives = state.h >= now - end
            then = jnp.where(arrives, end, now - state.h)
            active = now > end
            then = jnp.where(active, then, now)
            dt, w = bcast(then - now, x), path(t - then)
            w = w if P is None else P(w)
            dw = w - state.w
            drift, g = coefficients(x, now)
            euler = x + dt * drift + g * dw
            drift, g = coefficients(euler, then)
            improved = (euler + x + dt * drift + g * dw) / 2
            tolerance = jnp.maximum(atol, rtol * jnp.maximum(jnp.abs(euler), jnp.abs(state.previous)))
            error = (row_sum(jnp.square((euler - improved) / tolerance)) / size) ** 0.5
            error = jnp.where(jnp.isfinite(error), jnp.maximum(error, 1e-6), 1e3)
            accepted = active & (error <= 1)
            h = (0.9 * (now - then) * error**-0.9).astype(times.dtype)
            return _Attempt(
                x=jax.vmap(jnp.where)(accepted, improved, x),
                previous=jax.vmap(jnp.where)(accepted, euler, state.previous),
                w=jax.vmap(jnp.where)(accepted, w, state.w),
                time=jnp.where(accepted, then, now),
                h=jnp.where(active, h, state.h),
                tries=state.tries + 1,
            )

        def goes_on(state: _Attempt) -> Array:
            return jnp.any(state.time > end) & (state.tries < max_steps)

        start = _Attempt(x, x, jnp.zeros_like(x), times, jnp.full_like(times, first_step), jnp.zeros((), jnp.int32))
        last = jax.lax.while_loop(goes_on, attempt, start)
        x_end = _arrived(last.time <= end, last.x)
        return _denoise(process, D, x_end, end, s)

    return stateless(step, alpha=True, sigma=True, derivatives=True, falling_times=True)


class _Attempt(NamedTuple):
    x: Array
    previous: Array  # the Euler-Maruyama result of the last accepted step
    w: Array  # the Brownian path at `time`
    time: Float[Array, "batch"]
    h: Float[Array, "batch"]
    tries: Array


def _brownian_path(keys: Array, x: Array, length: Array):
    """w(a) for 0 <= a <= length, [batch] times: the value of one Brownian path per row, from its key alone."""
    diffrax = load_diffrax()
    shape = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)

    def value(key: Array, a: Array) -> Array:
        return diffrax.VirtualBrownianTree(0.0, 1.0, SHORTEST, shape, key).evaluate(a)

    return lambda a: jnp.sqrt(length) * jax.vmap(value)(keys, a / length)


def _last_time(process: Process, t: Float[Array, ""], s: Float[Array, ""]) -> Float[Array, ""]:
    """s, or where sigma(s) = 0 the time at which sigma / alpha is `LAST_RATIO`, but not beyond t."""
    level = jnp.full_like(s, -2 * math.log(LAST_RATIO))
    return jnp.where(process.sigma(s) > 0, s, jnp.minimum(time_of_log_snr(process, level), t))


def _denoise(process: Process, D: Denoiser, x: Array, end: Float[Array, ""], s: Float[Array, ""]) -> Array:
    """x, or where sigma(s) = 0 the DDIM step from `end` to s."""
    return jax.lax.cond(process.sigma(s) > 0, lambda: x, lambda: process.alpha(s) * D(x, end))


def _arrived(finished: Bool[Array, "batch"], x: Array) -> Array:
    """x, with NaN in the rows that have not `finished`."""
    return jax.vmap(jnp.where)(finished, x, jnp.full_like(x, jnp.nan))
