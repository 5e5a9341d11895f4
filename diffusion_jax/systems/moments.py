"""Running averages of the mean and the mean square of each channel of latents or codes, to standardise them with."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.types import Train

Moments = dict[str, Array]  # "mean" and "square", each [channels]
_DECAY = 0.99


def init(channels: int) -> Moments:
    """Those of unit variance."""
    return {"mean": jnp.zeros(channels), "square": jnp.ones(channels)}


def of(z: Float[Array, "batch *positions channels"]) -> Moments:
    """Those of a batch, without a gradient."""
    rows = jax.lax.stop_gradient(z)
    axes = tuple(range(rows.ndim - 1))
    return {"mean": rows.mean(axes), "square": jnp.square(rows).mean(axes)}


def advanced(average: Moments, batch: Moments, train: Train) -> Moments:
    """The averages after a step with the moments of its batch, of which accumulation gives one row per part."""
    # In the first steps this is the mean of all steps, without the initial value.
    decay = jnp.minimum(_DECAY, train.step / (train.step + 1))
    return {
        name: old + (1 - decay) * (batch[name].reshape(-1, len(old)).mean(0) - old) for name, old in average.items()
    }


def mean_and_std(average: Moments) -> tuple[Float[Array, "channels"], Float[Array, "channels"]]:
    """Mean and standard deviation of each channel."""
    return average["mean"], root(average["square"] - jnp.square(average["mean"]))


def root(variance: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The standard deviation of a variance, which rounding may have made negative."""
    return jnp.sqrt(jnp.maximum(variance, 1e-12))
