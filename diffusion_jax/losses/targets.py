"""Which present values of a series training hides, to be drawn given the others (arXiv:2107.03502, section 4.3)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

# (key, present [batch, length, channels]) -> the values that the model is given
Targets = Callable[[Key[Array, ""], Bool[Array, "batch length channels"]], Bool[Array, "batch length channels"]]


def random(key: Key[Array, ""], present: Bool[Array, "batch length channels"]) -> Bool[Array, "batch length channels"]:
    """Hides a fraction of the present values of each row at random; the fraction is uniform in [0, 1]."""
    rate_key, order_key = jax.random.split(key)
    flat = present.reshape(len(present), -1)
    order = jnp.where(flat, jax.random.uniform(order_key, flat.shape), 2.0)
    rank = jnp.argsort(jnp.argsort(order, -1), -1)
    hidden = jnp.round(jax.random.uniform(rate_key, (len(flat), 1)) * flat.sum(-1, keepdims=True))
    return (flat & (rank >= hidden)).reshape(present.shape)


def historical(
    key: Key[Array, ""], present: Bool[Array, "batch length channels"]
) -> Bool[Array, "batch length channels"]:
    """Hides what is missing in another row of the batch, the one before it."""
    return present & jnp.roll(present, 1, axis=0)


def mix(key: Key[Array, ""], present: Bool[Array, "batch length channels"]) -> Bool[Array, "batch length channels"]:
    """`random` or `historical`, each in half of the rows."""
    random_key, choice_key = jax.random.split(key)
    chosen = jax.random.bernoulli(choice_key, 0.5, (len(present), 1, 1))
    return jnp.where(chosen, random(random_key, present), historical(random_key, present))


def forecast(horizon: int) -> Targets:
    """Hides the last `horizon` steps."""
    return lambda key, present: present & (jnp.arange(present.shape[1]) < present.shape[1] - horizon)[:, None]
