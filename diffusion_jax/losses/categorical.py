"""Losses of categorical processes: the variational bound in continuous time or of T steps, D3PM's hybrid, SEDD's.

A loss is a function `loss(params, key, x_0, cond=None, *, train=True) -> ([batch], aux)` in nats per token, as
`losses.denoising` describes; x_0 holds integers [batch, *shape].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.losses import times as times_module
from diffusion_jax.losses.denoising import row_mean
from diffusion_jax.losses.times import Times
from diffusion_jax.processes.base import row_sum
from diffusion_jax.processes.categorical import CategoricalProcess, at_values, one_hot_log
from diffusion_jax.token_parameterizations import TokenParameterization
from diffusion_jax.types import Apply, Cond, Denoiser, Params, check, check_key, needing

TokenLoss = Callable[..., tuple[Float[Array, "batch"], dict[str, Array]]]
Tokens = Int[Array, "batch *shape"]
_FIRST = 1e-6  # a time of stratified estimates is at least this: the integrand is a limit at 0


def step_bound(
    process: CategoricalProcess, log_D: Array, x_0: Tokens, x_t: Tokens, t: Array, s: Array
) -> Float[Array, "batch *shape"]:
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) of every token, in nats; for s = 0 it is -log p(x_0 | x_t)."""
    log_q = process.log_posterior(one_hot_log(x_0, process.num_values), x_t, t, s)
    log_p = process.log_posterior(log_D, x_t, t, s)
    return jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)


def prior_bound(process: CategoricalProcess, x_0: Tokens) -> Float[Array, "batch"]:
    """KL(q(x_1 | x_0) || p(x_1)) in nats per example; 0 where the process forgets everything."""
    log_q = process.log_forward(x_0, jnp.float32(1))
    return row_sum(jnp.sum(jnp.exp(log_q) * (log_q - process.log_prior()), axis=-1))


def _loss(
    value: Callable[[Array, Tokens, Tokens, Array], Array],
    apply: Apply,
    param: TokenParameterization,
    process: CategoricalProcess,
    times: Times,
    ce: float,
) -> TokenLoss:
    """The loss with `value(F, x_0, x_t, t) -> [batch, *shape]` of the output F of the network."""
    check(ce >= 0, "ce", ce, "at least 0, the weight of the cross-entropy of x_0")

    @needing(value)
    def loss(
        params: Params, key: Key[Array, ""], x_0: Tokens, cond: Cond = None, *, train: bool = True
    ) -> tuple[Array, dict[str, Array]]:
        check_key(key)
        time_key, noise_key, dropout_key = jax.random.split(key, 3)
        t, weight = times(process, time_key, x_0.shape[0])
        x_t = process.perturb(noise_key, x_0, t)
        F = apply(params, x_t, param.label(process, t), cond, key=dropout_key if train else None)
        bound = weight * row_mean(value(F, x_0, x_t, t))
        if not ce:
            return bound, {"t": t}
        entropy = row_mean(-at_values(param.log_D(process, F, x_t, t), x_0))
        return bound + ce * entropy, {"t": t, "bound": bound, "ce": entropy}

    return loss


def nelbo(
    apply: Apply,
    param: TokenParameterization,
    process: CategoricalProcess,
    times: Times = times_module.low_discrepancy(),
    ce: float = 0.0,
) -> TokenLoss:
    """The negative ELBO in continuous time, plus `ce` times the cross-entropy of x_0, D3PM's lambda.

    For a masked process it is the weighted cross-entropy of MDLM and MD4 (arXiv:2406.07524), for a uniform one
    the score entropy of the ratios of D. The exact D gives the entropy of the data.
    """

    @needing(categorical=("bound_rate",))
    def value(F: Array, x_0: Tokens, x_t: Tokens, t: Array) -> Array:
        return process.bound_rate(param.log_D(process, F, x_t, t), x_0, x_t, t)

    return _loss(value, apply, param, process, times, ce)


def discrete_nelbo(
    apply: Apply,
    param: TokenParameterization,
    process: CategoricalProcess,
    times: Times = times_module.low_discrepancy(),
    ce: float = 0.0,
) -> TokenLoss:
    """T times KL(q(x_s | x_t, x_0) || p(x_s | x_t)) at a uniform step from t = i / T to s, plus `ce` times D3PM's CE.

    The bound of T steps (arXiv:2107.03006, eq. 1 and 5), without the part of the prior, which has no parameters. The
    times drawn are rounded up to i / T. It is larger than the bound in continuous time and falls towards it with T.
    """

    @needing(categorical=("log_posterior",), num_steps=True)
    def value(F: Array, x_0: Tokens, x_t: Tokens, t: Array) -> Array:
        steps = process.num_steps
        return steps * step_bound(process, param.log_D(process, F, x_t, t), x_0, x_t, t, t - 1 / steps)

    def on_grid(process: CategoricalProcess, key: Key[Array, ""], n: int) -> tuple[Array, Array]:
        t, weight = times(process, key, n)
        return jnp.clip(jnp.ceil(t * process.num_steps), 1, process.num_steps) / process.num_steps, weight

    return _loss(value, apply, param, process, on_grid, ce)


def score_entropy(
    apply: Apply,
    param: TokenParameterization,
    process: CategoricalProcess,
    times: Times = times_module.low_discrepancy(),
) -> TokenLoss:
    """SEDD's denoising score entropy with the weights of the bound (arXiv:2310.16834), in ratios F.

    The parameterization must be `log_score`. For ratios of a normalised D it is `nelbo`.
    """

    @needing(categorical=("score_entropy",))
    def value(F: Array, x_0: Tokens, x_t: Tokens, t: Array) -> Array:
        return process.score_entropy(param.log_ratios(process, F, x_t, t), x_0, x_t, t)

    if param.log_ratios is None:
        raise ValueError("score_entropy needs the parameterization 'log_score', whose output are ratios")
    return _loss(value, apply, param, process, times, 0.0)


def bound(
    process: CategoricalProcess, D: Denoiser, key: Key[Array, ""], x_0: Tokens, num_times: int = 64
) -> Float[Array, "batch"]:
    """An upper bound of -log p(x_0) in nats per example, estimated at `num_times` stratified times for each example.

    A process with `num_steps` has the bound of these steps, from times that are drawn among them, others the one in
    continuous time. That is for a process from alpha(0) = 1 to alpha(1) = 0, see `RankOne.exact`. The estimate is
    unbiased; its integrand is averaged at the times (j + u) / num_times with one u in [0, 1).

    Raises ValueError unless `num_times` is at least 1.
    """
    check(num_times >= 1, "num_times", num_times, "at least 1")
    steps = process.num_steps
    offset_key, noise_key = jax.random.split(key)
    offset = jax.random.uniform(offset_key)

    def at(total: Array, j: Array) -> tuple[Array, None]:
        t = jnp.maximum((j + offset) / num_times, _FIRST)
        if steps:
            t = jnp.clip(jnp.ceil(t * steps), 1, steps) / steps
        t = jnp.full(len(x_0), t)
        x_t = process.perturb(jax.random.fold_in(noise_key, j), x_0, t)
        log_D = D(x_t, t)
        if steps:
            value = steps * step_bound(process, log_D, x_0, x_t, t, t - 1 / steps)
        else:
            value = process.bound_rate(log_D, x_0, x_t, t)
        return total + row_sum(value), None

    total, _ = jax.lax.scan(at, jnp.zeros(len(x_0)), jnp.arange(num_times))
    return total / num_times + prior_bound(process, x_0)


def code_length(nats: Float[Array, "batch"], x_0: Tokens, pad: int | None = None) -> dict[str, Float[Array, "batch"]]:
    """{"bits_per_token": ...} of nats per example.

    Of examples that end with `pad` and are filled with it, tokens count up to and with the first one; the parts of the
    quotient are "bits_per_example" and "tokens_per_example". The bits are those of all tokens, as a bound must count.
    """
    bits = nats / math.log(2)
    if pad is None:
        return {"bits_per_token": bits / x_0[0].size}
    num = jnp.minimum(jnp.cumprod(x_0 != pad, axis=-1).sum(-1) + 1, x_0.shape[-1])
    return {"bits_per_token": bits / num, "bits_per_example": bits, "tokens_per_example": num}
