"""A diffusion transformer over a sequence of vectors, such as the embeddings of tokens (arXiv:2205.14217)."""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import layers
from diffusion_jax.networks.base import DenoisingNetwork
from diffusion_jax.networks.dit import TimestepEmbedder
from diffusion_jax.networks.token_dit import OutputLayer, TokenBlock, check_rotary
from diffusion_jax.types import Embedded


class SequenceDiT(DenoisingNetwork):
    """Transformer from vectors [batch, length, channels] to as many, with the blocks of `TokenDiT` (adaLN and RoPE).

    A layer maps each vector to the width of the blocks. The output starts at zero. c_noise is a timestep in 0..999.

    Args:
        shape: (length, channels) of the sequence.
        hidden_size: width; a multiple of `num_heads`, with an even width of a head.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: width of the blocks' MLP over `hidden_size`.
        cond_dim: width of the embedding of the noise label.
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
        shape: tuple[int, ...] = (64, 16),
        hidden_size: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        cond_dim: int = 64,
        dropout: float = 0.0,
        attention_implementation: str | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        if len(shape) != 2:
            raise ValueError(f"examples of shape {shape} are no sequences of vectors")
        check_rotary(hidden_size, num_heads)
        self.input_shape = tuple(shape)
        self.remat = remat
        self.input_layer = layers.linear(shape[-1], hidden_size, rngs=rngs)
        self.sigma_map = TimestepEmbedder(cond_dim, 0.0, rngs=rngs)
        sizes = (hidden_size, num_heads, int(hidden_size * mlp_ratio), cond_dim, dropout, attention_implementation)
        self.blocks = nnx.List([TokenBlock(*sizes, rngs=rngs) for _ in range(depth)])
        self.output_layer = OutputLayer(hidden_size, shape[-1], cond_dim, rngs=rngs)

    def forward(
        self,
        x: Float[Array, "batch n c"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch n c"]:
        h = self.input_layer(x)
        emb = jax.nn.silu(self.sigma_map(c_noise, h.dtype))
        for block in self.blocks:
            h = layers.call_block(block, h, emb, rngs=rngs, remat=self.remat)
        return self.output_layer(h, emb)
