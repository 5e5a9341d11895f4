"""What invertible networks, those of normalizing flows, have in common: conditions, the two directions, guidance."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from diffusion_jax.networks.base import check_input
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.types import Cond


class Affine(NamedTuple):
    """The numbers of x = z exp(a) + b, entry by entry."""

    a: Float[Array, "batch *n"]
    b: Float[Array, "batch *n"]


class InvertibleNetwork(nnx.Module):
    """A network z = f(x) with an inverse, of affine maps under an optional class; the base class.

    A network sets `input_shape` and `conditions` in its constructor, and computes its two directions in `transform` and
    `restore`. Without a class, or with the class `num_classes`, it is unconditional.
    """

    input_shape: tuple[int, ...]  # of one example
    conditions: Conditions

    def forward(
        self, x: Float[Array, "batch *shape"], cond: Cond = None, *, rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "batch *shape"], Float[Array, "batch"]]:
        """(z, log |det dz/dx|); with `rngs` dropout is active. Raises ValueError for an x of another shape."""
        check_input(x, self.input_shape)
        return self.transform(x, self._labels(cond, len(x)), rngs=rngs)

    def inverse(
        self,
        z: Float[Array, "batch *shape"],
        cond: Cond = None,
        null: Cond = None,
        scale: Float[Array, ""] | None = None,
    ) -> Float[Array, "batch *shape"]:
        """x with forward(x) = z. With `null` and `scale` the affine maps are guided, see `guided`.

        Raises ValueError for a z of another shape.
        """
        check_input(z, self.input_shape)
        labels = self._labels(cond, len(z))
        if null is not None:
            labels = jnp.concatenate([labels, self._labels(null, len(z))])
        return self.restore(z, labels, scale)

    def transform(
        self, x: Float[Array, "batch *shape"], labels: Int[Array, "batch"] | None, *, rngs: nnx.Rngs | None
    ) -> tuple[Float[Array, "batch *shape"], Float[Array, "batch"]]:
        """`forward` of an x of the right shape and classes; None for a network without classes."""
        raise NotImplementedError

    def restore(
        self, z: Float[Array, "batch *shape"], labels: Int[Array, "rows"] | None, scale: Float[Array, ""] | None
    ) -> Float[Array, "batch *shape"]:
        """`inverse` of a z of the right shape. With a `scale`, `labels` are those of z, then as many null classes."""
        raise NotImplementedError

    def _labels(self, cond: Cond, batch: int) -> Int[Array, "batch"] | None:
        if not self.conditions:
            return None
        labels = self.conditions.of(self.conditions.null(batch) if cond is None else cond)["label"]
        return jnp.broadcast_to(labels, (batch,))


def doubled(x: Float[Array, "batch *n"]) -> Float[Array, "rows *n"]:
    """Every row twice, once for its class and once for the null class."""
    return jnp.concatenate([x, x])


def guided(affine: Affine, scale: Float[Array, ""]) -> Affine:
    """Classifier-free guidance of a flow: null + scale (conditional - null), for a and for b (arXiv:2412.06329).

    The rows of `affine` are those of the classes, and then as many of the null class. A scale of 1 is the conditional
    flow; the authors' weight w is scale - 1.
    """

    def steer(value: Array) -> Array:
        conditional, null = jnp.split(value, 2)
        return null + scale * (conditional - null)

    return Affine(steer(affine.a), steer(affine.b))
