"""Adaptive integration of a batch of ordinary differential equations in which every row keeps its own step size."""

from __future__ import annotations

import os
import types
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from diffusion_jax.processes.base import bcast, time_derivative, time_of_log_snr
from diffusion_jax.types import Denoiser, Process

METHODS = {"heun": "Heun", "bosh3": "Bosh3", "tsit5": "Tsit5", "dopri5": "Dopri5", "dopri8": "Dopri8"}  # in diffrax

_FIRST_STEP = 0.01  # of the whole interval
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
) -> Integration:
    """Carry the rows of `y` along dy/dt = field(y, t) from t to s (s < t or s > t), each with its own steps.

    The step of a row is chosen from the root mean square over that row of error / (atol + rtol |y|), so a stiff row
    decides neither the steps nor the result of the others. `field` still sees the whole batch, with one time per
    row: conditions bound into it keep their rows. Works under jit and inside a scan; no gradient is taken through it.

    Args:
      field: (y, t [batch]) -> dy/dt, rows independent of each other.
      y: a pytree of floats [batch, ...].
      method: an explicit Runge-Kutta pair of diffrax, one of `METHODS`.
      max_steps: of one row, rejected ones included.

    Raises:
      ValueError: see `check_adaptive`.
    """
    check_adaptive(method, rtol, atol, max_steps)
    diffrax = load_diffrax()
    import equinox as eqx

    solver = getattr(diffrax, METHODS[method])()
    batch = jax.tree.leaves(y)[0].shape[0]
    dtype = jnp.result_type(*jax.tree.leaves(y))
    t, s = jnp.asarray(t, dtype), jnp.asarray(s, dtype)
    # Everything that `field` captured is passed through the loop by hand, as the rule below may not capture it.
    closed = eqx.filter_closure_convert(field, y, jnp.full(batch, t))
    captured, code = eqx.partition(closed, eqx.is_array)

    @jax.custom_batching.custom_vmap
    def row_field(captured: PyTree, y: PyTree, t: Array) -> PyTree:
        return y  # only its shape is used: a row is never evaluated outside its batch

    @row_field.def_vmap
    def batch_field(size: int, batched: list, captured: PyTree, y: PyTree, t: Array) -> tuple[PyTree, PyTree]:
        _, y_batched, t_batched = batched
        y = jax.tree.map(lambda a, b: a if b else jnp.broadcast_to(a, (size, *a.shape)), y, y_batched)
        t = t if t_batched else jnp.broadcast_to(t, (size,))
        out = eqx.combine(captured, code)(y, t)
        return out, jax.tree.map(lambda _: True, out)

    def solve(y: PyTree) -> Integration:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, captured: row_field(captured, y, t)),
            solver,
            t,
            s,
            _FIRST_STEP * (s - t),
            y,
            captured,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
            max_steps=max_steps,
            throw=False,
            adjoint=diffrax.ForwardMode(),
        )
        reused = int(solver.tableau.fsal)  # the last stage of a step as the first of the next
        nfe = reused + solution.stats["num_steps"] * (solver.tableau.num_stages - reused)
        arrived = jax.tree.map(lambda a: a[-1], solution.ys)
        return Integration(arrived, nfe, solution.result == diffrax.RESULTS.successful)

    return jax.vmap(solve)(y)


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

    def time(u: Array) -> Array:
        width = jnp.where(last > first, last - first, 1)  # 0 for a step that stays where it is
        place = (jnp.arcsin(jnp.sqrt(u)) - first) / width * (_TABLE - 1)
        left = jnp.clip(place.astype(jnp.int32), 0, _TABLE - 2)
        now = table[left] + (place - left) * (table[left + 1] - table[left])
        for _ in range(2):  # Newton's method
            value, slope = time_derivative(level, now)
            now = jnp.clip(now - (value - u) / slope, low, high)
        return now

    def velocity(z: Array, u: Array) -> Array:
        now = time(u)
        alpha, sigma = bcast(process.alpha(now), z), bcast(process.sigma(now), z)
        x = (alpha + sigma) * z
        x_hat = D(x, now)
        return (x - alpha * x_hat) / sigma - x_hat

    start, end = ((level(at), process.alpha(at) + process.sigma(at)) for at in (t, s))
    return Rectified(velocity, start, end)
