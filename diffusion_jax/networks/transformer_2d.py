"""The transformer between the residual blocks of latent diffusion's U-Net (arXiv:2112.10752, appendix E.2.1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from diffusion_jax.networks import layers
from diffusion_jax.networks.attention import check_heads, dot_product_attention
from diffusion_jax.networks.transformer import layer_norm


class Transformer2DModel(nnx.Module):
    """x + proj_out(blocks(proj_in(norm(x)))) over all pixels of x, which attend to each other and to a context.

    Without a context, context_dim=0, they attend to each other twice, as in AudioLDM (arXiv:2301.12503).

    It starts as the identity. Attribute names follow Transformer2DModel of diffusers.

    Args:
        channels: of the input and the output.
        context_dim: of the context; 0 for none.
        depth: number of blocks.
        num_heads: attention heads; divides `channels`.
        num_groups: groups of the normalisation.
        only_cross_attention: whether pixels attend to the context twice instead of to each other.
        use_linear_projection: whether proj_in and proj_out are dense layers, not 1 x 1 convolutions. The function is
            the same; the shapes of the weights differ.
        implementation: see `attention.dot_product_attention`.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: if `num_heads` does not divide `channels`, `depth` is less than 1, or there is no context for
            `only_cross_attention`.
    """

    def __init__(
        self,
        channels: int,
        context_dim: int,
        *,
        depth: int,
        num_heads: int,
        num_groups: int = 32,
        only_cross_attention: bool = False,
        use_linear_projection: bool = False,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        check_heads(num_heads, channels)
        if depth < 1:
            raise ValueError(f"depth={depth} of a transformer must be at least 1.")
        if only_cross_attention and not context_dim:
            raise ValueError("only_cross_attention=True needs a context.")

        def project(scale: float) -> nnx.Module:
            if use_linear_projection:
                return layers.linear(channels, channels, scale=scale, rngs=rngs)
            return layers.conv(channels, channels, 1, scale=scale, rngs=rngs)

        self.norm = layers.GroupNorm(channels, num_groups=num_groups)
        self.proj_in = project(1.0)
        self.transformer_blocks = nnx.List(
            BasicTransformerBlock(
                channels,
                context_dim,
                num_heads=num_heads,
                only_cross_attention=only_cross_attention,
                implementation=implementation,
                rngs=rngs,
            )
            for _ in range(depth)
        )
        self.proj_out = project(0.0)

    def __call__(
        self,
        x: Float[Array, "batch h w c"],
        context: Float[Array, "batch n d"] | None = None,
        mask: Bool[Array, "batch n"] | None = None,
    ) -> Float[Array, "batch h w c"]:
        h = self.proj_in(self.norm(x))
        h = h.reshape(x.shape[0], -1, x.shape[-1])
        for block in self.transformer_blocks:
            h = block(h, context, mask)
        return x + self.proj_out(h.reshape(x.shape))


class BasicTransformerBlock(nnx.Module):
    """Self-attention, cross-attention to a context and a gated perceptron, each residual after a LayerNorm.

    Without a context the second attention is self-attention too. Arguments are those of `Transformer2DModel`.
    """

    def __init__(
        self,
        channels: int,
        context_dim: int,
        *,
        num_heads: int,
        only_cross_attention: bool,
        implementation: str | None,
        rngs: nnx.Rngs,
    ):
        self.only_cross_attention = only_cross_attention
        options = dict(num_heads=num_heads, implementation=implementation, rngs=rngs)
        self.norm1 = layer_norm(channels, rngs=rngs)
        self.attn1 = Attention(channels, context_dim if only_cross_attention else channels, **options)
        self.norm2 = layer_norm(channels, rngs=rngs)
        self.attn2 = Attention(channels, context_dim or channels, **options)
        self.norm3 = layer_norm(channels, rngs=rngs)
        self.ff = FeedForward(channels, rngs=rngs)

    def __call__(
        self,
        h: Float[Array, "batch m c"],
        context: Float[Array, "batch n d"] | None,
        mask: Bool[Array, "batch n"] | None,
    ) -> Float[Array, "batch m c"]:
        query = self.norm1(h)
        first = (context, mask) if self.only_cross_attention else (query, None)
        h = h + self.attn1(query, *first)
        query = self.norm2(h)
        h = h + self.attn2(query, *((query, None) if context is None else (context, mask)))
        return h + self.ff(self.norm3(h))


class Attention(nnx.Module):
    """out(attention(q(h), k(context), v(context))); queries, keys and values have no bias."""

    def __init__(self, channels: int, context_dim: int, *, num_heads: int, implementation: str | None, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.implementation = implementation
        self.to_q = layers.linear(channels, channels, use_bias=False, rngs=rngs)
        self.to_k = layers.linear(context_dim, channels, use_bias=False, rngs=rngs)
        self.to_v = layers.linear(context_dim, channels, use_bias=False, rngs=rngs)
        self.to_out = layers.linear(channels, channels, rngs=rngs)

    def __call__(
        self, h: Float[Array, "batch m c"], context: Float[Array, "batch n d"], mask: Bool[Array, "batch n"] | None
    ) -> Float[Array, "batch m c"]:
        q, k, v = self.to_q(h), self.to_k(context), self.to_v(context)
        return self.to_out(dot_product_attention(q, k, v, self.num_heads, self.implementation, mask=mask))


class FeedForward(nnx.Module):
    """proj_out(a gelu(b)) with (a, b) = proj_in(h), four times as wide as h (arXiv:2002.05202, GEGLU)."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.proj_in = layers.linear(channels, 8 * channels, rngs=rngs)
        self.proj_out = layers.linear(4 * channels, channels, rngs=rngs)

    def __call__(self, h: Float[Array, "batch m c"]) -> Float[Array, "batch m c"]:
        a, b = jnp.split(self.proj_in(h), 2, axis=-1)
        return self.proj_out(a * jax.nn.gelu(b, approximate=False))
