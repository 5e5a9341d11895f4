"""The terms of the variational bound on -log p(x_0): KL divergences of steps and of the prior, and the decoder's."""

from __future__ import annotations

import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

from diffusion_jax.processes.base import bcast, row_sum
from diffusion_jax.solvers.base import posterior
from diffusion_jax.types import Process

Time = Float[Array, "*n"]
Variance = Float[Array, "..."]  # a scalar, one number per row, or one per value


def gaussian_kl(
    squared_distance: Float[Array, "batch *shape"], variance_q: Variance, variance_p: Variance
) -> Float[Array, "batch"]:
    """KL(N(m_q, variance_q) || N(m_p, variance_p)) in nats, summed over all but the first axis.

    `squared_distance` is (m_q - m_p)^2 [batch, ...]; the variances are scalars, [batch] or [batch, ...].
    """
    q, p = bcast(variance_q, squared_distance), bcast(variance_p, squared_distance)
    ratio = q / p
    return row_sum(0.5 * (squared_distance / p + (ratio - 1 - jnp.log(ratio))))


def posterior_kl(
    process: Process, t: Time, s: Time, x_0: Float[Array, "batch *shape"], x_hat: Array, variance: Variance
) -> Float[Array, "batch"]:
    """L_{t-1} = KL(q(x_s | x_t, x_0) || N(a x_t + b x_hat, variance)) in nats, with x_hat = D(x_t, t).

    The means differ by b (x_0 - x_hat), see `posterior`. sigma(s) must be positive. `variance` is a scalar, [batch] or
    [batch, ...].
    """
    _, b, v = posterior(process, t, s)
    return gaussian_kl((bcast(b, x_0) * (x_0 - x_hat)) ** 2, v, variance)


def prior_kl(process: Process, x_0: Float[Array, "batch *shape"], t: Time | float = 1.0) -> Float[Array, "batch"]:
    """L_T = KL(q(x_t | x_0) || N(0, sigma(t)^2 I)) in nats, with the prior that sampling from t starts with."""
    t = jnp.asarray(t, x_0.dtype)
    variance = process.sigma(t) ** 2
    return gaussian_kl((bcast(process.alpha(t), x_0) * x_0) ** 2, variance, variance)


def decoder_nats(
    x_0: Float[Array, "batch *shape"], mean: Float[Array, "batch *shape"], variance: Variance, levels: int = 256
) -> Float[Array, "batch"]:
    """L_0 = -log P(x_0): N(mean, variance) integrated over x_0 +- 1 / (levels - 1), in nats.

    x_0 = 2 k / (levels - 1) - 1. The cells of -1 and 1 reach to infinity, so the probabilities of the levels sum to
    one (arXiv:2006.11239, eq. 13). Logarithms throughout: there is no floor under a probability.
    """
    std = jnp.sqrt(bcast(variance, x_0))
    half = 1 / (levels - 1)
    low = jnp.where(x_0 < -1 + half, -jnp.inf, (x_0 - half - mean) / std)
    high = jnp.where(x_0 > 1 - half, jnp.inf, (x_0 + half - mean) / std)
    # In the upper tail both distribution functions round to 1; the interval is mirrored into the lower one.
    mirrored = low + high > 0
    low, high = jnp.where(mirrored, -high, low), jnp.where(mirrored, -low, high)
    log_low, log_high = log_ndtr(low), log_ndtr(high)
    return -row_sum(log_high + jnp.log1p(-jnp.exp(log_low - log_high)))
