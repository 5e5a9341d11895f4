"""A diffusion transformer over a sequence of tokens, the network of SEDD and MDLM (arXiv:2310.16834, 2406.07524)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from diffusion_jax.networks import layers
from diffusion_jax.networks.attention import check_heads, dot_product_attention, split_qkv
from diffusion_jax.networks.base import DenoisingNetwork
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.networks.dit import LabelEmbedder, Mlp, TimestepEmbedder
from diffusion_jax.types import Embedded

_BASE = 10_000.0  # of the angles of rotary embeddings


class TokenDiT(DenoisingNetwork):
    """Transformer from token ids [batch, length] to logits [batch, length, out_channels], with adaLN and RoPE.

    Blocks are those of DiT with rotary position embeddings (arXiv:2104.09864), no biases in attention, and a width
    `cond_dim` of the condition that scales, shifts and gates them. The output starts at zero. Of OpenWebText it is
    `states=50258, out_channels=50257, shape=(1024,), hidden_size=768, depth=12, num_heads=12, cond_dim=128`.

    Args:
        shape: (length,) of the sequence.
        states: number of ids of x, the mask among them.
        out_channels: number of logits of each token.
        hidden_size: width; a multiple of `num_heads`, with an even width of a head.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: width of the blocks' MLP over `hidden_size`.
        cond_dim: width of the embedding of the noise label and of conditions.
        time_conditioned: whether c_noise is read; a masked process needs no time (arXiv:2406.07524).
        num_classes: of the condition "label"; 0 for none.
        dropout: rate, after attention and MLP.
        attention_implementation: see `attention.dot_product_attention`.
        remat: compute the activations of a block again in the backward pass instead of storing them.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: if `num_heads` does not divide `hidden_size`, or the width of a head is odd.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...] = (64,),
        states: int = 2,
        out_channels: int = 2,
        hidden_size: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        cond_dim: int = 64,
        time_conditioned: bool = False,
        num_classes: int = 0,
        dropout: float = 0.0,
        attention_implementation: str | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        if len(shape) != 1:
            raise ValueError(f"examples of shape {shape} are no sequences of tokens")
        check_rotary(hidden_size, num_heads)
        self.input_shape = tuple(shape)
        self.time_conditioned = time_conditioned
        self.remat = remat
        self.conditions = Conditions(num_classes=num_classes)
        init = nnx.initializers.normal(0.02)
        self.vocab_embed = nnx.Embed(states, hidden_size, embedding_init=init, rngs=rngs)
        self.sigma_map = TimestepEmbedder(cond_dim, 0.0, rngs=rngs)
        self.y_embedder = LabelEmbedder(num_classes, cond_dim, rngs=rngs) if num_classes else None
        sizes = (hidden_size, num_heads, int(hidden_size * mlp_ratio), cond_dim, dropout, attention_implementation)
        self.blocks = nnx.List([TokenBlock(*sizes, rngs=rngs) for _ in range(depth)])
        self.output_layer = OutputLayer(hidden_size, out_channels, cond_dim, rngs=rngs)

    def forward(
        self,
        x: Int[Array, "batch n"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch n out"]:
        h = self.vocab_embed(x).astype(self.vocab_embed.embedding[...].dtype)
        noise = c_noise if self.time_conditioned else jnp.zeros_like(c_noise)
        emb = self.sigma_map(noise, h.dtype)
        emb = jax.nn.silu(emb if cond.vector is None else emb + cond.vector.astype(h.dtype))
        for block in self.blocks:
            h = layers.call_block(block, h, emb, rngs=rngs, remat=self.remat)
        return self.output_layer(h, emb)

    def embedders(self) -> dict[str, Callable[..., Array] | None]:
        return dict(label=self.y_embedder)


class TokenBlock(nnx.Module):
    """Attention with rotary embeddings and MLP, each scaled, shifted and gated; it starts as the identity."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        mlp_hidden: int,
        cond_dim: int,
        dropout: float,
        implementation: str | None,
        *,
        rngs: nnx.Rngs,
    ):
        self.num_heads = num_heads
        self.implementation = implementation
        self.norm1 = layers.layer_norm(hidden_size, affine=False, rngs=rngs)
        self.attn_qkv = layers.linear(hidden_size, 3 * hidden_size, use_bias=False, rngs=rngs)
        self.attn_out = layers.linear(hidden_size, hidden_size, use_bias=False, rngs=rngs)
        self.norm2 = layers.layer_norm(hidden_size, affine=False, rngs=rngs)
        self.mlp = Mlp(hidden_size, mlp_hidden, hidden_size, "gelu_tanh", layers.fan_avg_uniform(), rngs=rngs)
        self.adaLN_modulation = layers.linear(cond_dim, 6 * hidden_size, scale=0.0, rngs=rngs)
        self.dropout = dropout

    def __call__(
        self, x: Float[Array, "batch n c"], emb: Float[Array, "batch c2"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch n c"]:
        modulation = jnp.split(self.adaLN_modulation(emb)[:, None, :], 6, -1)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation
        x = x + gate_msa * self._dropped(self._attend(self.norm1(x) * (1 + scale_msa) + shift_msa), rngs)
        return x + gate_mlp * self._dropped(self.mlp(self.norm2(x) * (1 + scale_mlp) + shift_mlp), rngs)

    def _attend(self, x: Float[Array, "batch n c"]) -> Float[Array, "batch n c"]:
        query, key, value = split_qkv(self.attn_qkv(x), self.num_heads, "3hc")
        query, key = (rotary(part, self.num_heads) for part in (query, key))
        return self.attn_out(dot_product_attention(query, key, value, self.num_heads, self.implementation))

    def _dropped(self, x: Array, rngs: nnx.Rngs | None) -> Array:
        return layers.dropout(x, self.dropout, rngs)


class OutputLayer(nnx.Module):
    """Modulated layer norm and a dense layer to the logits, which start at zero."""

    def __init__(self, hidden_size: int, out_features: int, cond_dim: int, *, rngs: nnx.Rngs):
        self.norm_final = layers.layer_norm(hidden_size, affine=False, rngs=rngs)
        self.linear = layers.linear(hidden_size, out_features, scale=0.0, rngs=rngs)
        self.adaLN_modulation = layers.linear(cond_dim, 2 * hidden_size, scale=0.0, rngs=rngs)

    def __call__(self, x: Float[Array, "batch n c"], emb: Float[Array, "batch c2"]) -> Float[Array, "batch n out"]:
        shift, scale = jnp.split(self.adaLN_modulation(emb)[:, None, :], 2, -1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


def check_rotary(hidden_size: int, num_heads: int) -> None:
    """Raises ValueError unless the heads divide the width, into even widths that rotary embeddings can rotate."""
    if (hidden_size // check_heads(num_heads, hidden_size)) % 2:
        raise ValueError(f"hidden_size={hidden_size} over num_heads={num_heads} must be even, for rotary embeddings.")


def rotary(x: Float[Array, "batch n c"], num_heads: int) -> Float[Array, "batch n c"]:
    """Rotary position embedding: pair (j, j + d/2) of each head is turned by position / 10000^(2 j / d).

    d is the width of a head. Inner products of two positions depend on their distance alone (arXiv:2104.09864).
    """
    batch, n, c = x.shape
    half = c // num_heads // 2
    angles = jnp.arange(n, dtype=jnp.float32)[:, None] * _BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)
    cos, sin = (f(angles)[None, :, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x.reshape(batch, n, num_heads, 2 * half), 2, -1)
    turned = jnp.concatenate([first * cos - second * sin, first * sin + second * cos], -1)
    return turned.reshape(x.shape)
