"""CLIP's text and image encoders (arXiv:2103.00020), of OpenAI and of OpenCLIP (arXiv:2212.07143)."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from diffusion_jax.networks import transformer

ARGMAX_EOS = 2  # with this eos_token_id a text ends at the greatest id, whatever that is


class Encoded(NamedTuple):
    """A sequence of vectors, and one vector for the whole, which some encoders do not have."""

    hidden: Float[Array, "batch n hidden_size"]
    pooled: Float[Array, "batch dim"] | None


class CLIPTextModel(nnx.Module):
    """A causal transformer over token ids: [batch, n] -> `Encoded`, with what diffusion models take from it.

    `pooled` is the last layer, normalised, at the end-of-text token, and projected if there is a projection. `hidden`
    is the last layer, or an earlier one, with or without the normalisation:

    | model | `skip` | `normalize` | `projection_dim` |
    |---|---|---|---|
    | Stable Diffusion 1: OpenAI's ViT-L/14 | 0 | True | None |
    | 2: OpenCLIP's ViT-H/14, whose files hold 23 of 24 layers | 0 | True | None |
    | XL: OpenAI's ViT-L/14 and OpenCLIP's ViT-bigG/14 | 1 | False | None and 1280 |

    Padding is attended to by what follows it, that is by padding only, as in all of these. The table of token vectors
    may be given more rows than `vocab_size`, those of learned tokens.

    Args:
        vocab_size: number of ids.
        hidden_size: width.
        intermediate_size: width of the hidden layers of the perceptrons.
        num_hidden_layers: number of blocks.
        num_attention_heads: divides `hidden_size`.
        max_position_embeddings: length of the longest text.
        hidden_act: "quick_gelu" (OpenAI) or "gelu" (OpenCLIP).
        layer_norm_eps: epsilon of the normalisations.
        projection_dim: dimension of `pooled` after its projection; None for no projection.
        eos_token_id: a text ends at the first of these ids; with 2 at the greatest id below `vocab_size`, since files
            whose config.json says so have the end-of-text token as their last id. Ids from `vocab_size` on are those of
            learned tokens.
        skip: how many of the last blocks `hidden` leaves out ("clip skip").
        normalize: whether `hidden` passes the final normalisation.
        attention_implementation: see `attention.dot_product_attention`.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: an argument out of range.
    """

    token_table = "token_embedding"  # attribute of the table of token vectors

    def __init__(
        self,
        *,
        vocab_size: int = 49408,
        hidden_size: int = 768,
        intermediate_size: int = 3072,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        max_position_embeddings: int = 77,
        hidden_act: str = "quick_gelu",
        layer_norm_eps: float = 1e-5,
        projection_dim: int | None = None,
        eos_token_id: int = ARGMAX_EOS,
        skip: int = 0,
        normalize: bool = True,
        attention_implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        if not 0 <= skip <= num_hidden_layers:
            raise ValueError(f"skip={skip} must be in 0..{num_hidden_layers}, the number of layers.")
        self.max_position_embeddings = max_position_embeddings
        self.eos_token_id = eos_token_id
        self.vocab_size = vocab_size
        self.skip = skip
        self.normalize = normalize
        self.token_embedding = transformer.embedding(vocab_size, hidden_size, rngs=rngs)
        self.position_embedding = transformer.embedding(max_position_embeddings, hidden_size, rngs=rngs)
        self.layers = _blocks(
            num_hidden_layers,
            hidden_size,
            intermediate_size,
            num_attention_heads,
            hidden_act,
            layer_norm_eps,
            attention_implementation,
            causal=True,
            rngs=rngs,
        )
        self.final_layer_norm = transformer.layer_norm(hidden_size, epsilon=layer_norm_eps, rngs=rngs)
        self.text_projection = _projection(hidden_size, projection_dim, rngs)

    def __call__(self, ids: Int[Array, "batch n"]) -> Encoded:
        transformer.check_length(ids.shape[1], self.max_position_embeddings)
        h = self.token_embedding(ids) + self.position_embedding(jnp.arange(ids.shape[1]))
        kept = h
        for i, block in enumerate(self.layers, start=1):
            h = block(h)
            kept = h if i == len(self.layers) - self.skip else kept
        last = self.final_layer_norm(h)
        hidden = self.final_layer_norm(kept) if self.normalize else kept
        known = jnp.where(ids < self.vocab_size, ids, -1)
        ends = known if self.eos_token_id == ARGMAX_EOS else ids == self.eos_token_id
        pooled = last[jnp.arange(ids.shape[0]), jnp.argmax(ends, axis=1)]
        return Encoded(hidden, pooled if self.text_projection is None else self.text_projection(pooled))


class CLIPVisionModel(nnx.Module):
    """A vision transformer (arXiv:2010.11929): images [batch, image_size, image_size, channels] -> `Encoded`.

    `hidden` are the class token and the patches, row by row, after the last block; `pooled` is the class token,
    normalised and, if there is a projection, projected to the space that it shares with the text. The images are
    normalised with the mean and deviation of `evaluation.clip_score`.

    Args:
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads: see `CLIPTextModel`.
        num_channels: of the images.
        image_size: their side in pixels, a multiple of `patch_size`.
        patch_size: side of a patch in pixels.
        hidden_act, layer_norm_eps, projection_dim, attention_implementation: see `CLIPTextModel`.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        *,
        hidden_size: int = 1024,
        intermediate_size: int = 4096,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 16,
        num_channels: int = 3,
        image_size: int = 224,
        patch_size: int = 14,
        hidden_act: str = "quick_gelu",
        layer_norm_eps: float = 1e-5,
        projection_dim: int | None = 768,
        attention_implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        if patch_size < 1 or image_size < patch_size or image_size % patch_size:
            raise ValueError(f"image_size={image_size} must be a positive multiple of patch_size={patch_size}.")
        self.image_size = image_size
        init = nnx.initializers.normal(0.02)
        self.class_embedding = nnx.Param(init(rngs.params(), (hidden_size,)))
        self.patch_embedding = nnx.Conv(
            num_channels,
            hidden_size,
            (patch_size, patch_size),
            strides=patch_size,
            padding="VALID",
            use_bias=False,
            kernel_init=init,
            rngs=rngs,
        )
        self.position_embedding = transformer.embedding((image_size // patch_size) ** 2 + 1, hidden_size, rngs=rngs)
        self.pre_layrnorm = transformer.layer_norm(hidden_size, epsilon=layer_norm_eps, rngs=rngs)
        self.layers = _blocks(
            num_hidden_layers,
            hidden_size,
            intermediate_size,
            num_attention_heads,
            hidden_act,
            layer_norm_eps,
            attention_implementation,
            causal=False,
            rngs=rngs,
        )
        self.post_layernorm = transformer.layer_norm(hidden_size, epsilon=layer_norm_eps, rngs=rngs)
        self.visual_projection = _projection(hidden_size, projection_dim, rngs)

    def __call__(self, x: Float[Array, "batch h w c"]) -> Encoded:
        if x.shape[1:3] != (self.image_size, self.image_size):
            raise ValueError(f"images of {x.shape[1]} x {x.shape[2]} pixels must have {self.image_size} on each side.")
        patches = self.patch_embedding(x).reshape(x.shape[0], -1, self.class_embedding.shape[0])
        first = jnp.broadcast_to(self.class_embedding[...].astype(patches.dtype), (x.shape[0], 1, patches.shape[-1]))
        h = jnp.concatenate([first, patches], axis=1)
        h = self.pre_layrnorm(h + self.position_embedding(jnp.arange(h.shape[1])))
        for block in self.layers:
            h = block(h)
        pooled = self.post_layernorm(h[:, 0])
        return Encoded(h, pooled if self.visual_projection is None else self.visual_projection(pooled))


def _blocks(
    count: int,
    dim: int,
    hidden: int,
    num_heads: int,
    activation: str,
    epsilon: float,
    implementation: str | None,
    *,
    causal: bool,
    rngs: nnx.Rngs,
) -> nnx.List:
    norm = functools.partial(transformer.layer_norm, dim, epsilon=epsilon, rngs=rngs)
    return nnx.List(
        [
            transformer.Block(
                norm,
                transformer.Attention(dim, num_heads, causal=causal, implementation=implementation, rngs=rngs),
                transformer.MLP(dim, hidden, activation=activation, rngs=rngs),
            )
            for _ in range(count)
        ]
    )


def _projection(dim: int, projection_dim: int | None, rngs: nnx.Rngs) -> nnx.Linear | None:
    return transformer.linear(dim, projection_dim, use_bias=False, rngs=rngs) if projection_dim else None
