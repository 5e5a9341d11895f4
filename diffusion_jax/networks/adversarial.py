"""Generators and discriminators as residual multi-layer perceptrons, for points and small images."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import layers
from diffusion_jax.networks.base import DenoisingNetwork
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.types import Embedded

SLOPE = 0.2  # of leaky ReLU below 0, in all networks of this file and of `r3gan`


class MLPGenerator(DenoisingNetwork):
    """Residual MLP from z to an example: [batch, latent_dim] -> [batch, *shape]. c_noise is not read.

    Args:
        shape: of one example.
        latent_dim: numbers of z.
        hidden: width.
        num_layers: residual blocks, see `Block`.
        num_classes: of the condition "label", whose embedding is added to that of z; 0 for none.
        rngs: randomness of the initial parameters.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...] = (2,),
        latent_dim: int = 64,
        hidden: int = 128,
        num_layers: int = 3,
        num_classes: int = 0,
        rngs: nnx.Rngs,
    ):
        self.input_shape, self.out_shape = (latent_dim,), tuple(shape)
        self.conditions = Conditions(num_classes=num_classes)
        self.class_embedding = nnx.Embed(num_classes + 1, hidden, rngs=rngs) if num_classes else None
        self.linear_in = layers.linear(latent_dim, hidden, rngs=rngs)
        self.blocks = nnx.List([Block(hidden, rngs=rngs) for _ in range(num_layers)])
        self.linear_out = layers.linear(hidden, math.prod(shape), rngs=rngs)

    def forward(
        self,
        x: Float[Array, "batch z"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch *shape"]:
        h = self.linear_in(x)
        h = h if cond.vector is None else h + cond.vector
        for block in self.blocks:
            h = block(h)
        return self.linear_out(activate(h)).reshape(len(x), *self.out_shape)

    def embedders(self) -> dict[str, Callable[..., Array] | None]:
        return dict(label=self.class_embedding)


class MLPDiscriminator(DenoisingNetwork):
    """Residual MLP from an example to a logit, high for real ones: [batch, *shape] -> [batch, 1].

    There is no normalisation, and nothing depends on other examples of the batch.

    Args:
        shape: of one example.
        hidden: width.
        num_layers: residual blocks, see `Block`.
        time: whether c_noise is read; its embedding enters every block.
        image_channels: of the condition "image", concatenated to x; 0 for none.
        num_classes: of the condition "label": the inner product of its embedding and the activations is added to the
            logit (arXiv:1802.05637); 0 for none.
        embedding, fourier_scale: of c_noise, see `layers.TimeEmbedding`.
        rngs: randomness of the initial parameters.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...] = (2,),
        hidden: int = 128,
        num_layers: int = 3,
        time: bool = False,
        image_channels: int = 0,
        num_classes: int = 0,
        embedding: str = "fourier",
        fourier_scale: float = 1.0,
        rngs: nnx.Rngs,
    ):
        self.input_shape = tuple(shape)
        image_shape = (*shape[:-1], image_channels) if image_channels else ()
        self.conditions = Conditions(num_classes=num_classes, image_shape=image_shape)
        waves = dict(embedding=embedding, fourier_scale=fourier_scale)
        self.time_embedding = layers.TimeEmbedding(hidden // 2, hidden, **waves, rngs=rngs) if time else None
        self.class_embedding = nnx.Embed(num_classes + 1, hidden, rngs=rngs) if num_classes else None
        self.linear_in = layers.linear(math.prod(shape) + math.prod(image_shape or (0,)), hidden, rngs=rngs)
        emb_dim = hidden if time else 0
        self.blocks = nnx.List([Block(hidden, emb_dim, rngs=rngs) for _ in range(num_layers)])
        self.linear_out = layers.linear(hidden, 1, rngs=rngs)

    def forward(
        self,
        x: Float[Array, "batch *shape"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch 1"]:
        rows = x.reshape(len(x), -1)
        if cond.image is not None:
            rows = jnp.concatenate([rows, cond.image.reshape(len(x), -1)], -1)
        emb = None if self.time_embedding is None else activate(self.time_embedding(c_noise, x.dtype))
        h = self.linear_in(rows)
        for block in self.blocks:
            h = block(h, emb)
        h = activate(h)
        logit = self.linear_out(h)
        return logit if cond.vector is None else logit + jnp.sum(cond.vector * h, -1, keepdims=True)

    def embedders(self) -> dict[str, Callable[..., Array] | None]:
        return dict(label=self.class_embedding)


class Block(nnx.Module):
    """h + W_2 act(W_1 act(h) + E emb), without normalisation; it starts as the identity. act is leaky ReLU."""

    def __init__(self, hidden: int, emb_dim: int = 0, *, rngs: nnx.Rngs):
        self.linear_1 = layers.linear(hidden, hidden, rngs=rngs)
        self.time_emb_proj = layers.linear(emb_dim, hidden, rngs=rngs) if emb_dim else None
        self.linear_2 = layers.linear(hidden, hidden, scale=0.0, rngs=rngs)

    def __call__(
        self, h: Float[Array, "batch hidden"], emb: Float[Array, "batch emb"] | None = None
    ) -> Float[Array, "batch hidden"]:
        r = self.linear_1(activate(h))
        r = r if self.time_emb_proj is None else r + self.time_emb_proj(emb)
        return h + self.linear_2(activate(r))


def activate(h: Array) -> Array:
    """Leaky ReLU."""
    return jax.nn.leaky_relu(h, SLOPE)
