"""A residual multi-layer perceptron for vectors and small images."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import layers
from diffusion_jax.networks.base import DenoisingNetwork
from diffusion_jax.networks.conditioning import VectorEmbedding
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.types import Embedded


class MLP(DenoisingNetwork):
    """Residual MLP over the flattened example: h <- h + W_2 drop(act(W_1 norm(h) + E emb)), `num_layers` times.

    `norm` is layer normalisation and emb = TimeEmbedding(c_noise), plus the embeddings of the conditions.
    [batch, *shape] -> [batch, *shape[:-1], out_channels].

    Args:
        shape: of one example, e.g. (2,) for points in the plane or (8, 8, 1) for images.
        out_channels: size of the last axis of the output; None: that of the input.
        hidden: width.
        num_layers: number of residual blocks.
        activation: see `layers.activation`.
        embedding: "fourier" or "positional"; see `layers.TimeEmbedding`.
        fourier_scale: standard deviation of the Fourier frequencies.
        dropout: rate.
        gap: whether the network of a flow map: c_noise may be [batch, 2], see `layers.embed_times`.
        num_classes: of the condition "label", see `Conditions`; 0 for none.
        vector_dim: of the condition "vector"; 0 for none.
        image_channels: of the condition "image", concatenated to x; 0 for none.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: if `shape` is empty, `activation` or `embedding` is unknown, or x does not have the `shape`.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...] = (2,),
        out_channels: int | None = None,
        hidden: int = 128,
        num_layers: int = 3,
        activation: str = "silu",
        embedding: str = "fourier",
        fourier_scale: float = 1.0,
        dropout: float = 0.0,
        gap: bool = False,
        num_classes: int = 0,
        vector_dim: int = 0,
        image_channels: int = 0,
        rngs: nnx.Rngs,
    ):
        if not shape:
            raise ValueError("shape=() must name at least one axis, e.g. (2,).")
        self.input_shape = tuple(shape)
        self.out_shape = (*shape[:-1], out_channels or shape[-1])
        image_shape = (*shape[:-1], image_channels) if image_channels else ()
        self.conditions = Conditions(num_classes=num_classes, vector_dim=vector_dim, image_shape=image_shape)
        sizes = (hidden // 2, hidden)
        waves = dict(embedding=embedding, fourier_scale=fourier_scale)
        self.time_embedding = layers.TimeEmbedding(*sizes, **waves, rngs=rngs)
        self.gap_embedding = layers.TimeEmbedding(*sizes, **waves, rngs=rngs) if gap else None
        self.class_embedding = nnx.Embed(num_classes + 1, hidden, rngs=rngs) if num_classes else None
        self.add_embedding = VectorEmbedding(vector_dim, hidden, rngs=rngs) if vector_dim else None
        self.linear_in = layers.linear(math.prod(shape) + math.prod(image_shape or (0,)), hidden, rngs=rngs)
        self.blocks = nnx.List(
            [MLPBlock(hidden, activation=activation, dropout=dropout, rngs=rngs) for _ in range(num_layers)]
        )
        self.norm_out = layers.layer_norm(hidden, rngs=rngs)
        self.linear_out = layers.linear(hidden, math.prod(self.out_shape), scale=0.0, rngs=rngs)

    def forward(
        self,
        x: Float[Array, "batch *shape"],
        c_noise: Float[Array, "batch *times"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch *out"]:
        batch = x.shape[0]
        emb = layers.embed_times(self.time_embedding, self.gap_embedding, c_noise, x.dtype)
        emb = jax.nn.silu(emb if cond.vector is None else emb + cond.vector)
        x = x.reshape(batch, -1)
        h = self.linear_in(x if cond.image is None else jnp.concatenate([x, cond.image.reshape(batch, -1)], -1))
        for block in self.blocks:
            h = block(h, emb, rngs=rngs)
        return self.linear_out(self.norm_out(h)).reshape(batch, *self.out_shape)

    def embedders(self) -> dict[str, Callable[..., Array] | None]:
        return dict(label=self.class_embedding, vector=self.add_embedding)


class MLPBlock(nnx.Module):
    """One residual block of `MLP`; it starts as the identity."""

    def __init__(self, hidden: int, *, activation: str, dropout: float, rngs: nnx.Rngs):
        self.activation = layers.activation(activation)
        self.dropout = dropout
        self.norm = layers.layer_norm(hidden, rngs=rngs)
        self.linear_1 = layers.linear(hidden, hidden, rngs=rngs)
        self.time_emb_proj = layers.linear(hidden, hidden, rngs=rngs)
        self.linear_2 = layers.linear(hidden, hidden, scale=0.0, rngs=rngs)

    def __call__(
        self, h: Float[Array, "batch hidden"], emb: Float[Array, "batch hidden"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch hidden"]:
        r = self.activation(self.linear_1(self.norm(h)) + self.time_emb_proj(emb))
        return h + self.linear_2(layers.dropout(r, self.dropout, rngs))
