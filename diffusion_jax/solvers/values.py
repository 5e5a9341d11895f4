"""Checks of values, where there are any: not of what a transformation such as `jit` traces, nor of rows elsewhere."""

import warnings

import jax
import numpy as np
from jaxtyping import Array

from diffusion_jax.processes.needs import unmet
from diffusion_jax.types import Process, Solver


def check_finite(name: str, x: Array | np.ndarray) -> None:
    """Raises ValueError if x holds NaN or infinity."""
    values = _values(x)
    if values is not None and not np.isfinite(values).all():
        raise ValueError(f"{name} has {np.count_nonzero(~np.isfinite(values))} NaN or infinite values")


def warn_not_finite(name: str, x: np.ndarray) -> None:
    """Warns of rows of x that hold NaN or infinity, as of an adaptive solver that needs more than its steps."""
    if np.issubdtype(x.dtype, np.floating):
        finite = np.isfinite(x).reshape(len(x), -1).all(1)
        if not finite.all():
            warnings.warn(
                f"{np.count_nonzero(~finite)} of {len(x)} {name} are not finite: the network has diverged, or an "
                "adaptive solver needs more than max_steps steps",
                stacklevel=3,
            )


def check_times(name: str, t: Array | np.ndarray) -> None:
    """Raises ValueError unless every t is in [0, 1]."""
    values = _values(t)
    if values is not None and not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"{name} runs from {values[0]:g} to {values[-1]:g}; times must be in [0, 1]")


def check_solver(solver: Solver, process: Process, times: Array | np.ndarray) -> None:
    """Raises ValueError if the process at these times does not meet the needs that the solver declares."""
    values = _values(times)
    if values is None or any(_values(leaf) is None for leaf in jax.tree.leaves(process)):
        return
    with jax.ensure_compile_time_eval():
        gap = unmet(solver.needs, process, values[:-1], values[1:])
    if gap is not None:
        raise ValueError(f"the solver needs {gap.need}; {type(process).__name__} {gap.has}")


def _values(x: Array | np.ndarray | float) -> np.ndarray | None:
    # JAX's own functions would be traced inside `jit` even for a constant.
    if isinstance(x, jax.core.Tracer) or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return None
    return np.asarray(x)
