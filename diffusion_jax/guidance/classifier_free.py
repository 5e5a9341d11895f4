"""Guidance by the difference between two denoisers: classifier-free guidance and its relatives.

D is affine in the score, in eps and in v, all with the same coefficients for both denoisers, so extrapolating D is
extrapolating each of them: D_w = D_0 + w (D_1 - D_0). With exact denoisers the score of D_w is that of
p_0(x_t)^(1 - w) p_1(x_t)^w at this noise level; w = 1 is exactly D_1.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.processes.base import bcast
from diffusion_jax.types import Cond, Denoiser


def classifier_free(
    D: Denoiser,
    scale: float | Float[Array, ""],
    null_cond: Cond,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> Denoiser:
    """D_w(x, t, cond) = D(x, t, null) + w (D(x, t, cond) - D(x, t, null)), both in one call of D on a double batch.

    arXiv:2207.12598, eq. 6, where its w is our scale - 1: scale 0 is unconditional, 1 conditional.

    Args:
        D: a denoiser trained with conditions dropped at times, D(x, t, cond).
        scale: w.
        null_cond: what stands for no condition: the entries of cond without their batch axis, or with one of size 1.
        interval: times (t_low, t_high] of guidance; elsewhere scale is 1, and D is called once where t is a scalar
            (arXiv:2404.07724). None: everywhere.
        rescale: in [0, 1], see `rescaled`.

    Raises:
        ValueError: if `null_cond` is None, the interval is empty, or `rescale` is out of range.
    """
    if null_cond is None:
        raise ValueError("null_cond is None; classifier-free guidance needs what stands for no condition")
    _check(interval, rescale)

    def guided(x: Array, t: Array, cond: Cond) -> Array:
        if cond is None:
            raise ValueError("cond is None; classifier-free guidance steers towards a condition")
        null = jax.tree.map(lambda c, n: jnp.broadcast_to(n, c.shape).astype(c.dtype), cond, dict(null_cond))
        both = jax.tree.map(lambda c, n: jnp.concatenate([c, n]), cond, null)
        twice = jnp.concatenate([t, t]) if jnp.ndim(t) else t
        conditional, unconditional = jnp.split(D(jnp.concatenate([x, x]), twice, both), 2)
        return rescaled(unconditional + scale * (conditional - unconditional), conditional, rescale)

    return _within(interval, guided, D)


def autoguidance(
    D: Denoiser,
    D_weak: Denoiser,
    scale: float | Float[Array, ""],
    interval: tuple[float, float] | None = None,
) -> Denoiser:
    """D_weak + w (D - D_weak) with a smaller or less trained model of the same condition (arXiv:2406.02507, eq. 4)."""
    _check(interval, 0.0)

    def guided(x: Array, t: Array, cond: Cond) -> Array:
        weak = D_weak(x, t, cond)
        return weak + scale * (D(x, t, cond) - weak)

    return _within(interval, guided, D)


def rescaled(
    guided: Float[Array, "batch *shape"], conditional: Float[Array, "batch *shape"], amount: float
) -> Float[Array, "batch *shape"]:
    """Bring the standard deviation of each row of `guided` towards that of `conditional`, by `amount` in [0, 1].

    arXiv:2305.08891, eq. 15 and 16, here for predictions of x_0.
    """
    if amount == 0:
        return guided
    axes = tuple(range(1, guided.ndim))
    ratio = jnp.std(conditional, axes) / jnp.maximum(jnp.std(guided, axes), 1e-12)
    return bcast(1 - amount + amount * ratio, guided) * guided


def _check(interval: tuple[float, float] | None, rescale: float) -> None:
    if interval is not None and not interval[0] < interval[1]:
        raise ValueError(f"interval is {interval}; it must be (t_low, t_high) with t_low < t_high")
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale is {rescale}; it must be in [0, 1]")


def _within(interval: tuple[float, float] | None, guided: Denoiser, D: Denoiser) -> Denoiser:
    """`guided` at times in the interval, D elsewhere."""
    if interval is None:
        return lambda x, t, cond=None: guided(x, t, cond)
    low, high = interval

    def limited(x: Array, t: Array, cond: Cond = None) -> Array:
        inside = (low < t) & (t <= high)
        if jnp.ndim(t) == 0:
            return jax.lax.cond(inside, lambda: guided(x, t, cond), lambda: D(x, t, cond))
        return jax.vmap(jnp.where)(inside, guided(x, t, cond), D(x, t, cond))

    return limited
