"""Codebooks of VQ-VAE: nearest entries, the update by moving averages (EMA), unused entries and perplexity."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def nearest_code(h: Float[Array, "*n d"], embedding: Float[Array, "k d"]) -> Int[Array, "*n"]:
    """argmin_k |h - e_k|^2, the posterior of VQ-VAE (arXiv:1711.00937, eq. 1), computed in float32."""
    h, embedding = h.astype(jnp.float32), embedding.astype(jnp.float32)
    products = jnp.einsum("...d,kd->...k", h, embedding, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmin(jnp.square(embedding).sum(-1) - 2 * products, axis=-1)


def quantize(h: Float[Array, "*n d"], embedding: Float[Array, "k d"]) -> Float[Array, "*n d"]:
    """The nearest entry of h, with the gradient of the identity ("straight-through", arXiv:1711.00937, section 3.2)."""
    code = jnp.take(embedding.astype(h.dtype), nearest_code(h, embedding), axis=0)
    return h + jax.lax.stop_gradient(code - h)


def assigned(
    h: Float[Array, "n d"], code: Int[Array, "n"], num_codes: int
) -> tuple[Float[Array, "k"], Float[Array, "k d"]]:
    """For each entry, the number of vectors h that are assigned to it, and their sum."""
    counts = jnp.zeros(num_codes).at[code].add(1.0)
    return counts, jnp.zeros((num_codes, h.shape[-1])).at[code].add(h.astype(jnp.float32))


def follow(
    size: Float[Array, "k"],
    total: Float[Array, "k d"],
    counts: Float[Array, "k"],
    sums: Float[Array, "k d"],
    decay: float | Float[Array, ""],
) -> tuple[Float[Array, "k"], Float[Array, "k d"]]:
    """Averages N_k <- g N_k + (1 - g) n_k and m_k <- g m_k + (1 - g) sum h, whose ratio m_k / N_k is the entry.

    arXiv:1711.00937, appendix A.1. With decay g = 0 this is one step of k-means.
    """
    return size + (1 - decay) * (counts - size), total + (1 - decay) * (sums - total)


def dead(size: Float[Array, "k"], threshold: float) -> Bool[Array, "k"]:
    """Which entries have had fewer than `threshold` vectors of a batch on average; see `assigned` and `follow`.

    Such unused entries are re-initialised with vectors of the batch (arXiv:2005.00341, section 3).
    """
    return size < threshold


def perplexity(counts: Float[Array, "k"]) -> Float[Array, ""]:
    """exp of the entropy of the frequencies counts / sum: from 1 (one entry for all) to k (all equally often)."""
    p = counts / jnp.maximum(counts.sum(), 1e-10)
    return jnp.exp(-jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0)))
