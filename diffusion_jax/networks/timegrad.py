"""TimeGrad's networks: a residual network over the dimensions of one step, and a recurrent encoder of the history.

arXiv:2101.12072, section 3.3 and figure 2.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import layers
from diffusion_jax.networks.base import DenoisingNetwork
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.types import Embedded

_SLOPE = 0.4  # of the leaky ReLUs
_WIDTH = 2  # by which the signal is continued around its ends, for the two convolutions at the end
CELLS = ("lstm", "gru")


class TimeGradNet(DenoisingNetwork):
    """Residual network from a vector [batch, dim] to the same, as a circular signal, under the condition "vector".

    Dilated convolutions along the dimensions, of which the condition's embedding is a second signal of the same
    length. The output starts at zero. With `shape=(370,)`, electricity, it has 102,786 parameters.

    Args:
        shape: (dim,) of one step of the series.
        vector_dim: of the condition, the state of the encoder.
        channels: width.
        num_layers: residual layers.
        dilation_cycle: the dilation of layer i is 2^(i mod dilation_cycle).
        time_dim: frequencies of the embedding of c_noise, which is a timestep.
        hidden: width of that embedding.
        cond_hidden: width between the condition and its signal; 0: half of `dim`, as published, which is narrow for
            few dimensions.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: if examples are no vectors.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...] = (370,),
        vector_dim: int = 100,
        channels: int = 8,
        num_layers: int = 8,
        dilation_cycle: int = 2,
        time_dim: int = 16,
        hidden: int = 64,
        cond_hidden: int = 0,
        rngs: nnx.Rngs,
    ):
        if len(shape) != 1:
            raise ValueError(f"examples of shape {shape} are no vectors, [dim]")
        self.input_shape = tuple(shape)
        self.conditions = Conditions(vector_dim=vector_dim)
        self.time_dim = time_dim
        width = cond_hidden or max(shape[0] // 2, 1)
        self.input_projection = layers.linear(1, channels, rngs=rngs)
        self.projection1 = layers.linear(2 * time_dim, hidden, rngs=rngs)
        self.projection2 = layers.linear(hidden, hidden, rngs=rngs)
        self.cond_linear1 = layers.linear(vector_dim, width, rngs=rngs)
        self.cond_linear2 = layers.linear(width, shape[0], rngs=rngs)
        dilations = [2 ** (i % dilation_cycle) for i in range(num_layers)]
        self.residual_layers = nnx.List([ResidualBlock(channels, hidden, d, rngs=rngs) for d in dilations])
        self.skip_projection = Convolution(channels, channels, rngs=rngs)
        self.output_projection = Convolution(channels, 1, scale=0.0, rngs=rngs)

    def forward(
        self,
        x: Float[Array, "batch dim"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch dim"]:
        noise = layers.sinusoidal_embedding(c_noise, 2 * self.time_dim).astype(x.dtype)
        noise = jax.nn.silu(self.projection2(jax.nn.silu(self.projection1(noise))))
        signal = _around(leaky(self.cond_linear2(leaky(self.cond_linear1(cond.vector)))), _WIDTH)
        h = leaky(self.input_projection(_around(x, _WIDTH)[..., None]))
        skips = jnp.zeros_like(h)
        for layer in self.residual_layers:
            h, skip = layer(h, signal[..., None], noise)
            skips = skips + skip
        h = leaky(self.skip_projection(skips / math.sqrt(len(self.residual_layers))))
        return self.output_projection(h)[..., 0]

    def embedders(self) -> dict:
        return dict(vector=lambda vector: vector)


class ResidualBlock(nnx.Module):
    """h -> ((h + r) / sqrt(2), skip) with a gated dilated convolution that goes around the ends."""

    def __init__(self, channels: int, hidden: int, dilation: int, *, rngs: nnx.Rngs):
        self.dilation = dilation
        self.dilated_conv = Convolution(channels, 2 * channels, dilation, rngs=rngs)
        self.diffusion_projection = layers.linear(hidden, channels, rngs=rngs)
        self.conditioner_projection = layers.linear(1, 2 * channels, rngs=rngs)
        self.output_projection = layers.linear(channels, 2 * channels, rngs=rngs)

    def __call__(
        self, h: Float[Array, "batch n c"], signal: Float[Array, "batch n 1"], noise: Float[Array, "batch c2"]
    ) -> tuple[Float[Array, "batch n c"], Float[Array, "batch n c"]]:
        y = _around(h + self.diffusion_projection(noise)[:, None], self.dilation)
        gate, filtered = jnp.split(self.dilated_conv(y) + self.conditioner_projection(signal), 2, -1)
        y = leaky(self.output_projection(jax.nn.sigmoid(gate) * jnp.tanh(filtered)))
        residual, skip = jnp.split(y, 2, -1)
        return (h + residual) / math.sqrt(2), skip


class Convolution(nnx.Module):
    """A convolution of three taps `dilation` apart, without padding: as a dense layer of three shifted signals."""

    def __init__(self, channels: int, features: int, dilation: int = 1, *, scale: float = 1.0, rngs: nnx.Rngs):
        self.dilation = dilation
        self.linear = layers.linear(3 * channels, features, scale=scale, rngs=rngs)

    def __call__(self, x: Float[Array, "batch n c"]) -> Float[Array, "batch n2 features"]:
        length = x.shape[1] - 2 * self.dilation
        taps = [x[:, i * self.dilation : i * self.dilation + length] for i in range(3)]
        return self.linear(jnp.concatenate(taps, -1))


class SeriesEncoder(nnx.Module):
    """A recurrent network over steps of a series: stacked LSTM or GRU cells and a dense layer to the condition.

    The state is one array [batch, num_layers, 2, cells], of which GRUs use the first half.

    Args:
        inputs: numbers per step.
        vector_dim: of the condition.
        cells: width of the state.
        num_layers: cells one above the other.
        cell: "lstm" or "gru".
        rngs: randomness of the initial parameters.
    """

    def __init__(self, inputs: int, vector_dim: int, cells: int, num_layers: int, cell: str, *, rngs: nnx.Rngs):
        if cell not in CELLS:
            raise ValueError(f"cell is {cell!r}; choose {' or '.join(CELLS)}")
        self.cell = cell
        sizes = [inputs, *[cells] * (num_layers - 1)]
        gates = 4 if cell == "lstm" else 3
        self.input_gates = nnx.List([layers.linear(size, gates * cells, rngs=rngs) for size in sizes])
        self.state_gates = nnx.List([layers.linear(cells, gates * cells, rngs=rngs) for _ in sizes])
        self.out = layers.linear(cells, vector_dim, rngs=rngs)

    def __call__(
        self, state: Float[Array, "batch layers 2 cells"], inputs: Float[Array, "batch inputs"]
    ) -> tuple[Float[Array, "batch layers 2 cells"], Float[Array, "batch vector_dim"]]:
        """(state, condition) after one more step."""
        step = _lstm if self.cell == "lstm" else _gru
        h, states = inputs, []
        for i, (of_input, of_state) in enumerate(zip(self.input_gates, self.state_gates, strict=True)):
            states.append(step(of_input(h), of_state(state[:, i, 0]), state[:, i]))
            h = states[-1][:, 0]
        return jnp.stack(states, 1), self.out(h)


def _lstm(inputs: Array, recurrent: Array, state: Float[Array, "batch 2 cells"]) -> Float[Array, "batch 2 cells"]:
    i, f, g, o = jnp.split(inputs + recurrent, 4, -1)
    cell = jax.nn.sigmoid(f) * state[:, 1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jnp.stack([jax.nn.sigmoid(o) * jnp.tanh(cell), cell], 1)


def _gru(inputs: Array, recurrent: Array, state: Float[Array, "batch 2 cells"]) -> Float[Array, "batch 2 cells"]:
    (r, z, n), (r_h, z_h, n_h) = (jnp.split(part, 3, -1) for part in (inputs, recurrent))
    keep = jax.nn.sigmoid(z + z_h)
    new = jnp.tanh(n + jax.nn.sigmoid(r + r_h) * n_h)
    h = (1 - keep) * new + keep * state[:, 0]
    return jnp.stack([h, jnp.zeros_like(h)], 1)


def leaky(x: Array) -> Array:
    """Leaky ReLU."""
    return jax.nn.leaky_relu(x, _SLOPE)


def _around(x: Float[Array, "batch n *c"], width: int) -> Float[Array, "batch n2 *c"]:
    """`x` continued circularly by `width` at both ends; of a short signal, several times around."""
    return jnp.take(x, jnp.arange(-width, x.shape[1] + width) % x.shape[1], axis=1)
