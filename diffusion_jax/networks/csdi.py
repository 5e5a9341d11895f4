"""CSDI's network for multivariate time series: attention over time and over features (arXiv:2107.03502, figure 6)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import layers
from diffusion_jax.networks.attention import check_heads, fused_attention
from diffusion_jax.networks.base import DenoisingNetwork
from diffusion_jax.networks.conditions import Condition, Conditions
from diffusion_jax.types import Embedded, Spec

_FREQUENCIES = 10_000.0
KNOWN = "known"  # the condition: [length, features], NaN where the series is not known


class CSDI(DenoisingNetwork):
    """Residual network of transformers over time and over features, from series [batch, length, features] to the same.

    The inputs of a value are x_t where the series is to be drawn and the known value elsewhere, as two channels, and
    side information: its time and its feature, embedded, and whether it is known. x_t where the series is known, and
    the NaN of the condition "known", have no effect. With `conditional` False nothing is known. The output starts at
    zero. The paper's network of PhysioNet is the default with `shape=(48, 35)`, 414,065 parameters.

    Args:
        shape: (length, features) of the series.
        channels: width.
        num_layers: residual layers.
        num_heads: attention heads; divides `channels`.
        mlp_hidden: width of the MLP of the transformers.
        diffusion_dim: width of the embedding of c_noise, which is a timestep.
        time_dim: of the embedding of the time.
        feature_dim: of the embedding of the feature.
        conditional: whether the condition "known" is read.
        dropout: rate in the transformers.
        remat: compute the activations of a layer again in the backward pass instead of storing them.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: if examples are no series, or `num_heads` does not divide `channels`.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...] = (48, 35),
        channels: int = 64,
        num_layers: int = 4,
        num_heads: int = 8,
        mlp_hidden: int = 64,
        diffusion_dim: int = 128,
        time_dim: int = 128,
        feature_dim: int = 16,
        conditional: bool = True,
        dropout: float = 0.1,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        if len(shape) != 2:
            raise ValueError(f"examples of shape {shape} are no series, [length, features]")
        self.input_shape = tuple(shape)
        self.diffusion_dim, self.time_dim, self.remat = diffusion_dim, time_dim, remat
        known = {KNOWN: Condition(Spec(tuple(shape)), math.nan)}
        self.conditions = Conditions(known if conditional else {})
        self.embed_layer = nnx.Embed(shape[1], feature_dim, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)
        self.projection1 = layers.linear(diffusion_dim, diffusion_dim, rngs=rngs)
        self.projection2 = layers.linear(diffusion_dim, diffusion_dim, rngs=rngs)
        self.input_projection = layers.linear(2, channels, rngs=rngs)
        sizes = (channels, time_dim + feature_dim + 1, diffusion_dim, num_heads, mlp_hidden, dropout)
        self.residual_layers = nnx.List([ResidualLayer(*sizes, rngs=rngs) for _ in range(num_layers)])
        self.output_projection1 = layers.linear(channels, channels, rngs=rngs)
        self.output_projection2 = layers.linear(channels, 1, scale=0.0, rngs=rngs)

    def forward(
        self,
        x: Float[Array, "batch length features"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch length features"]:
        known = (cond.others or {}).get(KNOWN)
        mask = jnp.zeros(x.shape, bool) if known is None else jnp.isfinite(known)
        value = jnp.zeros_like(x) if known is None else jnp.where(mask, known, 0)
        noise = layers.sinusoidal_embedding(c_noise, self.diffusion_dim).astype(x.dtype)
        noise = jax.nn.silu(self.projection2(jax.nn.silu(self.projection1(noise))))
        h = jax.nn.relu(self.input_projection(jnp.stack([value, jnp.where(mask, 0, x)], -1)))
        side = self._side(mask, x.dtype)
        skips = jnp.zeros_like(h)
        for layer in self.residual_layers:
            h, skip = layers.call_block(layer, h, side, noise, rngs=rngs, remat=self.remat)
            skips = skips + skip
        h = jax.nn.relu(self.output_projection1(skips / math.sqrt(len(self.residual_layers))))
        return self.output_projection2(h)[..., 0]

    def _side(self, mask: Array, dtype: jnp.dtype) -> Float[Array, "batch length features side"]:
        """Embeddings of time and feature, and whether the value is known."""
        batch, length, features = mask.shape
        angles = jnp.arange(length)[:, None] / _FREQUENCIES ** (jnp.arange(0, self.time_dim, 2) / self.time_dim)
        # Sine and cosine in turn; an odd width ends with a sine.
        times = jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1).reshape(length, -1)[:, : self.time_dim]
        names = self.embed_layer(jnp.arange(features))
        parts = (times[:, None].astype(dtype), names[None].astype(dtype), mask[..., None].astype(dtype))
        return jnp.concatenate([jnp.broadcast_to(p, (batch, length, features, p.shape[-1])) for p in parts], -1)


class ResidualLayer(nnx.Module):
    """h -> ((h + r) / sqrt(2), skip): attention over time, then over features, and a gate with side information."""

    def __init__(
        self,
        channels: int,
        side_dim: int,
        diffusion_dim: int,
        num_heads: int,
        mlp_hidden: int,
        dropout: float,
        *,
        rngs: nnx.Rngs,
    ):
        self.diffusion_projection = layers.linear(diffusion_dim, channels, rngs=rngs)
        self.cond_projection = layers.linear(side_dim, 2 * channels, rngs=rngs)
        self.mid_projection = layers.linear(channels, 2 * channels, rngs=rngs)
        self.output_projection = layers.linear(channels, 2 * channels, rngs=rngs)
        self.time_layer = TransformerLayer(channels, num_heads, mlp_hidden, dropout, rngs=rngs)
        self.feature_layer = TransformerLayer(channels, num_heads, mlp_hidden, dropout, rngs=rngs)

    def __call__(
        self,
        h: Float[Array, "batch length features c"],
        side: Float[Array, "batch length features side"],
        noise: Float[Array, "batch c2"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "batch length features c"], Float[Array, "batch length features c"]]:
        batch, length, features, c = h.shape
        y = h + self.diffusion_projection(noise)[:, None, None]
        y = y.swapaxes(1, 2).reshape(batch * features, length, c)
        y = self.time_layer(y, rngs=rngs).reshape(batch, features, length, c).swapaxes(1, 2)
        if features > 1:  # attention of one feature to itself is no information
            y = self.feature_layer(y.reshape(batch * length, features, c), rngs=rngs).reshape(h.shape)
        gate, filtered = jnp.split(self.mid_projection(y) + self.cond_projection(side), 2, -1)
        residual, skip = jnp.split(self.output_projection(jax.nn.sigmoid(gate) * jnp.tanh(filtered)), 2, -1)
        return (h + residual) / math.sqrt(2), skip


class TransformerLayer(nnx.Module):
    """Self-attention and MLP, each followed by layer normalisation (arXiv:1706.03762)."""

    def __init__(self, channels: int, num_heads: int, mlp_hidden: int, dropout: float, *, rngs: nnx.Rngs):
        self.num_heads = check_heads(num_heads, channels)
        self.dropout = dropout
        self.in_proj = layers.linear(channels, 3 * channels, rngs=rngs)
        self.out_proj = layers.linear(channels, channels, rngs=rngs)
        self.linear1 = layers.linear(channels, mlp_hidden, rngs=rngs)
        self.linear2 = layers.linear(mlp_hidden, channels, rngs=rngs)
        self.norm1 = layers.layer_norm(channels, epsilon=1e-5, rngs=rngs)
        self.norm2 = layers.layer_norm(channels, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: Float[Array, "rows n c"], *, rngs: nnx.Rngs | None = None) -> Float[Array, "rows n c"]:
        attended = self.out_proj(fused_attention(self.in_proj(x), self.num_heads))
        x = self.norm1(x + layers.dropout(attended, self.dropout, rngs))
        hidden = layers.dropout(jax.nn.gelu(self.linear1(x)), self.dropout, rngs)
        return self.norm2(x + layers.dropout(self.linear2(hidden), self.dropout, rngs))
