"""Adaptive integration of a batch of ordinary differential equations in which every row keeps its own step size."""

from __future__ import annotations

import os
import types
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from diffusion_jax.processes.base import bcast, row_sum, time_derivative, time_of_log_snr
from diffusion_jax.types import Denoiser, Process

METHODS = {"heun": "Heun", "bosh3": "Bosh3", "tsit5": "Tsit5", "dopri5": "Dopri5", "dopri8": "Dopri8"}  # in diffrax

_FIRST_STEP = 0.01  # of the whole interval
_SAFETY, _GROWTH = 0.9, 10.0  # of the step that the error allows, and at most from one step to the next
_TABLE = 512  # entries from which the search for the time of a noise level starts


class Integration(NamedTuple):
    """Where every row arrived, with how many evaluations of the field, and whether it did within the steps allowed."""

    y: PyTree[Array]
    nfe: Int[Array, "batch"]
    finished: Bool[Array, "batch"]


def check_adaptive(method: str, rtol: float, atol: float, max_steps: int) -> None:
    """Raises ValueError for a method that is not in `METHODS`, tolerances <= 0 or fewer than one step."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; choose one of {', '.join(METHODS)}")
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be positive")
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}; it must be at least 1")


def load_diffrax() -> types.ModuleType:
    """diffrax, whose run-time checks give NaN instead of raising from a callback on the host.

    A program with such a callback is not kept in JAX's persistent cache and is compiled anew in every process. What the
    checks are about, the arguments of a solve, is checked before.
    """
    os.environ.setdefault("EQX_ON_ERROR", "nan")
    import diffrax

    return diffrax


def integrate(
    field: Callable[[PyTree[Array], Float[Array, "batch"]], PyTree[Array]],
    y: PyTree[Array],
    t: Float[Array, ""],
    s: Float[Array, ""],
    *,
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
    sizes: Float[Array, "batch"] | None = None,
) -> Integration:
    """Carry the rows of `y` along dy/dt = field(y, t) from t to s (s < t or s > t), each with its own steps.

    The step of a row is chosen from the root mean square E over that row of error / (atol + rtol |y|), h <- 0.9 h
    E^(-1/order), so a stiff row decides neither the steps nor the result of the others; a step with E < 1 is accepted.
    `field` still sees the whole batch, with one time per row: conditions bound into it keep their rows. The loop runs
    until the last row has arrived, or cannot: its steps are exhausted, or too short to change t. Works under jit and
    inside a scan; no gradient is taken through it.

    The methods' coefficients are diffrax's, and so are the steps. Its loop, for one row at a time under vmap, costs
    several times more where evaluations of `field` are cheap.

    Args:
      field: (y, t [batch]) -> dy/dt, rows independent of each other.
      y: a pytree of floats [batch, ...].
      method: an explicit Runge-Kutta pair of diffrax, one of `METHODS`.
      max_steps: of one row, rejected ones included.
      sizes: number of dimensions of each row, over which E is the mean; None: its number of entries.

    Raises:
      ValueError: see `check_adaptive`.
    """
    check_adaptive(method, rtol, atol, max_steps)
    solver = getattr(load_diffrax(), METHODS[method])()
    tableau, order = solver.tableau, solver.order(None)
    leaves = jax.tree.leaves(y)
    batch, size = leaves[0].shape[0], sum(leaf[0].size for leaf in leaves)
    dtype = jnp.result_type(*leaves)
    t, s = jnp.asarray(t, dtype), jnp.asarray(s, dtype)
    stages = tableau.num_stages
    a = jnp.array([np.pad(row, (0, stages - len(row))) for row in ([], *tableau.a_lower)], dtype)
    b, b_error = (jnp.asarray(weights, dtype) for weights in (tableau.b_sol, tableau.b_error))
    c = jnp.array([0.0, *tableau.c], dtype)

    def step(h: Array, weights: Array, slopes: PyTree) -> PyTree:
        # Not a matrix product, which accelerators round to fewer digits.
        return jax.tree.map(lambda k: bcast(h, k[0]) * jnp.sum(bcast(weights, k) * k, axis=0), slopes)

    def moved(y: PyTree, change: PyTree) -> PyTree:
        return jax.tree.map(jnp.add, y, change)

    def chosen(where: Array, new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(lambda x, y: jnp.where(bcast(where, x), x, y), new, old)

    def active(rows: _Rows) -> Bool[Array, "batch"]:
        return (rows.t != s) & (rows.t + rows.h != rows.t) & (rows.attempts < max_steps)

    def attempt(rows: _Rows) -> _Rows:
        arrives = jnp.abs(s - rows.t) <= jnp.abs(rows.h) * (1 + 16 * jnp.finfo(dtype).eps)
        h, then = jnp.where(arrives, s - rows.t, rows.h), jnp.where(arrives, s, rows.t + rows.h)

        def stage(i: Array, slopes: PyTree) -> PyTree:
            now = jnp.where(c[i] == 1, then, rows.t + c[i] * h)
            slope = field(moved(rows.y, step(h, a[i], slopes)), now)
            return jax.tree.map(lambda k, new: k.at[i].set(new), slopes, slope)

        first = rows.slope if tableau.fsal else field(rows.y, rows.t)
        slopes = jax.tree.map(lambda k: jnp.zeros((stages, *k.shape), k.dtype).at[0].set(k), first)
        slopes = jax.lax.fori_loop(1, stages, stage, slopes)
        y = moved(rows.y, step(h, b, slopes))

        def squares(error: Array, old: Array, new: Array) -> Array:
            return row_sum(jnp.square(error / (atol + rtol * jnp.maximum(jnp.abs(old), jnp.abs(new)))))

        total = sum(jax.tree.leaves(jax.tree.map(squares, step(h, b_error, slopes), rows.y, y)))
        error = jnp.sqrt(total / (size if sizes is None else jnp.maximum(sizes, 1)))
        error = jnp.where(jnp.isfinite(error), error, jnp.inf)
        factor = _SAFETY * error ** (-1 / order)
        keep = error < 1
        factor = jnp.where(keep, jnp.clip(factor, 1, _GROWTH), jnp.clip(factor, 1 / 5, _SAFETY))
        going, accepted = active(rows), active(rows) & keep
        return _Rows(
            y=chosen(accepted, y, rows.y),
            t=jnp.where(accepted, then, rows.t),
            h=jnp.where(going, h * factor, rows.h),
            slope=chosen(accepted, jax.tree.map(lambda k: k[-1], slopes), rows.slope),
            attempts=rows.attempts + going,
        )

    start = jnp.full(batch, t)
    rows = _Rows(
        y=y,
        t=start,
        h=jnp.full(batch, _FIRST_STEP * (s - t)),
        slope=field(y, start) if tableau.fsal else y,
        attempts=jnp.zeros(batch, jnp.int32),
    )
    rows = jax.lax.while_loop(lambda rows: jnp.any(active(rows)), attempt, rows)
    # The last stage of an accepted step is the first of the next, where the method has this property.
    nfe = int(tableau.fsal) + rows.attempts * (stages - int(tableau.fsal))
    return Integration(rows.y, nfe, rows.t == s)


class _Rows(NamedTuple):
    """The state of the integration, by row of the batch."""

    y: PyTree[Array]
    t: Float[Array, "batch"]
    h: Float[Array, "batch"]  # the next step, with the sign of its direction
    slope: PyTree[Array]  # dy/dt at (y, t), for methods that keep it
    attempts: Int[Array, "batch"]  # steps so far, rejected ones included


class Rectified(NamedTuple):
    """The probability-flow ODE dz/du = velocity(z, u) between (u, scale) at `start` and at `end`; z = x / scale."""

    velocity: Callable[[Float[Array, "batch *shape"], Float[Array, "batch"]], Float[Array, "batch *shape"]]
    start: tuple[Float[Array, ""], Float[Array, ""]]
    end: tuple[Float[Array, ""], Float[Array, ""]]


def rectified(process: Process, D: Denoiser, t: Float[Array, ""], s: Float[Array, ""]) -> Rectified:
    """The probability-flow ODE from time t to s in coordinates in which every process is a rectified flow.

    z = x / (alpha + sigma) = (1 - u) x_0 + u eps with u = sigma / (alpha + sigma), so dz/du = E[eps - x_0 | x_t]
    (arXiv:2011.13456, eq. 13, in other variables). Nothing depends on how the process runs through its noise levels:
    there are no derivatives of alpha and sigma, and no kinks between the entries of a table of betas. sigma must be
    positive at t and s; alpha may be zero.
    """

    def level(t: Array) -> Array:
        return process.sigma(t) / (process.alpha(t) + process.sigma(t))

    low, high = jnp.minimum(t, s), jnp.maximum(t, s)
    # Dense at both ends, where the time of a level varies fastest.
    first, last = (jnp.arcsin(jnp.sqrt(level(end))) for end in (low, high))
    angles = jnp.linspace(first, last, _TABLE)
    table = jnp.clip(time_of_log_snr(process, -4 * jnp.log(jnp.tan(angles))), low, high)

    def at(u: Array) -> tuple[Array, Array, Array]:
        """(t, alpha, sigma) of the level u."""
        width = jnp.where(last > first, last - first, 1)  # 0 for a step that stays where it is
        place = (jnp.arcsin(jnp.sqrt(u)) - first) / width * (_TABLE - 1)
        left = jnp.clip(place.astype(jnp.int32), 0, _TABLE - 2)
        now = table[left] + (place - left) * (table[left + 1] - table[left])
        # Two steps of Newton's method for (1 - u) sigma = u alpha; the second moves alpha and sigma along.
        for _ in range(2):
            (alpha, d_alpha), (sigma, d_sigma) = (time_derivative(f, now) for f in (process.alpha, process.sigma))
            then = jnp.clip(now - ((1 - u) * sigma - u * alpha) / ((1 - u) * d_sigma - u * d_alpha), low, high)
            alpha, sigma, now = alpha + (then - now) * d_alpha, sigma + (then - now) * d_sigma, then
        return now, alpha, sigma

    def velocity(z: Array, u: Array) -> Array:
        now, alpha, sigma = at(u)
        alpha, sigma = bcast(alpha, z), bcast(sigma, z)
        x = (alpha + sigma) * z
        x_hat = D(x, now)
        return (x - alpha * x_hat) / sigma - x_hat

    start, end = ((level(time), process.alpha(time) + process.sigma(time)) for time in (t, s))
    return Rectified(velocity, start, end)
