"""The MLP of latent DDIM, which reads its input again in every layer (arXiv:2111.15640)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import layers
from diffusion_jax.networks.base import DenoisingNetwork
from diffusion_jax.types import Embedded


class MLPSkip(DenoisingNetwork):
    """MLP over a vector, concatenated to the activations before every layer but the first: [batch, d] -> [batch, d].

    A layer is h <- silu(norm((W [h, x]) (1 + E silu(emb)))), the last one linear alone (arXiv:2111.15640).
    emb are two dense layers on the sinusoidal embedding of c_noise, a timestep in 0..999. Attribute names
    are those of the authors' MLPSkipNet. The defaults are their network for FFHQ.

    Args:
        shape: of one example, (d,).
        hidden: width.
        num_layers: number of layers, the last one included.
        time_channels: of the sinusoidal embedding.
        dropout: rate, after every layer but the last.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: for examples that are no vectors, or fewer than two layers.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        hidden: int = 2048,
        num_layers: int = 10,
        time_channels: int = 64,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        if len(shape) != 1 or num_layers < 2:
            raise ValueError(f"shape={tuple(shape)} must be that of a vector, and num_layers={num_layers} at least 2.")
        (width,) = self.input_shape = tuple(shape)
        self.time_channels = time_channels
        first, last = layers.linear(time_channels, width, rngs=rngs), layers.linear(width, width, rngs=rngs)
        self.time_embed = nnx.List([first, jax.nn.silu, last])
        inputs = [width, *[hidden + width] * (num_layers - 1)]
        self.layers = nnx.List(MLPSkipLayer(n, hidden, width, dropout=dropout, rngs=rngs) for n in inputs[:-1])
        self.linear_out = layers.linear(inputs[-1], width, rngs=rngs)

    def forward(
        self,
        x: Float[Array, "batch d"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch d"]:
        emb = layers.sinusoidal_embedding(c_noise, self.time_channels, flip_sin_to_cos=True, downscale_freq_shift=0.0)
        emb = emb.astype(x.dtype)
        for layer in self.time_embed:
            emb = layer(emb)
        h = x
        for i, layer in enumerate(self.layers):
            h = layer(jnp.concatenate([h, x], -1) if i else h, emb, rngs=rngs)
        return self.linear_out(jnp.concatenate([h, x], -1))


class MLPSkipLayer(nnx.Module):
    """One layer of `MLPSkip`; its weights start from N(0, 2 / inputs), as the authors' do."""

    def __init__(self, in_features: int, out_features: int, emb_dim: int, *, dropout: float, rngs: nnx.Rngs):
        def linear(n: int) -> nnx.Linear:
            init = nnx.initializers.normal(math.sqrt(2 / n))
            return nnx.Linear(n, out_features, kernel_init=init, rngs=rngs)

        self.dropout = dropout
        self.linear, self.linear_emb = linear(in_features), linear(emb_dim)
        self.norm = layers.layer_norm(out_features, epsilon=1e-5, rngs=rngs)

    def __call__(
        self, h: Float[Array, "batch c"], emb: Float[Array, "batch emb"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch out"]:
        h = self.linear(h) * (1 + self.linear_emb(jax.nn.silu(emb)))
        return layers.dropout(jax.nn.silu(self.norm(h)), self.dropout, rngs)
