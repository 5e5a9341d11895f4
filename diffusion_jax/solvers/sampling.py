"""The one sampling loop: any solver, process, denoiser and grid, as a single `lax.scan`."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped

from diffusion_jax.processes.base import row_keys
from diffusion_jax.solvers.values import check_finite, check_solver, check_times
from diffusion_jax.types import Denoiser, Process, Solver, check_made


def sample(
    solver: Solver,
    process: Process,
    D: Denoiser,
    key: Key[Array, ""],
    x_T: Shaped[Array, "batch *shape"],
    times: Float[Array, "num_times"],
    *,
    ids: Int[Array, "batch"] | None = None,
    trajectory: bool = False,
) -> Shaped[Array, "*out"]:
    """Carry x_T from times[0] through times[1], ... to times[-1].

    `D(x, t)` has its conditions bound. Noise of row r comes from fold_in(key, ids[r]) (default: 0..batch-1), one key
    per row and step, so a sample does not depend on the batch it is drawn in. Returns x at times[-1], or with
    `trajectory` the states at all times, [num_times, batch, ...]. Increasing times invert an ODE solver. A step from a
    time to itself leaves x as it is, except by a solver whose needs allow it: Langevin steps stay at a noise level.
    x keeps its dtype, which may be that of integers, and so do the times.

    Raises ValueError for x_T without a batch axis, for not two times and, outside of `jit`, for times outside [0, 1],
    for x_T that is not finite, and for times or a process that do not meet the needs of the solver; TypeError for a
    solver, process or grid that was not called, or a key that is not typed.
    """
    for field, value in (("solver", solver), ("process", process)):
        check_made(field, value, field)
    if callable(times):
        raise TypeError("times is a function; call the grid, as in grids.uniform()(process, num_steps)")
    if not jnp.shape(x_T):
        raise ValueError("x_T has the shape (); it must be [batch, ...]")
    times = jnp.asarray(times)
    if times.ndim != 1:
        raise ValueError(f"times has the shape {times.shape}; it must be [num_times]")
    if len(times) < 2:
        raise ValueError(f"times has {len(times)} entries; a solver goes from one to the next and needs at least 2")
    check_times("times", times)
    check_finite("x_T", x_T)
    check_solver(solver, process, times)
    ids = jnp.arange(x_T.shape[0]) if ids is None else ids
    keys = row_keys(key, ids)

    def body(state, step):
        x, carry = state
        t, s, index = step
        stepped = solver.step(process, D, row_keys(keys, index), x, t, s, carry)
        x, carry = jax.tree.map(_as_before, stepped, state)
        if solver.needs.distinct_times:
            x, carry = jax.tree.map(lambda new, old: jnp.where(t == s, old, new), (x, carry), state)
        return (x, carry), x if trajectory else None

    steps = (times[:-1], times[1:], jnp.arange(len(times) - 1))
    (x, _), states = jax.lax.scan(body, (x_T, solver.init(x_T)), steps)
    return jnp.concatenate([x_T[None], states]) if trajectory else x


def _as_before(new: Array, old: Array) -> Array:
    """A float in the precision of the one it replaces in the loop; times may have another."""
    floats = jnp.issubdtype(new.dtype, jnp.floating) and jnp.issubdtype(old.dtype, jnp.floating)
    return new.astype(old.dtype) if floats else new
