"""What a network's output means for a categorical process: logits of x_0, of x_0 given the others, or log ratios.

Whatever F was trained for, the result is the denoiser D(x_t, t) = log p(x_0 | x_t) [batch, *shape, K], the currency
between networks, guidance, solvers and bounds; ratios q(y) / q(x_t), the concrete score, are a view of it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.parameterizations import NoiseLabel, Time, time_label
from diffusion_jax.processes import categorical
from diffusion_jax.processes.base import bcast
from diffusion_jax.processes.categorical import CategoricalProcess
from diffusion_jax.types import Apply, Cond, Denoiser


class TokenParameterization(NamedTuple):
    """What the output F [batch, *shape, K] of a network means for a categorical process with K values.

    `log_D(process, F, x_t, t)` are log-probabilities of x_0. `log_ratios(process, F, x_t, t)` are the logarithms of
    q(y) / q(x_t) for every value y; None where F says nothing of them but through D. `label(process, t)` is the noise
    label of the network.
    """

    log_D: Callable[..., Array]
    log_ratios: Callable[..., Array] | None
    label: NoiseLabel


def x0_logits(label: NoiseLabel = time_label) -> TokenParameterization:
    """F are logits of x_0. A token that a masked process shows is certain: SUBS (arXiv:2406.07524)."""

    def log_D(process: CategoricalProcess, F: Array, x_t: Array, t: Array) -> Array:
        return _certain(process, categorical.normalized(F), x_t)

    return TokenParameterization(log_D, None, label)


def joint(label: NoiseLabel = time_label) -> TokenParameterization:
    """F are logits of x_0 given the other tokens: D_k is proportional to F_k Q_t[k, x_t] (arXiv:2107.03006, eq. 4).

    D3PM draws x_s from sum_k q(x_s, x_t given x_0 = k) F_k. That is a reverse step under this D, so that F is the
    predictor from the other tokens, not the posterior of x_0, unless the process is masked.
    """

    def log_D(process: CategoricalProcess, F: Array, x_t: Array, t: Array) -> Array:
        joined = jnp.maximum(categorical.normalized(F) + process.log_evidence(x_t, t), categorical.LOG_ZERO)
        return _certain(process, categorical.normalized(joined), x_t)

    return TokenParameterization(log_D, None, label)


def log_score(label: NoiseLabel = time_label) -> TokenParameterization:
    """F are logarithms of the ratios q(y) / q(x_t), the concrete score (SEDD, arXiv:2310.16834).

    A masked process adds log(alpha / (1 - alpha) / K), the ratio of equally probable tokens, so that F = 0 is a fair
    start (the authors' `scale_by_sigma`).
    """

    def log_ratios(process: CategoricalProcess, F: Array, x_t: Array, t: Array) -> Array:
        return F + bcast(process.log_ratio_scale(t), F)

    def log_D(process: CategoricalProcess, F: Array, x_t: Array, t: Array) -> Array:
        return process.log_D_of_ratios(log_ratios(process, F, x_t, t), x_t, t)

    return TokenParameterization(log_D, log_ratios, label)


def total_noise_label(process: CategoricalProcess, t: Time) -> Time:
    """-log alpha(t), the total noise of SEDD and MDLM; alpha counts as at least 1e-30."""
    return -categorical.safe_log(jnp.maximum(process.alpha(t), 2e-30))


def _certain(process: CategoricalProcess, log_D: Array, x_t: Array) -> Array:
    return process.known(log_D, x_t) if hasattr(process, "known") else log_D


def denoiser(apply: Apply, param: TokenParameterization, process: CategoricalProcess) -> Denoiser:
    """D(x_t, t, cond) -> log p(x_0 | x_t) [batch, *shape, K] of a network with its parameters bound; t may be a scalar.

    `apply(x, c_noise, cond)` is called with the integers x_t.
    """

    def D(x: Array, t: Array, cond: Cond = None) -> Array:
        t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), x.shape[:1])
        return param.log_D(process, apply(x, param.label(process, t), cond), x, t)

    return D
