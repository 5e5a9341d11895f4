"""The block of text and image encoders: attention and a perceptron, each added to what comes in after normalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from diffusion_jax.networks import layers
from diffusion_jax.networks.attention import dot_product_attention


class Cache(NamedTuple):
    """The keys and values of the positions that causal attention has seen; those of later positions are unused."""

    key: Float[Array, "batch n dim"]
    value: Float[Array, "batch n dim"]


class Attention(nnx.Module):
    """Self-attention: [batch, n, dim] -> [batch, n, dim].

    Args:
        dim: of the input and the output.
        num_heads: attention heads.
        head_dim: of one head; dim / num_heads by default.
        use_bias: whether queries, keys and values have biases.
        use_out_bias: whether the output has one.
        causal: whether a position attends to itself and earlier ones only.
        scale: of the logits; 1 / sqrt(head_dim) by default.
        implementation: see `attention.dot_product_attention`.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: if `num_heads` does not divide `dim` and there is no `head_dim`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        use_bias: bool = True,
        use_out_bias: bool = True,
        causal: bool = False,
        scale: float | None = None,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        if num_heads < 1 or (head_dim is None and dim % num_heads):
            raise ValueError(f"num_heads={num_heads} must be a positive divisor of the width, {dim}.")
        self.num_heads = num_heads
        self.causal = causal
        self.scale = scale
        self.implementation = implementation
        inner = num_heads * head_dim if head_dim else dim
        self.q_proj = linear(dim, inner, use_bias=use_bias, rngs=rngs)
        self.k_proj = linear(dim, inner, use_bias=use_bias, rngs=rngs)
        self.v_proj = linear(dim, inner, use_bias=use_bias, rngs=rngs)
        self.out_proj = linear(inner, dim, use_bias=use_out_bias, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch n dim"],
        *,
        mask: Bool[Array, "batch n"] | None = None,
        bias: Float[Array, "#batch #heads n n"] | None = None,
    ) -> Float[Array, "batch n dim"]:
        """See `attention.dot_product_attention` for `mask` and `bias`."""
        attended = dot_product_attention(
            self.q_proj(x),
            self.k_proj(x),
            self.v_proj(x),
            self.num_heads,
            self.implementation,
            mask=mask,
            bias=bias,
            causal=self.causal,
            scale=self.scale,
        )
        return self.out_proj(attended)

    def step(
        self, x: Float[Array, "batch 1 dim"], cache: Cache, i: Int[Array, ""]
    ) -> tuple[Float[Array, "batch 1 dim"], Cache]:
        """The output at position i alone, of causal attention to positions 0..i, and the cache with position i."""
        new = Cache(self.k_proj(x), self.v_proj(x))
        cache = Cache(*(jax.lax.dynamic_update_slice_in_dim(*pair, i, axis=1) for pair in zip(cache, new, strict=True)))
        seen = jnp.broadcast_to(jnp.arange(cache.key.shape[1]) <= i, cache.key.shape[:2])
        query, scale = self.q_proj(x), self.scale
        attended = dot_product_attention(query, *cache, self.num_heads, self.implementation, mask=seen, scale=scale)
        return self.out_proj(attended), cache


class MLP(nnx.Module):
    """fc2(act(fc1(x))), or fc2(act(gate(x)) fc1(x)) where it is gated (arXiv:2002.05202).

    Args:
        dim: of the input and the output.
        hidden: width of the hidden layer.
        activation: see `layers.activation`.
        gated: whether there is a gate.
        use_bias: whether the layers have biases.
        rngs: randomness of the initial parameters.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        activation: str,
        gated: bool = False,
        use_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        self.activation = layers.activation(activation)
        self.gate = linear(dim, hidden, use_bias=use_bias, rngs=rngs) if gated else None
        self.fc1 = linear(dim, hidden, use_bias=use_bias, rngs=rngs)
        self.fc2 = linear(hidden, dim, use_bias=use_bias, rngs=rngs)

    def __call__(self, x: Float[Array, "batch n dim"]) -> Float[Array, "batch n dim"]:
        if self.gate is None:
            return self.fc2(self.activation(self.fc1(x)))
        return self.fc2(self.activation(self.gate(x)) * self.fc1(x))


class Block(nnx.Module):
    """x + attention(norm(x)), and to that the same with the MLP (arXiv:2002.04745, "pre-LN").

    Args:
        norm: makes each of the two normalisations.
        attention: of the normalised input.
        mlp: of the normalised result.
    """

    def __init__(self, norm: Callable[[], nnx.Module], attention: Attention, mlp: MLP):
        self.layer_norm1 = norm()
        self.self_attn = attention
        self.layer_norm2 = norm()
        self.mlp = mlp

    def __call__(
        self,
        x: Float[Array, "batch n dim"],
        *,
        mask: Bool[Array, "batch n"] | None = None,
        bias: Float[Array, "#batch #heads n n"] | None = None,
    ) -> Float[Array, "batch n dim"]:
        x = x + self.self_attn(self.layer_norm1(x), mask=mask, bias=bias)
        return x + self.mlp(self.layer_norm2(x))

    def step(
        self, x: Float[Array, "batch 1 dim"], cache: Cache, i: Int[Array, ""]
    ) -> tuple[Float[Array, "batch 1 dim"], Cache]:
        """The output at position i alone, see `Attention.step`."""
        attended, cache = self.self_attn.step(self.layer_norm1(x), cache, i)
        x = x + attended
        return x + self.mlp(self.layer_norm2(x)), cache


def linear(in_features: int, out_features: int, *, use_bias: bool = True, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer that starts as N(0, 0.02^2), with a zero bias if any."""
    init = nnx.initializers.normal(0.02)
    return nnx.Linear(in_features, out_features, use_bias=use_bias, kernel_init=init, rngs=rngs)


def embedding(count: int, dim: int, *, rngs: nnx.Rngs) -> nnx.Embed:
    """`count` vectors of N(0, 0.02^2)."""
    return nnx.Embed(count, dim, embedding_init=nnx.initializers.normal(0.02), rngs=rngs)


def layer_norm(dim: int, *, epsilon: float = 1e-5, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer normalisation with the epsilon of these networks, whose activations reach 1000."""
    return layers.layer_norm(dim, epsilon=epsilon, rngs=rngs)


def check_length(length: int, most: int) -> None:
    """Raises ValueError for a sequence that is longer than the positions known."""
    if length > most:
        raise ValueError(f"a sequence of {length} tokens is longer than max_position_embeddings={most}.")
