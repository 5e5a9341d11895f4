"""RealNVP: a normalizing flow of affine couplings (arXiv:1605.08803)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from diffusion_jax.networks import layers
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.networks.invertible import Affine, InvertibleNetwork, doubled, guided
from diffusion_jax.networks.mlp import MLPBlock


class RealNVP(InvertibleNetwork):
    """An invertible network z = f(x) of `num_couplings` affine couplings (arXiv:1605.08803, section 3).

    Each keeps every other entry of x, in a checkerboard over all axes, and transforms the rest by an affine map that a
    residual perceptron computes from those kept,

        z = (x - b) exp(-a),    a = bound tanh(a'),    (a', b) = net(kept entries),

    so that log |det| = -sum a; the next coupling keeps the others. A coupling and its inverse cost the same. The bound
    on a, which is learned and starts at 1, keeps the inverse from overflowing. The network starts as the identity.

    Args:
        shape: of one example, such as (8, 8, 1), or (n,) for vectors.
        num_couplings: affine couplings.
        hidden: width of the perceptrons.
        num_layers: residual blocks of each.
        dropout: rate, within these blocks.
        num_classes: of the condition "label"; 0 for none.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: if an example has one entry only, or x does not have the `shape`.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        num_couplings: int = 8,
        hidden: int = 256,
        num_layers: int = 2,
        dropout: float = 0.0,
        num_classes: int = 0,
        rngs: nnx.Rngs,
    ):
        if math.prod(shape) < 2:
            raise ValueError(f"shape={shape} must have two entries at least: a coupling transforms some by others.")
        self.input_shape = tuple(shape)
        self.conditions = Conditions(num_classes=num_classes)
        sizes = dict(hidden=hidden, num_layers=num_layers, dropout=dropout, num_classes=num_classes)
        self.couplings = nnx.List([Coupling(tuple(shape), i % 2, **sizes, rngs=rngs) for i in range(num_couplings)])

    def transform(
        self, x: Float[Array, "batch *shape"], labels: Int[Array, "batch"] | None, *, rngs: nnx.Rngs | None
    ) -> tuple[Float[Array, "batch *shape"], Float[Array, "batch"]]:
        h, log_det = x.reshape(len(x), -1), jnp.zeros(len(x), x.dtype)
        for coupling in self.couplings:
            affine = coupling(h, labels, rngs=rngs)
            h, log_det = (h - affine.b) * jnp.exp(-affine.a), log_det - affine.a.sum(-1)
        return h.reshape(x.shape), log_det

    def restore(
        self, z: Float[Array, "batch *shape"], labels: Int[Array, "rows"] | None, scale: Float[Array, ""] | None
    ) -> Float[Array, "batch *shape"]:
        h = z.reshape(len(z), -1)
        for coupling in reversed(self.couplings):
            affine = coupling(h, labels) if scale is None else guided(coupling(doubled(h), labels), scale)
            h = h * jnp.exp(affine.a) + affine.b
        return h.reshape(z.shape)


class Coupling(nnx.Module):
    """The affine map of one coupling of flat examples: a = b = 0 for the entries that `checkerboard` keeps."""

    def __init__(
        self,
        shape: tuple[int, ...],
        parity: int,
        *,
        hidden: int,
        num_layers: int,
        dropout: float,
        num_classes: int,
        rngs: nnx.Rngs,
    ):
        size = math.prod(shape)
        self.shape, self.parity = shape, parity
        self.class_embedding = nnx.Embed(num_classes + 1, hidden, rngs=rngs) if num_classes else None
        self.linear_in = layers.linear(size, hidden, rngs=rngs)
        blocks = [MLPBlock(hidden, activation="silu", dropout=dropout, rngs=rngs) for _ in range(num_layers)]
        self.blocks = nnx.List(blocks)
        self.norm_out = layers.layer_norm(hidden, rngs=rngs)
        self.linear_out = layers.linear(hidden, 2 * size, scale=0.0, rngs=rngs)
        self.bound = nnx.Param(jnp.ones(size))

    def __call__(
        self, x: Float[Array, "batch n"], labels: Int[Array, "batch"] | None, *, rngs: nnx.Rngs | None = None
    ) -> Affine:
        kept = jnp.asarray(checkerboard(self.shape, self.parity).reshape(-1), x.dtype)
        h = self.linear_in(kept * x)
        emb = jnp.zeros_like(h) if labels is None else jax.nn.silu(self.class_embedding(labels))
        for block in self.blocks:
            h = block(h, emb, rngs=rngs)
        a, b = jnp.split(self.linear_out(self.norm_out(h)), 2, axis=-1)
        return Affine((1 - kept) * self.bound[...] * jnp.tanh(a), (1 - kept) * b)


def checkerboard(shape: tuple[int, ...], parity: int) -> Int[np.ndarray, "*shape"]:
    """1 where the sum of the indices and `parity` is odd, 0 elsewhere."""
    return (np.indices(shape).sum(0) + parity) % 2
