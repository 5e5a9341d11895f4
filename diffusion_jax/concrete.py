"""Checks of values. Inside `jit` and other transformations there are none yet, and nothing is checked."""

import jax
import jax.numpy as jnp
from jaxtyping import Array


def check_finite(name: str, x: Array) -> None:
    """Raises ValueError if x holds NaN or infinity."""
    if not isinstance(x, jax.core.Tracer) and not jnp.isfinite(x).all():
        raise ValueError(f"{name} has {int(jnp.sum(~jnp.isfinite(x)))} NaN or infinite values")


def check_times(name: str, t: Array) -> None:
    """Raises ValueError unless every t is in [0, 1]."""
    if not isinstance(t, jax.core.Tracer) and not ((t >= 0) & (t <= 1)).all():
        raise ValueError(f"{name} runs from {float(t[0]):g} to {float(t[-1]):g}; times must be in [0, 1]")
