"""From grey levels to densities and back to bits: the grid of 8-bit (or L-level) data in [-1, 1].

Data of L levels is x = 2 k / (L - 1) - 1, k = 0..L-1. Its dequantized form is x = 2 (k + u) / L - 1 with u in [0, 1),
uniform as in `config.data.dequantize`, so that every level owns an interval of width 2 / L. With any density p of the
dequantized x and any q(u | k),

    log P(k) >= E_u [log p(x) + d log(2 / L) - log q(u | k)]    (arXiv:1902.00275, eq. 9)

with equality where p is constant on every cell and q is uniform.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.networks.real_nvp import checkerboard
from diffusion_jax.processes.base import row_sum
from diffusion_jax.types import Apply, Params, check

_TOLERANCE = 0.1  # of a level: digits of 17 levels that were stored in 8 bits are off by up to 0.03

# (keys [batch], x of L levels) -> (dequantized x, log q(u | x) [batch])
Dequantization = Callable[
    [Key[Array, "batch"], Float[Array, "batch *shape"]], tuple[Float[Array, "batch *shape"], Float[Array, "batch"]]
]


def check_levels(x: np.ndarray, levels: int) -> None:
    """Refuse data that is not on the grid of `levels` in [-1, 1]; on the host, before anything is compiled.

    Raises:
      ValueError: fewer than 2 levels, or values that are missing, not finite, outside [-1, 1] or between levels.
    """
    check(levels >= 2, "levels", levels, "at least 2")
    x = np.asarray(x)
    if x.size == 0:
        raise ValueError(f"there are no examples, x has shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"x has {np.count_nonzero(~np.isfinite(x))} NaN or infinite values")
    k = (x.astype(np.float64) + 1) / 2 * (levels - 1)
    off = np.abs(k - np.clip(np.round(k), 0, levels - 1))
    if off.max() > _TOLERANCE:
        worst = float(x.flat[off.argmax()])
        raise ValueError(
            f"levels is {levels}, but x holds {worst:.6g}, which is not a level 2 k / {levels - 1} - 1 in [-1, 1]"
        )


def to_levels(x: Float[Array, "*shape"], levels: int) -> Int[Array, "*shape"]:
    """The nearest k with x = 2 k / (levels - 1) - 1."""
    return jnp.clip(jnp.round((x + 1) / 2 * (levels - 1)), 0, levels - 1).astype(jnp.int32)


def from_levels(k: Int[Array, "*shape"], u: Float[Array, "*shape"], levels: int) -> Float[Array, "*shape"]:
    """2 (k + u) / levels - 1: where level k with u in [0, 1) lies."""
    return (k + u) * (2 / levels) - 1


def uniform(levels: int = 256) -> Dequantization:
    """u ~ U[0, 1), row r from its own key; log q = 0. Raises ValueError for fewer than 2 levels."""
    check(levels >= 2, "levels", levels, "at least 2")

    def dequantize(keys: Array, x: Array) -> tuple[Array, Array]:
        u = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], x.dtype))(keys)
        return from_levels(to_levels(x, levels), u, levels), jnp.zeros(x.shape[0], x.dtype)

    return dequantize


def none() -> Dequantization:
    """Continuous data as it is."""
    return lambda keys, x: (x, jnp.zeros(x.shape[0], x.dtype))


def variational(apply: Apply, params: Params, levels: int = 256, num_layers: int = 4) -> Dequantization:
    """u ~ q(u | x), a flow of `num_layers` affine couplings on logistic noise, squashed into (0, 1).

    Trained by descending E[log q(u | x) - log p(x with u)] in `params` with p frozen, it makes the bound of the module
    tighter than uniform noise does (arXiv:1902.00275, section 3.1). A layer scales and shifts every other value, as
    `apply(params, [x, the values kept], layer)` says; it has twice the channels of x as input and as output. A network
    whose last layer is zero gives exactly `uniform`.

    Raises ValueError for fewer than 2 levels or no layer.
    """
    check(levels >= 2, "levels", levels, "at least 2")
    check(num_layers >= 1, "num_layers", num_layers, "at least 1")

    def dequantize(keys: Array, x: Array) -> tuple[Array, Array]:
        e = jax.vmap(lambda key: jax.random.logistic(key, x.shape[1:], x.dtype))(keys)
        log_q = _log_logistic(e)
        for layer in range(num_layers):
            kept = checkerboard(x.shape[1:], layer)
            out = apply(params, jnp.concatenate([x, kept * e], axis=-1), jnp.full(x.shape[0], layer, x.dtype))
            log_scale, shift = jnp.split(out, 2, axis=-1)
            log_scale = (1 - kept) * jnp.tanh(log_scale)
            e = jnp.exp(log_scale) * e + (1 - kept) * shift
            log_q = log_q - row_sum(log_scale)
        # The derivative of the sigmoid is the density of the logistic distribution.
        return from_levels(to_levels(x, levels), jax.nn.sigmoid(e), levels), log_q - _log_logistic(e)

    return dequantize


def bits_per_dim(nats: Float[Array, "batch"], num_dims: int, levels: int = 0) -> Float[Array, "batch"]:
    """-log_2 of a probability per dimension from the log density `nats` of x in [-1, 1].

    The cell of a level has width 2 / levels: -nats / (d ln 2) + log_2(levels / 2). With `levels` = 0 the data is
    continuous, and the result is that of the density itself.
    """
    scale = np.log2(levels / 2) if levels else 0.0
    return -nats / (num_dims * np.log(2)) + scale


def _log_logistic(e: Float[Array, "batch *shape"]) -> Float[Array, "batch"]:
    return row_sum(jax.nn.log_sigmoid(e) + jax.nn.log_sigmoid(-e))
