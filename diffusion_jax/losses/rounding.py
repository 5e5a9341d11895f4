"""Rounding of embeddings to tokens, the terms that Diffusion-LM adds to a denoising loss (arXiv:2205.14217).

A token w has the embedding e_w, a row of `table` [K, c], and x_t ~ N(alpha e_w, sigma^2 I). The way back from x = x_t
at the first time t is

    p(w | x) = softmax_k(<e_k, x> + b_k)

which for alpha = sigma = 1 and b_k = log p(k) - |e_k|^2 / 2 is the posterior of w.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.processes.categorical import at_values

Table = Float[Array, "values c"]
Vectors = Float[Array, "batch *shape c"]


def log_rounding(table: Table, bias: Float[Array, "values"], x: Vectors) -> Float[Array, "batch *shape values"]:
    """log p(w | x) of every token w."""
    return jax.nn.log_softmax(x @ table.T + bias)


def rounding_nats(
    table: Table, bias: Float[Array, "values"], x: Vectors, tokens: Int[Array, "batch *shape"]
) -> Float[Array, "batch *shape"]:
    """-log p(w | x) of each of the `tokens`."""
    return -at_values(log_rounding(table, bias, x), tokens)


def nearest(table: Table, x: Vectors) -> Vectors:
    """The embedding that is nearest to each vector: the clamping trick."""
    distance = jnp.sum(table**2, axis=-1) - 2 * x @ table.T
    return table[jnp.argmin(distance, axis=-1)]
