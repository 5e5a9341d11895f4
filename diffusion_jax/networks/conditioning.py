"""Conditioning of networks: conditions are embedded once per sample, apart from the trunk that runs at every step."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from diffusion_jax.networks import layers
from diffusion_jax.networks.attention import check_heads, dot_product_attention, fused_attention
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.types import Cond, Embedded

GUIDANCE = "guidance"  # name of the embedding of a guidance scale among `Embedded.others`
_USUAL = ("label", "vector", "sizes", "tokens", "mask", "image")  # names that `embed` reads itself


def embed(
    cond: Cond,
    conditions: Conditions,
    batch: int | None = None,
    dtype: DTypeLike = jnp.float32,
    *,
    label: Callable[[Array], Array] | None = None,
    vector: Callable[..., Array] | None = None,
    tokens: Callable[[Array], Array] | None = None,
    pool: Callable[[Array], Array] | None = None,
) -> Embedded:
    """The conditions of a network, read by the functions it has for them; embedded conditions are returned as they are.

    cond=None is the null condition in each of `batch` rows, with floats of `dtype`. `vector` reads "vector", and
    "sizes" where there are any; `tokens` reads ids, and without it tokens are vectors; `pool` reads the mean of the
    encoded tokens. Conditions of other names pass to `Embedded.others`.

    Raises:
        ValueError: if a condition is missing or of another shape.
    """
    if isinstance(cond, Embedded):
        return cond
    entries = cast(conditions.null(batch), dtype) if cond is None else conditions.of(cond)
    entries = entries or {}
    for name, array in entries.items():
        shape = conditions.shapes[name].shape
        if array.shape[1:] != shape or (batch is not None and array.shape[0] != batch):
            rows = "batch" if batch is None else batch
            raise ValueError(f"cond[{name!r}] has shape {array.shape}; it must be {(rows, *shape)}.")
    vectors = [label(entries["label"])] if "label" in entries else []
    numbers = [entries[name] for name in ("vector", "sizes") if name in entries]
    vectors += [vector(*numbers)] if numbers else []
    context, mask = entries.get("tokens"), entries.get("mask")
    if context is not None and tokens is not None:
        context, mask = tokens(context), context != 0
    if context is not None and pool is not None:
        present = jnp.ones(context.shape[:2], context.dtype) if mask is None else mask.astype(context.dtype)
        total = jnp.einsum("bn,bnd->bd", present, context)
        vectors.append(pool(total / jnp.maximum(present.sum(1), 1)[:, None]))  # of an empty text: zeros
    others = {name: array for name, array in entries.items() if name not in _USUAL}
    return Embedded(sum(vectors) if vectors else None, context, mask, entries.get("image"), others=others or None)


def guided(cond: Embedded, scale: Float[Array, "batch"], dim: int) -> Embedded:
    """`cond` with the embedding of the scale of classifier-free guidance that a network has learned to imitate.

    It is a sinusoidal embedding of 1000 w with w = scale - 1, in which scale 1 is the conditional model, of the size
    `dim`, as in diffusers' pipeline of latent consistency models (arXiv:2310.04378, section 4.2).
    """
    embedding = layers.sinusoidal_embedding(1000 * (scale - 1), dim)
    return cond._replace(others={**(cond.others or {}), GUIDANCE: embedding})


def cast(cond: Cond, dtype: DTypeLike) -> Cond:
    """`cond` with its floats in `dtype`."""
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, cond)


class VectorEmbedding(nnx.Module):
    """Two dense layers from a vector of conditions to the embedding: [batch, dim] -> [batch, out_features]."""

    def __init__(self, dim: int, out_features: int, *, rngs: nnx.Rngs):
        self.linear_1 = layers.linear(dim, out_features, rngs=rngs)
        self.linear_2 = layers.linear(out_features, out_features, rngs=rngs)

    def __call__(self, vector: Float[Array, "batch c"]) -> Float[Array, "batch features"]:
        return self.linear_2(jax.nn.silu(self.linear_1(vector)))


class TokenEncoder(nnx.Module):
    """A transformer over a sequence of ids, trained with the network: [batch, n] -> [batch, n, dim].

    It has learned positions and `depth` blocks of attention and MLP, normalised before each; 0 is padding, which
    nothing attends to. As the transformers of LDM's and GLIDE's text-conditional models (arXiv:2112.10752, appendix
    E.2.1; arXiv:2112.10741, section 4).

    Args:
        vocabulary: number of ids, padding included.
        max_tokens: length n of a sequence.
        dim: width, a multiple of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads.
        rngs: randomness of the initial parameters.
    """

    def __init__(
        self, vocabulary: int, max_tokens: int, dim: int, *, depth: int = 2, num_heads: int = 4, rngs: nnx.Rngs
    ):
        if dim % num_heads:
            raise ValueError(f"token_dim={dim} must be a multiple of {num_heads}, the heads of the text encoder.")
        init = nnx.initializers.normal(0.02)
        self.token_embedding = nnx.Embed(vocabulary, dim, embedding_init=init, rngs=rngs)
        self.position_embedding = nnx.Embed(max_tokens, dim, embedding_init=init, rngs=rngs)
        self.blocks = nnx.List([TokenBlock(dim, num_heads, rngs=rngs) for _ in range(depth)])
        self.norm = layers.layer_norm(dim, rngs=rngs)

    def __call__(self, ids: Int[Array, "batch n"]) -> Float[Array, "batch n dim"]:
        h = self.token_embedding(ids) + self.position_embedding(jnp.arange(ids.shape[1]))
        h = h.astype(self.token_embedding.embedding[...].dtype)
        for block in self.blocks:
            h = block(h, ids != 0)
        return self.norm(h)


class TokenBlock(nnx.Module):
    """One block of `TokenEncoder`."""

    def __init__(self, dim: int, num_heads: int, *, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.norm1 = layers.layer_norm(dim, rngs=rngs)
        self.qkv = layers.linear(dim, 3 * dim, rngs=rngs)
        self.proj = layers.linear(dim, dim, rngs=rngs)
        self.norm2 = layers.layer_norm(dim, rngs=rngs)
        self.fc1 = layers.linear(dim, 4 * dim, rngs=rngs)
        self.fc2 = layers.linear(4 * dim, dim, rngs=rngs)

    def __call__(self, h: Float[Array, "batch n c"], mask: Bool[Array, "batch n"]) -> Float[Array, "batch n c"]:
        h = h + self.proj(fused_attention(self.qkv(self.norm1(h)), self.num_heads, mask=mask))
        return h + self.fc2(jax.nn.gelu(self.fc1(self.norm2(h))))


class CrossAttention(nnx.Module):
    """Residual cross-attention of x to a context: x + out(attention(q(norm(x)), k(context), v(context))).

    x is [batch, ..., channels]. It starts as the identity, and is the identity for rows whose context is empty.

    Args:
        channels: of x.
        context_dim: of the context.
        num_heads: divides `channels`.
        norm: normalises x for the queries.
        rngs: randomness of the initial parameters.
    """

    def __init__(self, channels: int, context_dim: int, *, num_heads: int, norm: nnx.Module, rngs: nnx.Rngs):
        self.num_heads = check_heads(num_heads, channels)
        self.norm = norm
        self.to_q = layers.linear(channels, channels, rngs=rngs)
        self.to_k = layers.linear(context_dim, channels, rngs=rngs)
        self.to_v = layers.linear(context_dim, channels, rngs=rngs)
        self.to_out = layers.linear(channels, channels, scale=0.0, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch *positions c"], context: Float[Array, "batch n d"], mask: Bool[Array, "batch n"]
    ) -> Float[Array, "batch *positions c"]:
        query = self.to_q(self.norm(x).reshape(x.shape[0], -1, x.shape[-1]))
        attended = dot_product_attention(query, self.to_k(context), self.to_v(context), self.num_heads, mask=mask)
        some = jnp.any(mask, axis=1)[:, None, None]
        return x + jnp.where(some, self.to_out(attended), 0).reshape(x.shape)
