"""A transformer over the points of a cloud, whose order does not matter (arXiv:2212.08751, section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from diffusion_jax.networks import layers, transformer
from diffusion_jax.networks.attention import check_heads, dot_product_attention
from diffusion_jax.networks.base import DenoisingNetwork
from diffusion_jax.networks.conditioning import TokenEncoder, VectorEmbedding
from diffusion_jax.networks.conditions import Condition, Conditions, structure
from diffusion_jax.networks.dit import LabelEmbedder
from diffusion_jax.types import Embedded, Spec

KNOWN, NODES = "known", "nodes"  # conditions: the points that are given, NaN elsewhere; which points exist


class PointTransformer(DenoisingNetwork):
    """Point-E's transformer from clouds [batch, points, channels] to as many points, without positional codes.

    Each point is a token; tokens of c_noise and of the conditions come before them. Blocks normalise first, as do the
    whole stack's input and output; the output starts at zero. Permuting the points permutes the output.
    With `inducing` tokens, blocks attend by way of these instead of between all pairs of points, at a cost that is
    linear in the number of points (the ISAB of Set Transformer, arXiv:1810.00825, eq. 10).

    Args:
        shape: (points, channels) of a cloud.
        width: of the tokens, a multiple of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: width of the blocks' MLP over `width`.
        inducing: number of learned tokens that points attend by way of; 0 for attention between all of them.
        prepend_time: whether c_noise is a token before the points; else its embedding is added to every point.
        embedding: "positional" (c_noise is a timestep in 0..999) or "fourier" (of order 1).
        fourier_scale: standard deviation of the Fourier frequencies.
        num_classes: of the condition "label"; 0 for none.
        vector_dim: of the condition "vector", such as an embedding of an image by CLIP of length 1; 0 for none.
        token_dim: width of the condition "tokens", or of their encoding if there is a `vocabulary`; 0 for none.
        vocabulary: number of ids of "tokens", which a transformer encodes; 0 if they are vectors with a "mask".
        max_tokens: length of "tokens".
        known: whether the structure "known" is read: points that are given, NaN for those to be drawn. Given points
            enter clean, with a mark, in place of x (arXiv:2104.03670, section 3.3).
        masked: whether the structure "nodes" is read: which points exist. The others have no effect on those.
        learn_sigma: whether the output also holds the channels of the variance.
        attention_implementation: see `attention.dot_product_attention`.
        remat: compute the activations of a block again in the backward pass instead of storing them.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: for examples that are no clouds, or if `num_heads` does not divide `width`.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...] = (1024, 3),
        width: int = 512,
        depth: int = 12,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        inducing: int = 0,
        prepend_time: bool = True,
        embedding: str = "positional",
        fourier_scale: float = 1.0,
        num_classes: int = 0,
        vector_dim: int = 0,
        token_dim: int = 0,
        vocabulary: int = 0,
        max_tokens: int = 0,
        known: bool = False,
        masked: bool = False,
        learn_sigma: bool = False,
        attention_implementation: str | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        if len(shape) != 2:
            raise ValueError(f"examples of shape {shape} are no clouds, [points, channels]")
        check_heads(num_heads, width)
        points, channels = shape
        self.input_shape = tuple(shape)
        self.prepend_time, self.remat, self.vector_dim = prepend_time, remat, vector_dim
        given = {KNOWN: Condition(Spec(tuple(shape)), math.nan, structure=True)} if known else {}
        nodes = {NODES: structure((points,), "bool", null=True)} if masked else {}
        self.conditions = Conditions(
            {**given, **nodes},
            num_classes=num_classes,
            vector_dim=vector_dim,
            token_dim=token_dim,
            vocabulary=vocabulary,
            max_tokens=max_tokens,
        )
        waves = dict(embedding=embedding, fourier_scale=fourier_scale)
        self.time_embed = layers.TimeEmbedding(width, width, **waves, rngs=rngs)
        self.y_embedder = LabelEmbedder(num_classes, width, rngs=rngs) if num_classes else None
        self.clip_embed = VectorEmbedding(vector_dim, width, rngs=rngs) if vector_dim else None
        self.token_encoder = TokenEncoder(vocabulary, max_tokens, token_dim, rngs=rngs) if vocabulary else None
        self.token_proj = layers.linear(token_dim, width, rngs=rngs) if token_dim else None
        self.input_proj = layers.linear(channels + known, width, rngs=rngs)
        self.ln_pre = transformer.layer_norm(width, rngs=rngs)

        def attention() -> nnx.Module:
            if inducing:
                return InducedAttention(width, num_heads, inducing, rngs=rngs)
            return transformer.Attention(width, num_heads, implementation=attention_implementation, rngs=rngs)

        self.blocks = nnx.List(
            [
                transformer.Block(
                    lambda: transformer.layer_norm(width, rngs=rngs),
                    attention(),
                    transformer.MLP(width, int(width * mlp_ratio), activation="gelu", rngs=rngs),
                )
                for _ in range(depth)
            ]
        )
        self.ln_post = transformer.layer_norm(width, rngs=rngs)
        self.output_proj = layers.linear(width, channels * (2 if learn_sigma else 1), scale=0.0, rngs=rngs)

    def forward(
        self,
        x: Float[Array, "batch points channels"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch points out"]:
        others = cond.others or {}
        if KNOWN in others:
            given = jnp.isfinite(others[KNOWN])
            x = jnp.where(given, jnp.where(given, others[KNOWN], 0), x)
            x = jnp.concatenate([x, given[..., :1].astype(x.dtype)], -1)
        h, time = self.input_proj(x), self.time_embed(c_noise, x.dtype)[:, None]
        before = [time] if self.prepend_time else []
        before += [] if cond.vector is None else [cond.vector[:, None]]
        before += [] if cond.context is None else [self.token_proj(cond.context)]
        h = jnp.concatenate([*before, h if self.prepend_time else h + time], 1)
        mask = self._mask(h, cond, others.get(NODES))
        h = self.ln_pre(h)
        for block in self.blocks:
            h = layers.call_block(_without_dropout(block), h, mask, rngs=rngs, remat=self.remat)
        return self.output_proj(self.ln_post(h[:, -x.shape[1] :]))

    def embedders(self) -> dict[str, Callable[..., Array] | None]:
        def vector(value: Float[Array, "batch c"]) -> Float[Array, "batch width"]:
            return self.clip_embed(value * math.sqrt(self.vector_dim))  # of numbers of unit size

        return dict(label=self.y_embedder, vector=vector if self.vector_dim else None, tokens=self.token_encoder)

    def _mask(
        self, h: Float[Array, "batch n c"], cond: Embedded, nodes: Bool[Array, "batch points"] | None
    ) -> Bool[Array, "batch n"] | None:
        """Which tokens exist; None: all."""
        if nodes is None and cond.mask is None:
            return None
        points = jnp.ones((len(h), self.input_shape[0]), bool) if nodes is None else nodes.astype(bool)
        texts = jnp.ones((len(h), 0), bool) if cond.mask is None else cond.mask.astype(bool)
        first = jnp.ones((len(h), h.shape[1] - points.shape[1] - texts.shape[1]), bool)
        return jnp.concatenate([first, texts, points], 1)


class InducedAttention(nnx.Module):
    """Attention by way of `inducing` learned tokens: these attend to x, and x attends to what they have gathered.

    Args:
        dim: of the tokens.
        num_heads: attention heads; divides `dim`.
        inducing: number of learned tokens.
        rngs: randomness of the initial parameters.
    """

    def __init__(self, dim: int, num_heads: int, inducing: int, *, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.inducing = nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), (inducing, dim)))
        self.gather_q, self.gather_k, self.gather_v = (layers.linear(dim, dim, rngs=rngs) for _ in range(3))
        self.norm = transformer.layer_norm(dim, rngs=rngs)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (layers.linear(dim, dim, rngs=rngs) for _ in range(4))

    def __call__(
        self, x: Float[Array, "batch n dim"], *, mask: Bool[Array, "batch n"] | None = None, bias: None = None
    ) -> Float[Array, "batch n dim"]:
        tokens = jnp.broadcast_to(self.inducing[...].astype(x.dtype), (len(x), *self.inducing.shape))
        keys, values = self.gather_k(x), self.gather_v(x)
        gathered = dot_product_attention(self.gather_q(tokens), keys, values, self.num_heads, mask=mask)
        z = self.norm(tokens + gathered)
        return self.out_proj(dot_product_attention(self.q_proj(x), self.k_proj(z), self.v_proj(z), self.num_heads))


def _without_dropout(block: transformer.Block) -> Callable[..., Array]:
    """A block as `layers.call_block` calls it: it has no dropout."""
    return lambda h, mask, rngs=None: block(h, mask=mask)
