"""Keeping the predicted data in its range: functions from denoisers to denoisers."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.parameterizations import mapped
from diffusion_jax.processes.base import bcast
from diffusion_jax.types import Denoiser, check, needing

Threshold = Callable[[Denoiser], Denoiser]


def static(bound: float = 1.0) -> Threshold:
    """D limited to [-bound, bound], as DDPM samples (arXiv:2006.11239). Raises ValueError unless bound > 0."""
    check(bound > 0, "bound", bound, "positive")
    return lambda D: mapped(D, lambda x_0: jnp.clip(x_0, -bound, bound))


def dynamic(percentile: float = 0.995, bound: float = 1.0, largest: float = math.inf) -> Threshold:
    """D limited to [-s, s] and multiplied by bound / s, where s is a percentile of |D| in each row.

    s is at least `bound` and at most `largest` (diffusers' sample_max_value).

    Strong guidance drives pixels out of range; clipping them saturates the image, this does not. arXiv:2205.11487,
    section 2.3. Raises ValueError for a percentile outside (0, 1], a bound that is not positive or a largest below it.
    """
    check(0 < percentile <= 1, "percentile", percentile, "in (0, 1]")
    check(bound > 0, "bound", bound, "positive")
    check(largest >= bound, "largest", largest, f"at least bound={bound}")

    def limited(x_0: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
        size = jnp.quantile(jnp.abs(x_0).reshape(x_0.shape[0], -1), percentile, axis=1)
        s = bcast(jnp.clip(size, bound, largest), x_0)
        return jnp.clip(x_0, -s, s) * (bound / s)

    return needing(whole_rows=True)(lambda D: mapped(D, limited))
