"""The networks of Luo and Hu's diffusion model of point clouds (arXiv:2103.01458): decoder, encoder and latent flow."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import layers
from diffusion_jax.networks.base import DenoisingNetwork
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.types import Embedded, check

_OFFSET = 2.0  # of the logits of the scales of the flow, which start near sigmoid(2) = 0.88


class PointwiseNet(DenoisingNetwork):
    """Each point by itself: x + layers of (W h + b) sigmoid(G c + g) + B c, between which is a leaky ReLU.

    c is (t, sin t, cos t) with t = c_noise, and the condition "vector", the latent of the shape. Given it, the points
    are independent. arXiv:2103.01458, section 4.3; "ConcatSquash" of arXiv:1810.01367.

    Args:
        shape: (points, channels) of a cloud.
        widths: of the hidden layers.
        vector_dim: of the condition "vector".
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: for examples that are no clouds, or without a latent.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...] = (2048, 3),
        widths: tuple[int, ...] = (128, 256, 512, 256, 128),
        vector_dim: int = 256,
        rngs: nnx.Rngs,
    ):
        if len(shape) != 2:
            raise ValueError(f"examples of shape {shape} are no clouds, [points, channels]")
        check(vector_dim >= 1, "vector_dim", vector_dim, "at least 1, the latent that all points share")
        self.input_shape = tuple(shape)
        self.conditions = Conditions(vector_dim=vector_dim)
        sizes = (shape[-1], *widths, shape[-1])
        self.layers = nnx.List([GatedLinear(a, b, vector_dim + 3, rngs=rngs) for a, b in itertools.pairwise(sizes)])

    def forward(
        self,
        x: Float[Array, "batch points channels"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch points channels"]:
        t = c_noise[:, None].astype(x.dtype)
        c = jnp.concatenate([t, jnp.sin(t), jnp.cos(t), cond.vector], -1)[:, None]
        h = x
        for i, layer in enumerate(self.layers):
            h = layer(h if i == 0 else jax.nn.leaky_relu(h), c)
        return x + h

    def embedders(self) -> dict[str, Callable[..., Array] | None]:
        return dict(vector=lambda value: value)


class GatedLinear(nnx.Module):
    """(W x + b) sigmoid(G c + g) + B c."""

    def __init__(self, in_features: int, out_features: int, cond_dim: int, *, rngs: nnx.Rngs):
        self.linear = layers.linear(in_features, out_features, rngs=rngs)
        self.gate = layers.linear(cond_dim, out_features, rngs=rngs)
        self.bias = layers.linear(cond_dim, out_features, use_bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "batch n a"], c: Float[Array, "batch 1 c"]) -> Float[Array, "batch n b"]:
        return self.linear(x) * jax.nn.sigmoid(self.gate(c)) + self.bias(c)


class PointNetEncoder(nnx.Module):
    """PointNet: a perceptron of each point, the maximum over points, and heads: [batch, n, c] -> mean, log variance.

    The order of the points does not matter. It has layer instead of batch normalisation. arXiv:1612.00593.

    Args:
        channels: of a point.
        code_dim: size of the code.
        widths: of the layers of a point.
        head: widths of the hidden layers of both heads.
        rngs: randomness of the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        code_dim: int,
        *,
        widths: tuple[int, ...] = (128, 128, 256, 512),
        head: tuple[int, ...] = (256, 128),
        rngs: nnx.Rngs,
    ):
        self.points = _Perceptron((channels, *widths), rngs=rngs)
        self.mean = _Perceptron((widths[-1], *head, code_dim), rngs=rngs)
        self.log_variance = _Perceptron((widths[-1], *head, code_dim), rngs=rngs)

    def encode(self, x: Float[Array, "batch n c"]) -> tuple[Float[Array, "batch code"], Float[Array, "batch code"]]:
        """(mean, log variance) of the code of each cloud."""
        pooled = jnp.max(self.points(x), axis=1)
        return self.mean(pooled), self.log_variance(pooled)


class _Perceptron(nnx.Module):
    """Dense layers, with layer normalisation and a ReLU between them."""

    def __init__(self, sizes: tuple[int, ...], *, rngs: nnx.Rngs):
        pairs = list(itertools.pairwise(sizes))
        self.layers = nnx.List([layers.linear(a, b, rngs=rngs) for a, b in pairs])
        self.norms = nnx.List([layers.layer_norm(b, rngs=rngs) for _, b in pairs[:-1]])

    def __call__(self, h: Float[Array, "*n a"]) -> Float[Array, "*n b"]:
        for layer, norm in zip(self.layers[:-1], self.norms, strict=True):
            h = jax.nn.relu(norm(layer(h)))
        return self.layers[-1](h)


class CouplingFlow(nnx.Module):
    """A normalizing flow of vectors: `depth` affine coupling layers, which change one half given the other in turn.

    y_1 = x_1 sigmoid(s(x_2) + 2) + m(x_2), y_2 = x_2 (arXiv:1605.08803, eq. 7 and 8).

    Args:
        dim: of the vectors, at least 2.
        depth: number of layers.
        hidden: width of the perceptrons of s and m.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: for vectors of less than two numbers, or no layers.
    """

    def __init__(self, dim: int, *, depth: int = 14, hidden: int = 256, rngs: nnx.Rngs):
        check(dim >= 2, "dim", dim, "at least 2, of which one half changes the other")
        check(depth >= 1, "depth", depth, "at least 1")
        halves = (dim - dim // 2, dim // 2)
        self.halves = halves
        self.nets = nnx.List([_Coupling(halves[1 - i % 2], halves[i % 2], hidden, rngs=rngs) for i in range(depth)])

    def to_noise(self, z: Float[Array, "batch dim"]) -> tuple[Float[Array, "batch dim"], Float[Array, "batch"]]:
        """(w, log |det dw/dz|): the noise w ~ N(0, I) of vectors z."""
        parts, log_det = jnp.split(z, [self.halves[0]], -1), jnp.zeros(z.shape[0], z.dtype)
        for i, net in enumerate(self.nets):
            log_scale, shift = net(parts[1 - i % 2])
            parts[i % 2] = parts[i % 2] * jnp.exp(log_scale) + shift
            log_det = log_det + jnp.sum(log_scale, -1)
        return jnp.concatenate(parts, -1), log_det

    def from_noise(self, w: Float[Array, "batch dim"]) -> Float[Array, "batch dim"]:
        """The inverse of `to_noise`."""
        parts = jnp.split(w, [self.halves[0]], -1)
        for i, net in reversed(list(enumerate(self.nets))):
            log_scale, shift = net(parts[1 - i % 2])
            parts[i % 2] = (parts[i % 2] - shift) * jnp.exp(-log_scale)
        return jnp.concatenate(parts, -1)


class _Coupling(nnx.Module):
    """(log of the scale, shift) of one half, from the other; at first the same for all."""

    def __init__(self, given: int, changed: int, hidden: int, *, rngs: nnx.Rngs):
        self.linear_1 = layers.linear(given, hidden, rngs=rngs)
        self.linear_2 = layers.linear(hidden, hidden, rngs=rngs)
        self.linear_3 = layers.linear(hidden, 2 * changed, scale=0.0, rngs=rngs)

    def __call__(self, x: Float[Array, "batch a"]) -> tuple[Float[Array, "batch b"], Float[Array, "batch b"]]:
        h = jax.nn.relu(self.linear_2(jax.nn.relu(self.linear_1(x))))
        logit, shift = jnp.split(self.linear_3(h), 2, -1)
        return jax.nn.log_sigmoid(logit + _OFFSET), shift
