"""Logits of grey levels from networks for images: one per level, or those of a truncated logistic distribution."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.types import Apply, Cond, Params, check_choice

HEADS = ("logits", "logistic")
_LOG_SCALE = 2.0  # of the logistic at a network output of 0, as D3PM's code has it


def channels(of_x: int, levels: int, head: str) -> int:
    """The number of output channels of the network, for images of `of_x` channels. Raises ValueError for a `head`."""
    check_choice("head", head, HEADS)
    return of_x * (levels if head == "logits" else 2)


def of_levels(apply: Apply, levels: int, head: str) -> Apply:
    """`apply` for images of integers 0..levels - 1, with logits [batch, h, w, c, levels].

    The network receives 2 x / (levels - 1) - 1. With the `head` "logits" its channels are the logits, to which those of
    x itself are added, one-hot (the residual of D3PM's code); with "logistic" they are means, relative to the input,
    and log scales, see `logistic_logits`.
    """

    def with_logits(
        params: Params,
        x: Int[Array, "batch h w c"],
        c_noise: Float[Array, "batch"],
        cond: Cond = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch h w c levels"]:
        scaled = 2 * x.astype(jnp.float32) / (levels - 1) - 1
        out = apply(params, scaled, c_noise, cond, key=key)
        if head == "logits":
            return out.reshape(*x.shape, levels) + jax.nn.one_hot(x, levels)
        mean, log_scale = jnp.split(out, 2, axis=-1)
        return logistic_logits(jnp.tanh(mean + scaled), log_scale - _LOG_SCALE, levels)

    return with_logits


def logistic_logits(
    mean: Float[Array, "*shape"], log_scale: Float[Array, "*shape"], levels: int
) -> Float[Array, "*shape {levels}"]:
    """log of the mass of a logistic distribution in the bin of each level, up to a constant: truncated to [-1, 1].

    The bins have the width 2 / (levels - 1) around the levels (arXiv:2107.03006, appendix A.8).
    """
    bins = jnp.linspace(-1.0, 1.0, levels) - mean[..., None]
    scale, half = jnp.exp(-log_scale)[..., None], 1 / (levels - 1)
    above, below = scale * (bins + half), scale * (bins - half)
    # log(sigmoid(b) - sigmoid(a)) = -softplus(-b) - softplus(a) + log(1 - exp(a - b))
    return -jax.nn.softplus(-above) - jax.nn.softplus(below) + jnp.log(-jnp.expm1(below - above))
