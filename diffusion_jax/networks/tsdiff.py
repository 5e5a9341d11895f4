"""TSDiff's network: residual blocks of diagonal state-space layers over time (arXiv:2307.11494, arXiv:2206.11893)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Complex, Float

from diffusion_jax.networks import layers
from diffusion_jax.networks.base import DenoisingNetwork
from diffusion_jax.types import Embedded

_STEPS = (1e-3, 1e-1)  # range of the step sizes at the start


class TSDiffNet(DenoisingNetwork):
    """Unconditional residual network from series [batch, length, channels] to the same; the output starts at zero.

    The paper's has `hidden=64`, `num_layers=3`, `state_dim=128` and series of 336 + 24 steps.

    Args:
        shape: (length, channels) of the series.
        hidden: width.
        num_layers: residual blocks.
        state_dim: dimension of the state of each of the `hidden` state-space models; even.
        step_dim: of the embedding of c_noise, which is a timestep.
        dropout: rate after the state-space layers.
        init_skip: add x to the output, which starts as x then.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: if examples are no series, or `state_dim` is odd.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...] = (360, 1),
        hidden: int = 64,
        num_layers: int = 3,
        state_dim: int = 128,
        step_dim: int = 128,
        dropout: float = 0.0,
        init_skip: bool = False,
        rngs: nnx.Rngs,
    ):
        if len(shape) != 2:
            raise ValueError(f"examples of shape {shape} are no series, [length, channels]")
        if state_dim % 2:
            raise ValueError(f"state_dim={state_dim} must be even: states come in complex conjugate pairs")
        self.input_shape = tuple(shape)
        self.step_dim = step_dim
        self.init_skip = init_skip
        self.input_init = layers.linear(shape[1], hidden, rngs=rngs)
        self.time_init1 = layers.linear(step_dim, hidden, rngs=rngs)
        self.time_init2 = layers.linear(hidden, hidden, rngs=rngs)
        self.residual_blocks = nnx.List([S4Block(hidden, state_dim, dropout, rngs=rngs) for _ in range(num_layers)])
        self.out_linear1 = layers.linear(hidden, hidden, rngs=rngs)
        self.out_linear2 = layers.linear(hidden, shape[1], scale=0.0, rngs=rngs)

    def forward(
        self,
        x: Float[Array, "batch length channels"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch length channels"]:
        step = layers.sinusoidal_embedding(c_noise, self.step_dim).astype(x.dtype)
        step = jax.nn.silu(self.time_init2(jax.nn.silu(self.time_init1(step))))
        h = jax.nn.relu(self.input_init(x))
        skips = jnp.zeros_like(h)
        for block in self.residual_blocks:
            h, skip = block(h, step, rngs=rngs)
            skips = skips + skip
        out = self.out_linear2(jax.nn.relu(self.out_linear1(skips)))
        return out + x if self.init_skip else out


class S4Block(nnx.Module):
    """h -> (h + out, skip), with out and skip from a state-space layer of the layer norm of h and the step."""

    def __init__(self, hidden: int, state_dim: int, dropout: float, *, rngs: nnx.Rngs):
        self.dropout = dropout
        self.norm = layers.layer_norm(hidden, epsilon=1e-5, rngs=rngs)
        self.s4 = S4D(hidden, state_dim, rngs=rngs)
        self.time_linear = layers.linear(hidden, hidden, rngs=rngs)
        self.out_linear1 = layers.linear(hidden, hidden, rngs=rngs)
        self.out_linear2 = layers.linear(hidden, hidden, rngs=rngs)

    def __call__(
        self, h: Float[Array, "batch n c"], step: Float[Array, "batch c"], *, rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "batch n c"], Float[Array, "batch n c"]]:
        x = h + self.time_linear(step)[:, None]
        x = x + layers.dropout(self.s4(self.norm(x)), self.dropout, rngs)
        x = jnp.tanh(x) * jax.nn.sigmoid(x)
        return h + self.out_linear1(x), self.out_linear2(x)


class S4D(nnx.Module):
    """A diagonal state-space layer of each channel in both directions, then GELU and a gated dense layer.

    Each channel is s' = A s + u, y = Re(2 C s) + D u, discretised exactly for inputs that are constant over a step of
    learned size. A = -1/2 + i pi n at the start (S4D-Lin of arXiv:2206.11893, eq. 9). As a convolution by FFT.
    """

    def __init__(self, channels: int, state_dim: int, *, rngs: nnx.Rngs):
        half = state_dim // 2
        low, high = map(math.log, _STEPS)
        keys = jax.random.split(rngs.params(), 3)
        self.log_dt = nnx.Param(low + (high - low) * jax.random.uniform(keys[0], (2, channels)), full_precision=True)
        self.log_decay = nnx.Param(jnp.full((2, channels, half), math.log(0.5), jnp.float32), full_precision=True)
        frequencies = jnp.broadcast_to(math.pi * jnp.arange(half, dtype=jnp.float32), (2, channels, half))
        self.frequency = nnx.Param(jnp.array(frequencies), full_precision=True)
        # Real and imaginary parts of C.
        self.weight = nnx.Param(
            math.sqrt(0.5) * jax.random.normal(keys[1], (2, channels, half, 2)), full_precision=True
        )
        self.skip = nnx.Param(jax.random.normal(keys[2], (channels,)))
        self.out = layers.linear(channels, 2 * channels, rngs=rngs)

    def poles(self) -> tuple[Complex[Array, "2 c half"], Complex[Array, "2 c half"]]:
        """(dt A, weights 2 C (exp(dt A) - 1) / A) of both directions."""
        a = jax.lax.complex(-jnp.exp(self.log_decay[...]), self.frequency[...])
        step = jnp.exp(self.log_dt[...])[..., None] * a
        c = jax.lax.complex(self.weight[..., 0], self.weight[..., 1])
        return step, 2 * c * (jnp.exp(step) - 1) / a

    def kernels(self, length: int) -> Float[Array, "2 c length"]:
        """The responses to an impulse, forwards and backwards in time."""
        step, weights = self.poles()
        return jnp.einsum("dch,dchl->dcl", weights, jnp.exp(step[..., None] * jnp.arange(length))).real

    def mixed(self, u: Float[Array, "batch n c"]) -> Float[Array, "batch n c"]:
        """The state-space models alone, in float32."""
        length = u.shape[1]
        inputs = u.astype(jnp.float32)
        forward, backward = self.kernels(length)
        # The response to the input k + 1 steps later is the entry k of the other kernel, which wraps around to the end.
        kernel = jnp.concatenate([forward, backward[:, ::-1]], axis=-1)
        size = 2 * length
        spectrum = jnp.fft.rfft(inputs, size, axis=1) * jnp.fft.rfft(kernel, size, axis=1).T[None]
        return jnp.fft.irfft(spectrum, size, axis=1)[:, :length] + self.skip[...].astype(jnp.float32) * inputs

    def __call__(self, u: Float[Array, "batch n c"]) -> Float[Array, "batch n c"]:
        value, gate = jnp.split(self.out(jax.nn.gelu(self.mixed(u).astype(u.dtype))), 2, -1)
        return value * jax.nn.sigmoid(gate)
