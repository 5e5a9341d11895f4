"""Paths between two latents, such as two draws of the prior or two encoded images.

`solvers` run with increasing times encode data into latents; points between two latents, decoded, morph one sample
into the other (arXiv:2010.02502, section 5.3).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.types import check


def lerp(a: Float[Array, "batch *shape"], b: Float[Array, "..."], w: float | Float[Array, "*n"]) -> Float[Array, "..."]:
    """(1 - w) a + w b for every w: [*n, batch, ...]. Equal to a at w = 0 and to b at w = 1.

    Between independent Gaussian vectors the norm shrinks, by sqrt(1/2) half-way; `slerp` keeps it.
    Raises ValueError if a and b have different shapes.
    """
    _check(a, b)
    w = jnp.asarray(w, a.dtype)
    w = w.reshape(w.shape + (1,) * a.ndim)
    return (1 - w) * a + w * b


def slerp(
    a: Float[Array, "batch *shape"], b: Float[Array, "..."], w: float | Float[Array, "*n"]
) -> Float[Array, "..."]:
    """(sin((1 - w) theta) a + sin(w theta) b) / sin theta for every w, theta the angle between rows: [*n, batch, ...].

    Rows are taken as vectors. The path from a row of `a` (w = 0) to one of `b` (w = 1) is an arc if both have the same
    norm, which it then keeps. Vectors in the same direction, and zero vectors, are interpolated linearly, which is
    the limit; so are vectors in opposite directions (within 1e-3 rad), which no single arc connects.
    arXiv:2010.02502, eq. 67. Raises ValueError if a and b have different shapes.
    """
    _check(a, b)
    ones = (1,) * (a.ndim - 1)
    theta = _angle(a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)).reshape(-1, *ones)
    theta = jnp.where(jnp.pi - theta < 1e-3, 0, theta)
    w = jnp.asarray(w, a.dtype)
    w = w.reshape(w.shape + (1,) * a.ndim)

    def weight(v):
        """sin(v theta) / sin(theta), v where theta = 0. A quotient of equal numbers may round, so 1 is set."""
        return jnp.where(v == 1, 1, v * jnp.sinc(v * theta / jnp.pi) / jnp.sinc(theta / jnp.pi))

    return weight(1 - w) * a + weight(w) * b


def _angle(a: Float[Array, "batch d"], b: Float[Array, "batch d"]) -> Float[Array, "batch"]:
    """The angle between rows, in [0, pi], accurate where it is small too; 0 where a row is zero."""
    norm_a, norm_b = (jnp.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
    zero = (norm_a == 0) | (norm_b == 0)
    unit_a, unit_b = a / jnp.where(zero, 1, norm_a), b / jnp.where(zero, 1, norm_b)
    opposite, along = jnp.linalg.norm(unit_a - unit_b, axis=1), jnp.linalg.norm(unit_a + unit_b, axis=1)
    return jnp.where(zero[:, 0], 0, 2 * jnp.arctan2(opposite, along))


def _check(a: Array, b: Array) -> None:
    check(a.shape == b.shape, "the shape of b", b.shape, f"that of a, {a.shape}")
