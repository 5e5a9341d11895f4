"""Likelihoods of models that have a density in closed form, or a bound on it by importance weights: flows and VAEs."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from diffusion_jax.likelihood import dequantization as dequantizations
from diffusion_jax.processes.base import row_keys
from diffusion_jax.types import check, check_choice

LogProb = Callable[[Float[Array, "batch *shape"]], Float[Array, "batch"]]  # x -> log p(x) in nats
# (key, x) -> log p(x, z) - log q(z | x) in nats, for one z ~ q(z | x)
LogWeight = Callable[[Key[Array, ""], Float[Array, "batch *shape"]], Float[Array, "batch"]]


def exact_likelihood(
    *, dequantization: str = "uniform", levels: int = 256
) -> Callable[[LogProb, Key[Array, ""], Array], dict[str, Array]]:
    """The likelihood of a normalizing flow, as a function of (log_prob, key, x_0).

    Its metrics are `bits_per_dim`, an upper bound on the code length in expectation over the dequantization noise, and
    `nats`, the log density of the dequantized x. `dequantization` is "uniform" over the `levels` grey levels of the
    data, or "none" for continuous data, whose bits_per_dim is that of the density itself.

    Raises ValueError for an unknown choice or fewer than 2 levels.
    """
    dequantize, levels = _dequantization(dequantization, levels)

    def likelihood(log_prob: LogProb, key: Key[Array, ""], x_0: Array) -> dict[str, Array]:
        x, log_q = dequantize(row_keys(key, jnp.arange(len(x_0))), x_0)
        nats = log_prob(x)
        return {"bits_per_dim": dequantizations.bits_per_dim(nats - log_q, x_0[0].size, levels), "nats": nats}

    return likelihood


def iwae_likelihood(
    *, num_samples: int = 64, dequantization: str = "uniform", levels: int = 256
) -> Callable[[LogWeight, Key[Array, ""], Array], dict[str, Array]]:
    """The bounds of a model with latents z, as a function of (log_weight, key, x_0).

    With log w_k = log p(x, z_k) - log q(z_k | x) for `num_samples` latents of the encoder, `bits_per_dim` is that of
    the mean of log w_k, the ELBO (arXiv:1312.6114), and `bits_per_dim_iwae` that of log mean_k w_k, which is closer to
    log p(x), and closer still with more samples (arXiv:1509.00519, theorem 1). All samples are of one dequantized x.
    `dequantization` and `levels` are those of `exact_likelihood`, and so are the errors; also for no samples.
    """
    check(num_samples >= 1, "num_samples", num_samples, "at least 1")
    dequantize, levels = _dequantization(dequantization, levels)

    def likelihood(log_weight: LogWeight, key: Key[Array, ""], x_0: Array) -> dict[str, Array]:
        noise_key, latent_key = jax.random.split(key)
        x, log_q = dequantize(row_keys(noise_key, jnp.arange(len(x_0))), x_0)
        weights = jax.lax.map(lambda k: log_weight(k, x), jax.random.split(latent_key, num_samples))

        def bits(nats: Float[Array, "batch"]) -> Float[Array, "batch"]:
            return dequantizations.bits_per_dim(nats - log_q, x_0[0].size, levels)

        return {"bits_per_dim": bits(weights.mean(0)), "bits_per_dim_iwae": bits(log_mean_exp(weights))}

    return likelihood


def log_mean_exp(values: Float[Array, "n *shape"]) -> Float[Array, "*shape"]:
    """log of the mean of exp(values) over the first axis."""
    return jax.nn.logsumexp(values, axis=0) - np.log(len(values))


def _dequantization(name: str, levels: int) -> tuple[dequantizations.Dequantization, int]:
    """The dequantization, and the number of levels that bits per dimension are of: 0 for continuous data."""
    check_choice("dequantization", name, ("uniform", "none"))
    return (dequantizations.uniform(levels), levels) if name == "uniform" else (dequantizations.none(), 0)
