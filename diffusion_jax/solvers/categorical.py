"""Solvers of categorical processes: ancestral, first-hitting, Euler, tau-leaping, confidence order and remasking.

D(x, t) is log p(x_0 | x_t) [batch, *shape, K]. A solver declares which methods of the process it needs, such as those
of one with a mask.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_jax.processes.base import bcast, row_keys
from diffusion_jax.processes.categorical import (
    LOG_ZERO,
    CategoricalProcess,
    row_categorical,
    row_uniform,
    safe_log,
)
from diffusion_jax.solvers.base import stateless
from diffusion_jax.types import Denoiser, Needs, Solver, check, check_choice

Tokens = Int[Array, "batch *shape"]
_MASKED = ("masked", "unmasking")


def ancestral(cache: bool = False, num_values: int = 0) -> Solver:
    """Draw x_s from p(x_s | x_t), the reverse step of the process under D (arXiv:2107.03006; arXiv:2406.07524).

    The law is exact in the limit of small steps for the exact D; within a step tokens are drawn independently. With
    `cache` D is not computed again while no token of the batch has changed, which gives the same samples if the network
    does not read t (arXiv:2406.07524). `num_values` is the number of values of a token, for the cache.

    Raises ValueError for a cache without the number of values.
    """
    if not cache:
        step = lambda process, D, keys, x, t, s: process.reverse(keys, D(x, t), x, t, s)  # noqa: E731
        return stateless(step, categorical=("reverse",), falling_times=True)
    check(num_values >= 2, "num_values", num_values, "at least 2, the values of a token")

    def init(x: Tokens) -> tuple[Array, Array]:
        return jnp.zeros((*x.shape, num_values)), jnp.bool_(True)

    def cached(
        process: CategoricalProcess, D: Denoiser, keys: Array, x: Tokens, t: Array, s: Array, carry: tuple[Array, Array]
    ) -> tuple[Array, tuple[Array, Array]]:
        log_D, stale = carry
        log_D = jax.lax.cond(stale, lambda: D(x, t), lambda: log_D)
        x_s = process.reverse(keys, log_D, x, t, s)
        return x_s, (log_D, jnp.any(x_s != x))

    return Solver(init, cached, Needs(categorical=("reverse",), falling_times=True, time_free=True))


def first_hitting() -> Solver:
    """Unmask one token per step, at the time at which the reverse process unmasks its next one (arXiv:2409.02908).

    With n masks at the mask rate r the next rate is r u^(1/n), u uniform, and a uniformly drawn mask becomes a token
    drawn from D at that time. The law is exact for the exact D, for as many steps as there are masks; the times of the
    grid are not used. Further steps change nothing.
    """

    def init(x: Tokens) -> Float[Array, "batch"]:
        return jnp.full(len(x), -1.0)  # the mask rate of each row; negative before the first step

    def step(
        process: CategoricalProcess, D: Denoiser, keys: Array, x: Tokens, t: Array, s: Array, rate: Array
    ) -> tuple[Array, Array]:
        masked = process.masked(x)
        count = jnp.sum(masked.reshape(len(x), -1), axis=-1)
        u = row_uniform(row_keys(keys, 0), ())
        rate = jnp.where(rate < 0, process.noise(t), rate) * u ** (1 / jnp.maximum(count, 1))
        log_D = D(x, process.time_of_noise(rate))
        order = jnp.where(masked, row_uniform(row_keys(keys, 1), x.shape[1:]), -1.0)
        tokens = row_categorical(row_keys(keys, 2), log_D)
        return jnp.where(_first(order, 1) & masked, tokens, x), rate

    return Solver(init, step, Needs(categorical=_MASKED, falling_times=True))


def euler() -> Solver:
    """Jump to y with probability (t - s) times its rate in the reverse process, else stay (arXiv:2310.16834).

    First order in the step. Steps that are too large for the rates are normalised.
    """

    def step(process: CategoricalProcess, D: Denoiser, keys: Array, x: Tokens, t: Array, s: Array) -> Array:
        jumps = (t - s) * process.jump_rates(D(x, t), x, t)
        stays = jnp.maximum(1 - jnp.sum(jumps, axis=-1), 0)
        leaves = row_uniform(row_keys(keys, 0), x.shape[1:]) * (stays + jnp.sum(jumps, axis=-1)) >= stays
        return jnp.where(leaves, row_categorical(row_keys(keys, 1), safe_log(jumps)), x)

    return stateless(step, categorical=("jump_rates",), falling_times=True)


def tau_leaping(ordinal: bool = False) -> Solver:
    """The jumps of the reverse process in a step, Poisson with the rates at its start (arXiv:2205.14987).

    For `ordinal` values, such as grey levels, the jumps of a token are added and the result is limited to the range of
    values; otherwise a token with several jumps stays where it is. First order in the step.
    """

    def step(process: CategoricalProcess, D: Denoiser, keys: Array, x: Tokens, t: Array, s: Array) -> Array:
        rates = (t - s) * process.jump_rates(D(x, t), x, t)
        counts = jax.vmap(lambda key, row: jax.random.poisson(key, row))(keys, rates)
        states = jnp.arange(process.num_states)
        if ordinal:
            moved = x + jnp.sum(counts * (states - x[..., None]), axis=-1)
            return jnp.clip(moved, 0, process.num_states - 1)
        return jnp.where(jnp.sum(counts, axis=-1) == 1, jnp.argmax(counts, axis=-1), x)

    categorical = ("jump_rates", "log_ratios") if ordinal else ("jump_rates",)  # a mask is no level among others
    return stateless(step, categorical=categorical, falling_times=True)


def confidence(temperature: float = 1.0, order: str = "confidence") -> Solver:
    """Unmask the tokens that D is most certain of, so many that a share 1 - alpha(s) of them stays masked (MaskGIT).

    Tokens are drawn from D at a `temperature`, 0 for the most probable; the confidence is the probability of the drawn
    token. This is not the reverse process: it is greedy in the order, and its law is biased even for the exact D
    (arXiv:2202.04200; arXiv:2502.09992, the sampler of LLaDA). With the `order` "random" the tokens are
    chosen uniformly, without that bias.

    Raises ValueError for a negative temperature or another order.
    """
    check(temperature >= 0, "temperature", temperature, "at least 0")
    check_choice("order", order, ("confidence", "random"))

    def init(x: Tokens) -> Float[Array, "batch"]:
        return jnp.full(len(x), -1.0)  # the number of masks of each row that there were; negative before the first step

    def step(
        process: CategoricalProcess, D: Denoiser, keys: Array, x: Tokens, t: Array, s: Array, initial: Array
    ) -> tuple[Array, Array]:
        masked = process.masked(x)
        count = jnp.sum(masked.reshape(len(x), -1), axis=-1)
        initial = jnp.where(initial < 0, count / jnp.maximum(process.noise(t), 1e-30), initial)
        log_D = D(x, t)
        if temperature:
            tokens = row_categorical(row_keys(keys, 0), jnp.maximum(log_D / temperature, LOG_ZERO))
        else:
            tokens = jnp.argmax(log_D, axis=-1)
        if order == "random":
            rank = row_uniform(row_keys(keys, 1), x.shape[1:])
        else:
            rank = jnp.take_along_axis(log_D, tokens[..., None], axis=-1)[..., 0]
        left = jnp.round(initial * process.noise(s)).astype(count.dtype)
        chosen = _first(jnp.where(masked, rank, -jnp.inf), jnp.maximum(count - left, 0))
        return jnp.where(chosen & masked, tokens, x), initial

    return Solver(init, step, Needs(categorical=_MASKED, falling_times=True))


def remasking(strength: float = 0.1) -> Solver:
    """Ancestral steps of a masked process that also mask tokens again: ReMDM (arXiv:2503.00307).

    A token is masked with probability sigma = strength min(1, (1 - alpha_s) / alpha_t), and a mask is unmasked with
    probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), which keeps the number of masks of the process. Errors
    can be corrected. 0 is `ancestral`.

    Raises ValueError unless the strength is in [0, 1].
    """
    check(0 <= strength <= 1, "strength", strength, "in [0, 1]")

    def step(process: CategoricalProcess, D: Denoiser, keys: Array, x: Tokens, t: Array, s: Array) -> Array:
        alpha_t, alpha_s, noise_t = process.alpha(t), process.alpha(s), process.noise(t)
        again = strength * jnp.minimum(1, process.noise(s) / jnp.maximum(alpha_t, 1e-30))
        unmask = jnp.where(noise_t > 0, (alpha_s - (1 - again) * alpha_t) / jnp.where(noise_t > 0, noise_t, 1), 1.0)
        u = row_uniform(row_keys(keys, 0), x.shape[1:])
        tokens = row_categorical(row_keys(keys, 1), D(x, t))
        remasked = jnp.where(u < bcast(again, x), process.mask, x)
        return jnp.where(process.masked(x), jnp.where(u < bcast(unmask, x), tokens, x), remasked)

    return stateless(step, categorical=_MASKED, falling_times=True)


def restored(solver: Solver, known: Bool[Array, "batch *shape"], x_0: Tokens) -> Solver:
    """The solver of infilling: after every step the `known` tokens are those of x_0.

    Under a masked process tokens that are known are tokens that are not masked, so that the law of the others is the
    conditional one of the solver, for the exact D.
    """

    def step(
        process: CategoricalProcess, D: Denoiser, keys: Array, x: Tokens, t: Array, s: Array, carry: Any
    ) -> tuple[Array, Any]:
        x_s, carry = solver.step(process, D, keys, x, t, s, carry)
        return jnp.where(known, x_0, x_s), carry

    return solver._replace(step=step)


def _first(rank: Float[Array, "batch *shape"], count: Array | int) -> Bool[Array, "batch *shape"]:
    """Which entries of each row are among the `count` greatest."""
    flat = rank.reshape(len(rank), -1)
    place = jnp.argsort(jnp.argsort(-flat, axis=-1), axis=-1)
    return (place < jnp.reshape(jnp.asarray(count), (-1, 1))).reshape(rank.shape)
