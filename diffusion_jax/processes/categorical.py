"""Categorical processes: how tokens, characters or grey levels are destroyed, and how a step is reversed.

A token x_0 in 0..K-1 becomes x_t with probability Q_t[x_0, x_t], independently of the others. The denoiser of a
categorical process is D(x_t, t)_k = log p(x_0 = k given x_t): for one-hot x_0 that is the logarithm of E[x_0 | x_t]. A
reverse step from t to s < t marginalises it:

    p(x_s = j | x_t = i) = sum_k exp(D_k) Q_s[k, j] Q_ts[j, i] / Q_t[k, i]

with Q_ts the transition from s to t. This is the reversal of the process for the exact D. (Equation 4 of
arXiv:2107.03006 weights by the joint q(x_s, x_t given x_0) instead; see `parameterizations.joint`.) Probabilities that
are zero have the logarithm `LOG_ZERO`, which is finite, so that differences of logarithms are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from diffusion_jax.processes.base import bcast, row_keys, time_derivative
from diffusion_jax.types import check, check_choice, check_key, pytree

Time = Float[Array, "*n"]
Number = Any  # a float; JAX's transformations rebuild a pytree with arrays, tracers or placeholders in its place
Tokens = Int[Array, "batch *shape"]
LogValues = Float[Array, "batch *shape values"]  # one number for each value of x_0
LogStates = Float[Array, "batch *shape states"]  # one number for each value of x_t, the mask being the last
LOG_ZERO = -1e30
_TINY = 1e-30  # probabilities below it count as 0
_S = 0.008  # of D3PM's cosine


@runtime_checkable
class CategoricalProcess(Protocol):
    """A categorical process. `t` and `s` are scalars or [batch], in [0, 1]; noise grows with t."""

    num_values: int  # K, of x_0
    num_steps: int | None  # of a process that is defined at the times i / T only; None for a continuous one

    @property
    def num_states(self) -> int:
        """The number of values of x_t."""

    def log_prior(self) -> Float[Array, "states"]:
        """log p(x_1), of every token."""

    def prior(self, keys: Key[Array, "batch"], shape: tuple[int, ...]) -> Tokens:
        """Draw x_1 of `shape` [batch, ...]; row r comes from keys[r]."""

    def perturb(self, key: Key[Array, ""], x_0: Tokens, t: Time) -> Tokens:
        """Draw q(x_t | x_0)."""

    def log_forward(self, x_0: Tokens, t: Time) -> LogStates:
        """log Q_t[x_0, .]."""

    def log_evidence(self, x_t: Tokens, t: Time) -> LogValues:
        """log Q_t[., x_t]: what x_t says about x_0."""

    def log_posterior(self, log_D: LogValues, x_t: Tokens, t: Time, s: Time) -> LogStates:
        """log p(x_s | x_t), the equation above, normalised."""

    def reverse(self, keys: Key[Array, "batch"], log_D: LogValues, x_t: Tokens, t: Time, s: Time) -> Tokens:
        """Draw x_s from p(x_s | x_t); row r comes from keys[r]."""


def row_categorical(
    keys: Key[Array, "batch"], log_p: Float[Array, "batch *shape values"]
) -> Int[Array, "batch *shape"]:
    """Draw from unnormalised log-probabilities over the last axis, row r from keys[r] alone.

    The Gumbel noise has full precision (mode="high"). JAX's default ends at about 16, so that probabilities below 1e-7
    are never or too often drawn; truncated noise lowers the effective temperature of samples (arXiv:2409.02908).
    """
    return jax.vmap(lambda key, row: jax.random.categorical(key, row, mode="high"))(keys, log_p)


def row_uniform(keys: Key[Array, "batch"], shape: tuple[int, ...]) -> Float[Array, "batch *shape"]:
    """Uniform numbers in [0, 1) of `shape` for each row, row r from keys[r] alone."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)


def one_hot_log(x: Int[Array, "*shape"], num: int) -> Float[Array, "*shape {num}"]:
    """Log-probabilities of the distribution that is certain of x: 0 for it and `LOG_ZERO` for the others."""
    return jnp.where(jax.nn.one_hot(x, num, dtype=bool), 0.0, LOG_ZERO)


def at_values(log_p: Float[Array, "*shape values"], x: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The entries log_p[..., x]."""
    return jnp.take_along_axis(log_p, x[..., None], axis=-1)[..., 0]


def normalized(log_p: Float[Array, "*shape values"]) -> Float[Array, "*shape values"]:
    """Log-probabilities from unnormalised ones."""
    return log_p - jax.nn.logsumexp(log_p, axis=-1, keepdims=True)


def safe_log(p: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log p, and `LOG_ZERO` for p below 1e-30, with a finite derivative."""
    positive = p > _TINY
    return jnp.where(positive, jnp.log(jnp.where(positive, p, 1.0)), LOG_ZERO)


class Schedule(NamedTuple):
    """A function f that falls from f(0) = 1 to f(1) = 0, and 1 - f, each without cancellation."""

    kept: Callable[[Time], Time]
    lost: Callable[[Time], Time]


def _geometric(least: float = 1e-4, most: float = 20.0) -> Schedule:
    total = lambda t: least ** (1 - t) * most**t  # noqa: E731
    high, low = math.exp(-least), math.exp(-most)
    return Schedule(
        lambda t: (jnp.exp(-total(t)) - low) / (high - low),
        lambda t: -high * jnp.expm1(least - total(t)) / (high - low),
    )


def _shifted_cosine() -> Schedule:
    a, b = (lambda t: jnp.pi / 2 * (t + _S) / (1 + _S)), jnp.pi / 2 * _S / (1 + _S)
    return Schedule(
        lambda t: jnp.sin(jnp.pi / 2 * (1 - t) / (1 + _S)) / math.cos(b),
        # cos b - cos a = 2 sin((a + b) / 2) sin((a - b) / 2)
        lambda t: 2 * jnp.sin((a(t) + b) / 2) * jnp.sin((a(t) - b) / 2) / math.cos(b),
    )


# Named by formula: what papers call "cosine" differs from code to code.
SCHEDULES = {
    "linear": Schedule(lambda t: 1 - t, lambda t: t),
    "cosine": Schedule(lambda t: jnp.sin(jnp.pi / 2 * (1 - t)), lambda t: 2 * jnp.sin(jnp.pi / 4 * t) ** 2),
    "cosine_squared": Schedule(lambda t: jnp.sin(jnp.pi / 2 * (1 - t)) ** 2, lambda t: jnp.sin(jnp.pi / 2 * t) ** 2),
    "one_minus_cosine": Schedule(lambda t: 2 * jnp.sin(jnp.pi / 4 * (1 - t)) ** 2, lambda t: jnp.sin(jnp.pi / 2 * t)),
    "shifted_cosine": _shifted_cosine(),
    "geometric": _geometric(),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankOne:
    """Q_t = alpha(t) I + (1 - alpha(t)) 1 pi^T: a token is kept with probability alpha(t), else drawn from pi.

    alpha(t) = end + (start - end) f(t) with f the `schedule`: "linear" 1 - t, "cosine" cos(pi t / 2), "cosine_squared",
    "one_minus_cosine" 1 - cos(pi (1 - t) / 2) (MD4, arXiv:2406.04329), "shifted_cosine"
    cos(pi/2 (t + .008) / 1.008) / cos(pi/2 .008 / 1.008) (the code of D3PM, arXiv:2107.03006), or "geometric", which is
    exp(-1e-4^(1-t) 20^t) scaled to reach 1 and 0 (SEDD, arXiv:2310.16834). Every step from s to t has the same form
    with alpha(t) / alpha(s).
    """

    num_values: int = dataclasses.field(metadata=dict(static=True))
    schedule: str = dataclasses.field(default="linear", metadata=dict(static=True))
    start: Number = 1.0
    end: Number = 0.0
    num_steps: int | None = dataclasses.field(default=None, metadata=dict(static=True))

    def alpha(self, t: Time) -> Time:
        """The probability that a token is kept until t."""
        return self.end + (self.start - self.end) * SCHEDULES[self.schedule].kept(jnp.asarray(t, jnp.float32))

    def noise(self, t: Time) -> Time:
        """1 - alpha(t), without cancellation."""
        t = jnp.asarray(t, jnp.float32)
        return (1 - self.start) + (self.start - self.end) * SCHEDULES[self.schedule].lost(t)

    def loss_rate(self, t: Time) -> Time:
        """-d alpha / dt."""
        return -time_derivative(self.alpha, jnp.asarray(t, jnp.float32))[1]

    def time_of_noise(self, noise: Time) -> Time:
        """The t with noise(t) = `noise`, by bisection; values out of reach give 0 or 1."""

        def halve(_, bounds):
            low, high = bounds
            mid = (low + high) / 2
            above = self.noise(mid) > noise
            return jnp.where(above, low, mid), jnp.where(above, mid, high)

        low, high = jax.lax.fori_loop(0, 30, halve, (jnp.zeros_like(noise), jnp.ones_like(noise)))
        return (low + high) / 2

    @property
    def exact(self) -> RankOne:
        """The same schedule from alpha = 1 to alpha = 0, of which the variational bound has no further terms."""
        return dataclasses.replace(self, start=1.0, end=0.0)


@pytree
class Absorbing(RankOne):
    """Masked diffusion: a token becomes the mask, the value K, and stays it (arXiv:2107.03006, section 3.1).

    Its x_t is a token of the data or the mask, so that an exact D knows every token that is not masked. `reverse`
    unmasks with probability (alpha_s - alpha_t) / (1 - alpha_t) and then draws the token: two draws, so that the mask
    never competes with rare tokens in one draw of limited precision.
    """

    @property
    def num_states(self) -> int:
        return self.num_values + 1

    @property
    def mask(self) -> int:
        """The value of the mask."""
        return self.num_values

    def masked(self, x: Tokens) -> Bool[Array, "batch *shape"]:
        return x == self.mask

    def log_prior(self) -> Float[Array, "states"]:
        return one_hot_log(jnp.int32(self.mask), self.num_states)

    def prior(self, keys: Key[Array, "batch"], shape: tuple[int, ...]) -> Tokens:
        return jnp.full(shape, self.mask, jnp.int32)

    def perturb(self, key: Key[Array, ""], x_0: Tokens, t: Time) -> Tokens:
        check_key(key)
        return jnp.where(jax.random.uniform(key, x_0.shape) < bcast(self.noise(t), x_0), self.mask, x_0)

    def log_forward(self, x_0: Tokens, t: Time) -> LogStates:
        states = jnp.arange(self.num_states)
        kept, lost = (bcast(safe_log(p), x_0[..., None]) for p in (self.alpha(t), self.noise(t)))
        return jnp.where(states == x_0[..., None], kept, jnp.where(states == self.mask, lost, LOG_ZERO))

    def log_evidence(self, x_t: Tokens, t: Time) -> LogValues:
        kept, lost = (bcast(safe_log(p), x_t[..., None]) for p in (self.alpha(t), self.noise(t)))
        here = jnp.where(jnp.arange(self.num_values) == x_t[..., None], kept, LOG_ZERO)
        return jnp.where(self.masked(x_t)[..., None], lost, here)

    def known(self, log_D: LogValues, x_t: Tokens) -> LogValues:
        """log_D where x_t is masked, and certainty of x_t elsewhere."""
        return jnp.where(self.masked(x_t)[..., None], log_D, one_hot_log(x_t, self.num_values))

    def unmasking(self, t: Time, s: Time) -> Time:
        """The probability (alpha_s - alpha_t) / (1 - alpha_t) that a mask at t is a token at s."""
        noise = self.noise(t)
        return jnp.where(noise > 0, (noise - self.noise(s)) / jnp.where(noise > 0, noise, 1), 1.0)

    def log_posterior(self, log_D: LogValues, x_t: Tokens, t: Time, s: Time) -> LogStates:
        unmask = bcast(self.unmasking(t, s), x_t[..., None])
        tokens = jnp.maximum(log_D + safe_log(unmask), LOG_ZERO)
        stays = jnp.broadcast_to(safe_log(1 - unmask), (*x_t.shape, 1))
        log_p = jnp.concatenate([tokens, stays], axis=-1)
        return jnp.where(self.masked(x_t)[..., None], log_p, one_hot_log(x_t, self.num_states))

    def reverse(self, keys: Key[Array, "batch"], log_D: LogValues, x_t: Tokens, t: Time, s: Time) -> Tokens:
        unmask = row_uniform(row_keys(keys, 0), x_t.shape[1:]) < bcast(self.unmasking(t, s), x_t)
        return jnp.where(self.masked(x_t) & unmask, row_categorical(row_keys(keys, 1), log_D), x_t)

    def jump_rates(self, log_D: LogValues, x_t: Tokens, t: Time) -> LogStates:
        """Rates of the reverse process from x_t to every state: -alpha' / (1 - alpha) exp(D) from the mask."""
        rate = self.loss_rate(t) / self.noise(t)
        rates = jnp.where(self.masked(x_t)[..., None], bcast(rate, x_t[..., None]) * jnp.exp(log_D), 0.0)
        return jnp.concatenate([rates, jnp.zeros((*x_t.shape, 1))], axis=-1)

    def bound_rate(self, log_D: LogValues, x_0: Tokens, x_t: Tokens, t: Time) -> Float[Array, "batch *shape"]:
        """The integrand of the continuous-time bound: -alpha' / (1 - alpha) (-D_{x_0}) for a mask, else 0.

        arXiv:2406.07524; arXiv:2406.04329, eq. 5.
        """
        weight = bcast(self.loss_rate(t) / jnp.maximum(self.noise(t), _TINY), x_t)
        return jnp.where(self.masked(x_t), -weight * at_values(log_D, x_0), 0.0)

    def log_ratio_scale(self, t: Time) -> Time:
        """log of alpha / (1 - alpha) / K, the ratio q(y) / q(mask) of equally probable tokens y."""
        return safe_log(self.alpha(t)) - safe_log(self.noise(t)) - jnp.log(float(self.num_values))

    def score_entropy(self, log_ratios: LogValues, x_0: Tokens, x_t: Tokens, t: Time) -> Float[Array, "batch *shape"]:
        """The integrand of the bound for estimates of the ratios s_y = q(y) / q(x_t), see `Uniform.score_entropy`.

        Where the ratios are alpha / (1 - alpha) exp(D), it is `bound_rate`.
        """
        log_r = bcast(safe_log(self.alpha(t)) - safe_log(self.noise(t)), x_t)
        rate = bcast(self.loss_rate(t) / jnp.maximum(self.alpha(t), _TINY), x_t)
        total = jnp.sum(jnp.exp(log_ratios), axis=-1)
        entropy = total - jnp.exp(log_r) * (at_values(log_ratios, x_0) - log_r + 1)
        return jnp.where(self.masked(x_t), rate * entropy, 0.0)

    def log_D_of_ratios(self, log_ratios: LogValues, x_t: Tokens, t: Time) -> LogValues:
        """log p(x_0 | x_t) from estimates of the ratios, normalised."""
        return self.known(normalized(log_ratios), x_t)


@pytree
class Uniform(RankOne):
    """A token is kept or replaced by a uniformly drawn one: Q_t = alpha I + (1 - alpha) / K 11^T (arXiv:2102.05379)."""

    @property
    def num_states(self) -> int:
        return self.num_values

    def log_prior(self) -> Float[Array, "states"]:
        return jnp.full(self.num_states, -jnp.log(float(self.num_values)))

    def prior(self, keys: Key[Array, "batch"], shape: tuple[int, ...]) -> Tokens:
        return jax.vmap(lambda key: jax.random.randint(key, shape[1:], 0, self.num_values))(keys)

    def perturb(self, key: Key[Array, ""], x_0: Tokens, t: Time) -> Tokens:
        check_key(key)
        keep_key, draw_key = jax.random.split(key)
        replaced = jax.random.uniform(keep_key, x_0.shape) < bcast(self.noise(t), x_0)
        return jnp.where(replaced, jax.random.randint(draw_key, x_0.shape, 0, self.num_values), x_0)

    def _log_transition(self, x: Tokens, alpha: Time, noise: Time) -> LogValues:
        """log of alpha I + noise / K at the row (or column: it is symmetric) of x."""
        other = noise / self.num_values
        same, other = (bcast(safe_log(p), x[..., None]) for p in (alpha + other, other))
        return jnp.where(jnp.arange(self.num_values) == x[..., None], same, other)

    def log_forward(self, x_0: Tokens, t: Time) -> LogStates:
        return self._log_transition(x_0, self.alpha(t), self.noise(t))

    def log_evidence(self, x_t: Tokens, t: Time) -> LogValues:
        return self._log_transition(x_t, self.alpha(t), self.noise(t))

    def log_posterior(self, log_D: LogValues, x_t: Tokens, t: Time, s: Time) -> LogStates:
        # sum_k D_k Q_s[k, j] / Q_t[k, i] = alpha_s D_j / Q_t[j, i] + (1 - alpha_s) / K sum_k D_k / Q_t[k, i]
        weights = jnp.maximum(log_D - self.log_evidence(x_t, t), LOG_ZERO)
        total = jax.nn.logsumexp(weights, axis=-1, keepdims=True)
        kept, drawn = self.alpha(s), self.noise(s) / self.num_values
        kept, drawn = (bcast(safe_log(p), x_t[..., None]) for p in (kept, drawn))
        alpha_s = self.alpha(s)
        lost = (self.noise(t) - self.noise(s)) / alpha_s
        step = self._log_transition(x_t, self.alpha(t) / alpha_s, lost)
        return normalized(jnp.maximum(step + jnp.logaddexp(kept + weights, drawn + total), LOG_ZERO))

    def reverse(self, keys: Key[Array, "batch"], log_D: LogValues, x_t: Tokens, t: Time, s: Time) -> Tokens:
        return row_categorical(keys, self.log_posterior(log_D, x_t, t, s))

    def log_ratios(self, log_D: LogValues, x_t: Tokens, t: Time) -> LogStates:
        """log of s_y = q(y) / q(x_t) = sum_k exp(D_k) Q_t[k, y] / Q_t[k, x_t] for every y; 0 for y = x_t."""
        weights = log_D - self.log_evidence(x_t, t)
        total = jax.nn.logsumexp(weights, axis=-1, keepdims=True)
        kept, drawn = self.alpha(t), self.noise(t) / self.num_values
        kept, drawn = (bcast(safe_log(p), x_t[..., None]) for p in (kept, drawn))
        here = jnp.arange(self.num_values) == x_t[..., None]
        return jnp.where(here, 0.0, jnp.logaddexp(kept + weights, drawn + total))

    def jump_rates(self, log_D: LogValues, x_t: Tokens, t: Time) -> LogStates:
        """Rates of the reverse process from x_t to every other state y: -alpha' / alpha / K times the ratio s_y."""
        rate = bcast(self.loss_rate(t) / self.alpha(t) / self.num_values, x_t[..., None])
        here = jnp.arange(self.num_values) == x_t[..., None]
        return jnp.where(here, 0.0, rate * jnp.exp(self.log_ratios(log_D, x_t, t)))

    def bound_rate(self, log_D: LogValues, x_0: Tokens, x_t: Tokens, t: Time) -> Float[Array, "batch *shape"]:
        """The integrand of the continuous-time bound, `score_entropy` of the ratios of D."""
        return self.score_entropy(self.log_ratios(log_D, x_t, t), x_0, x_t, t)

    def log_ratio_scale(self, t: Time) -> Time:
        """0: ratios of a uniform process are of the order of 1."""
        return jnp.zeros_like(jnp.asarray(t, jnp.float32))

    def score_entropy(self, log_ratios: LogStates, x_0: Tokens, x_t: Tokens, t: Time) -> Float[Array, "batch *shape"]:
        """lambda / K sum_{y != x_t} [s_y - r_y log s_y + r_y (log r_y - 1)], r_y = Q_t[x_0, y] / Q_t[x_0, x_t].

        lambda = -alpha' / alpha (arXiv:2310.16834). Written as r_y (e^d - 1 - d) with d = log s_y - log r_y,
        which is exactly 0 where the ratios are right.
        """
        forward = self.log_forward(x_0, t)
        log_r = forward - at_values(forward, x_t)[..., None]
        d = log_ratios - log_r
        terms = jnp.exp(log_r) * (jnp.expm1(d) - d)
        here = jnp.arange(self.num_values) == x_t[..., None]
        rate = self.loss_rate(t) / jnp.maximum(self.alpha(t), 1e-6) / self.num_values
        return bcast(rate, x_t) * jnp.sum(jnp.where(here, 0.0, terms), axis=-1)

    def log_D_of_ratios(self, log_ratios: LogStates, x_t: Tokens, t: Time) -> LogValues:
        """log p(x_0 | x_t) of ratios: D_k = Q_t[k, x_t] (Q_t^-1 s)_k with Q_t^-1 = (I - (1 - alpha) / K 11^T) / alpha.

        Exact for exact ratios. Of others what is negative counts as 0, and the result is normalised.
        """
        here = jnp.arange(self.num_values) == x_t[..., None]
        ratios = jnp.exp(jnp.where(here, 0.0, log_ratios))
        lost = bcast(self.noise(t), x_t[..., None])
        inverse = ratios - lost * jnp.mean(ratios, axis=-1, keepdims=True)
        return normalized(jnp.maximum(safe_log(inverse) + self.log_evidence(x_t, t), LOG_ZERO))


def absorbing(
    num_values: int, schedule: str = "linear", start: float = 1.0, end: float = 0.0, num_steps: int = 0
) -> Absorbing:
    """Masked diffusion of tokens in 0..num_values - 1. With `num_steps` its bound is that of so many steps.

    Raises ValueError for an unknown schedule, or unless 0 <= end < start <= 1.
    """
    return Absorbing(
        num_values=num_values, schedule=schedule, start=start, end=end, **_steps(schedule, start, end, num_steps)
    )


def uniform(
    num_values: int, schedule: str = "linear", start: float = 1.0, end: float = 0.0, num_steps: int = 0
) -> Uniform:
    """Uniform diffusion of tokens in 0..num_values - 1; arguments and errors as those of `absorbing`."""
    return Uniform(
        num_values=num_values, schedule=schedule, start=start, end=end, **_steps(schedule, start, end, num_steps)
    )


def _steps(schedule: str, start: float, end: float, num_steps: int) -> dict[str, int | None]:
    check_choice("schedule", schedule, SCHEDULES)
    check(0 <= end < start <= 1, "(start, end)", (start, end), "0 <= end < start <= 1, the probability of a kept token")
    check(num_steps >= 0, "num_steps", num_steps, "at least 0, for continuous time")
    return {"num_steps": num_steps or None}
