"""Scales and references of series: what is taken out of a window before the model sees it, from its known values."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.guidance.observation import interpolation

_LEAST = 1e-6  # of a scale, where the known values are constant or 0
# known [batch, length, channels], NaN for what is not known -> what x is the difference from, of the same shape
Reference = Callable[[Float[Array, "batch length channels"]], Float[Array, "batch length channels"]]
# known [batch, length, channels], NaN for what is not known -> (location, scale) [batch, 1, channels]
Scaling = Callable[[Float[Array, "batch length channels"]], tuple[Array, Array]]


def no_reference(known: Float[Array, "batch length channels"]) -> Float[Array, "batch length channels"]:
    """Zero everywhere."""
    return jnp.zeros_like(known)


def no_scaling(known: Float[Array, "batch length channels"]) -> tuple[Array, Array]:
    """Location 0 and scale 1."""
    zero = jnp.zeros_like(known[:, :1])
    return zero, zero + 1


def mean_scaling(known: Float[Array, "batch length channels"]) -> tuple[Array, Array]:
    """Location 0 and the mean absolute value as scale, 1 where that is 0: as in DeepAR, TimeGrad and TSDiff."""
    present = jnp.isfinite(known)
    scale = _mean(jnp.abs(jnp.where(present, known, 0)), present)
    return jnp.zeros_like(scale), jnp.where(scale > _LEAST, scale, 1)


def last_scaling(known: Float[Array, "batch length channels"]) -> tuple[Array, Array]:
    """The last known value as location and the standard deviation as scale, 1 where that is 0."""
    present = jnp.isfinite(known)
    values = jnp.where(present, known, 0)
    mean = _mean(values, present)
    scale = jnp.sqrt(_mean(jnp.where(present, values - mean, 0) ** 2, present))
    last = known.shape[1] - 1 - jnp.argmax(present[:, ::-1], axis=1, keepdims=True)
    return jnp.take_along_axis(values, last, axis=1), jnp.where(scale > _LEAST, scale, 1)


def standard_scaling(known: Float[Array, "batch length channels"]) -> tuple[Array, Array]:
    """Mean and standard deviation of the known values, the latter 1 where it is 0."""
    present = jnp.isfinite(known)
    mean = _mean(jnp.where(present, known, 0), present)
    scale = jnp.sqrt(_mean(jnp.where(present, known - mean, 0) ** 2, present))
    return mean, jnp.where(scale > _LEAST, scale, 1)


def _mean(values: Array, present: Array) -> Array:
    return jnp.sum(values, 1, keepdims=True) / jnp.maximum(jnp.sum(present, 1, keepdims=True), 1)


SCALINGS: dict[str, Scaling] = {
    "none": no_scaling,
    "mean": mean_scaling,
    "standard": standard_scaling,
    "last": last_scaling,
}

REFERENCES: dict[str, Reference] = {"none": no_reference, "interpolation": interpolation}
