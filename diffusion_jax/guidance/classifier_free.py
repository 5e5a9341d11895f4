"""Guidance by the difference between two denoisers: classifier-free guidance and its relatives.

D is affine in the score, in eps and in v, all with the same coefficients for both denoisers, so extrapolating D is
extrapolating each of them: D_w = D_0 + w (D_1 - D_0). With exact denoisers the score of D_w is that of
p_0(x_t)^(1 - w) p_1(x_t)^w at this noise level; w = 1 is exactly D_1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax import types
from diffusion_jax.parameterizations import rewired
from diffusion_jax.processes.base import bcast
from diffusion_jax.types import Cond, Denoiser

Scale = float | Float[Array, ""] | Callable[[Array], Array]


def classifier_free(
    D: Denoiser,
    scale: Scale,
    null_cond: Cond,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
    channels: int = 0,
) -> Denoiser:
    """D_w(x, t, cond) = D(x, t, null) + w (D(x, t, cond) - D(x, t, null)), both in one call of D on a double batch.

    arXiv:2207.12598, eq. 6, where its w is our scale - 1: scale 0 is unconditional, 1 conditional. A learned variance
    is that of the condition.

    Args:
        D: a denoiser trained with conditions dropped at times, D(x, t, cond).
        scale: w, or a function of t.
        null_cond: the null condition: the entries of cond without their batch axis, or with one of size 1.
        interval: times (t_low, t_high] of guidance; elsewhere scale is 1, and D is called once where t is a scalar
            (arXiv:2404.07724). None: everywhere.
        rescale: in [0, 1], see `rescaled`.
        channels: only the first `channels` channels (last axis) of D are guided, the others are those of the condition;
            0: all. The authors of DiT (arXiv:2212.09748) guide 3 of the 4 channels of latents.

    Raises:
        ValueError: if `null_cond` is None, the interval is empty, or `rescale` or `channels` is out of range.
    """
    if null_cond is None:
        raise ValueError("null_cond is None; classifier-free guidance needs a null condition")
    check(interval, rescale)
    types.check(channels >= 0, "channels", channels, "at least 0")

    def guided(outputs: Callable, x: Array, t: Array, cond: Cond) -> tuple[Array, ...]:
        if channels > x.shape[-1]:
            raise ValueError(f"channels is {channels}; x has {x.shape[-1]}")
        if cond is None:
            raise ValueError("cond is None; classifier-free guidance steers towards a condition")
        both = jax.tree.map(
            lambda c, n: jnp.concatenate([c, jnp.broadcast_to(n, c.shape).astype(c.dtype)]), cond, null_cond
        )
        twice = jnp.concatenate([t, t]) if jnp.ndim(t) else t
        halves = [jnp.split(out, 2) for out in outputs(jnp.concatenate([x, x]), twice, both)]
        (conditional, unconditional), *rest = halves
        steered = rescaled(_extrapolated(unconditional, conditional, scale, t), conditional, rescale)
        if channels:
            steered = jnp.concatenate([steered[..., :channels], conditional[..., channels:]], -1)
        return steered, *(first for first, _ in rest)

    return rewired(D, _within(interval, guided))


def instruct_pix2pix(
    D: Denoiser, scale: Scale, image_scale: Scale, image_cond: Cond, null_cond: Cond, rescale: float = 0.0
) -> Denoiser:
    """D_0 + w_I (D_I - D_0) + w (D_TI - D_I), the three under no condition, the image alone, and text and image.

    InstructPix2Pix (arXiv:2211.09800, eq. 3), all in one call of D on a batch three times as large. With w_I = w it is
    `classifier_free`. A learned variance is that of the condition.

    Args:
        D: a denoiser trained with text and image dropped at times, D(x, t, cond).
        scale: w, of the text, or a function of t.
        image_scale: w_I, of the image.
        image_cond: cond without its text.
        null_cond: neither of them. Both conditions may have a batch axis of size 1.
        rescale: in [0, 1], see `rescaled`.

    Raises:
        ValueError: if `rescale` is out of range.
    """
    check(None, rescale)

    def guided(outputs: Callable, x: Array, t: Array, cond: Cond) -> tuple[Array, ...]:
        joined = jax.tree.map(
            lambda c, *others: jnp.concatenate([c, *(jnp.broadcast_to(o, c.shape).astype(c.dtype) for o in others)]),
            *(cond, image_cond, null_cond),
        )
        thrice = jnp.concatenate([t, t, t]) if jnp.ndim(t) else t
        parts = [jnp.split(out, 3) for out in outputs(jnp.concatenate([x, x, x]), thrice, joined)]
        (both, image, none), *rest = parts
        towards_image = _extrapolated(none, image, image_scale, t)
        steered = towards_image + _extrapolated(image, both, scale, t) - image
        return rescaled(steered, both, rescale), *(first for first, *_ in rest)

    return rewired(D, guided)


def autoguidance(
    D: Denoiser,
    D_weak: Denoiser,
    scale: Scale,
    interval: tuple[float, float] | None = None,
) -> Denoiser:
    """D_weak + w (D - D_weak) with a smaller or less trained model of the same condition (arXiv:2406.02507, eq. 4)."""
    check(interval, 0.0)

    def guided(outputs: Callable, x: Array, t: Array, cond: Cond) -> tuple[Array, ...]:
        strong, *rest = outputs(x, t, cond)
        return _extrapolated(D_weak(x, t, cond), strong, scale, t), *rest

    return rewired(D, _within(interval, guided))


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


def check(interval: tuple[float, float] | None, rescale: float) -> None:
    """Raises ValueError for an empty interval, or `rescale` outside [0, 1]."""
    ordered = interval is None or (len(interval) == 2 and interval[0] < interval[1])
    types.check(ordered, "interval", interval, "(t_low, t_high) with t_low < t_high")
    types.check(0 <= rescale <= 1, "rescale", rescale, "in [0, 1]")


def _extrapolated(start: Array, end: Array, scale: Scale, t: Array) -> Array:
    w = scale(t) if callable(scale) else scale
    return start + bcast(jnp.asarray(w), start) * (end - start)


def _within(interval: tuple[float, float] | None, guided: Callable[..., tuple[Array, ...]]) -> Callable:
    """`guided` at times in the interval, the outputs themselves elsewhere."""
    if interval is None:
        return guided
    low, high = interval

    def limited(outputs: Callable, x: Array, t: Array, cond: Cond) -> tuple[Array, ...]:
        inside = (low < t) & (t <= high)
        if jnp.ndim(t) == 0:
            return jax.lax.cond(inside, lambda: guided(outputs, x, t, cond), lambda: outputs(x, t, cond))
        choose = jax.vmap(jnp.where)
        pairs = zip(guided(outputs, x, t, cond), outputs(x, t, cond), strict=True)
        return tuple(choose(inside, there, elsewhere) for there, elsewhere in pairs)

    return limited
