"""Losses of flow maps: MeanFlow (arXiv:2505.13447) and shortcut models (arXiv:2410.12557), on straight paths.

The path is x_t = (1 - t) x_0 + t eps with the velocity v = eps - x_0, and u(x, t, s) is the mean velocity of the flow
from t to s <= t. Both losses regress u on v where s = t, which is flow matching (arXiv:2210.02747). Where s < t they
regress it on a target that the network computes itself, without a teacher:

| loss | what the target uses | target |
|---|---|---|
| MeanFlow | the derivative along the path, du/dt = v du/dx + du/dt | v - (t - s) du/dt |
| shortcut | two steps of half the length, by an average of the network | the mean of their velocities |
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from diffusion_jax.losses.denoising import row_mean
from diffusion_jax.losses.times import Times
from diffusion_jax.processes.base import bcast
from diffusion_jax.types import Cond, Process, check

# u(x, t, s, cond) -> the mean velocity [batch, *shape], for t and s of [batch]
MeanVelocity = Callable[[Array, Array, Array, Cond], Array]


class Rows(NamedTuple):
    """Examples of a batch and the conditions that the network reads with them."""

    x_0: Float[Array, "batch *shape"]
    cond: Cond = None  # with the dropout of conditions
    full: Cond = None  # without it
    null: Cond = None  # null conditions in every row
    dropped: Bool[Array, "batch"] | None = None  # rows whose conditions were replaced by the null condition


class Objective(NamedTuple):
    """A loss of flow maps.

    `loss(u, target, times, process, key, rows) -> ([batch], metrics)`, with the mean velocity `u` that is trained and
    that of the average of its parameters, `target`. `least_gap` is the smallest gap t - s that the network is
    evaluated at. `averaged` says whether `target` is used.
    """

    loss: Callable[..., tuple[Float[Array, "batch"], dict[str, Array]]]
    least_gap: float = 0.0
    averaged: bool = False


def mean_flow_target(
    u: Callable[[Array, Array], Array],
    x_t: Float[Array, "batch *shape"],
    t: Float[Array, "batch"],
    s: Float[Array, "batch"],
    v: Float[Array, "batch *shape"],
) -> tuple[Float[Array, "batch *shape"], Float[Array, "batch *shape"]]:
    """(u, target) of the MeanFlow identity u = v - (t - s) d/dt u, without a gradient through the target.

    `u(x, t)` is the mean velocity to the fixed time s. The total derivative along the path is one forward-mode product
    with the tangent (v, 1). v may be the velocity eps - x_0 of a pair instead of its mean given x_t: the target is
    linear in it. At s = t the target is v. arXiv:2505.13447, eq. 6 and 9.
    """
    value, derivative = jax.jvp(u, (x_t, t), (v, jnp.ones_like(t)))
    return value, jax.lax.stop_gradient(v - bcast(t - s, v) * derivative)


def shortcut_target(
    u: MeanVelocity,
    x_t: Float[Array, "batch *shape"],
    t: Float[Array, "batch"],
    s: Float[Array, "batch"],
    cond: Cond = None,
    clip: float = math.inf,
) -> Float[Array, "batch *shape"]:
    """The mean velocity of two steps of half the length, from t over (t + s) / 2 to s, without a gradient.

    The state between the steps and the result are clipped to [-clip, clip]. arXiv:2410.12557, eq. 4.
    """
    middle = (t + s) / 2
    first = u(x_t, t, middle, cond)
    x = jnp.clip(x_t - bcast(t - middle, x_t) * first, -clip, clip)
    return jax.lax.stop_gradient(jnp.clip((first + u(x, middle, s, cond)) / 2, -clip, clip))


def mean_flow(
    ratio: float = 0.25,
    power: float = 1.0,
    epsilon: float = 0.01,
    omega: float = 1.0,
    kappa: float = 0.0,
    t_min: float = 0.0,
    t_max: float = 1.0,
) -> Objective:
    """MeanFlow (arXiv:2505.13447): u is regressed on v - (t - s) du/dt, the target of `mean_flow_target`.

    (t, s) are two draws of the training times in descending order, and s = t except in a fraction `ratio` of the rows,
    at random. With E the mean square of the error and d dimensions, the loss is E / (E + epsilon / d)^power without a
    gradient through the denominator; for power 1 it is the paper's S / (S + epsilon) of the sum S over dimensions. The
    metric "velocity_error" is the mean of E over rows with s = t.

    With omega != 1 or kappa > 0 the velocity v is guided, so that samples are guided in one evaluation of the network:
    v <- omega v + (1 - omega - kappa) u(x, t, t, null) + kappa u(x, t, t, cond), for t in [t_min, t_max] and rows whose
    condition was not dropped. The scale of classifier-free guidance is omega / (1 - kappa). Appendix B.1 there.

    Raises ValueError for a number out of range.
    """
    check(0 <= ratio <= 1, "ratio", ratio, "in [0, 1]")
    check(power >= 0, "power", power, "at least 0")
    check(epsilon > 0, "epsilon", epsilon, "positive")
    check(omega > 0, "omega", omega, "positive")
    check(0 <= kappa < 1, "kappa", kappa, "in [0, 1)")
    check(0 <= t_min <= t_max <= 1, "(t_min, t_max)", (t_min, t_max), "0 <= t_min <= t_max <= 1")

    def guided(u: MeanVelocity, x_t: Array, t: Array, v: Array, rows: Rows) -> Array:
        if (omega == 1 and kappa == 0) or rows.full is None:
            return v
        free = u(x_t, t, t, rows.null)
        towards = kappa * (u(x_t, t, t, rows.full) - free) if kappa else 0
        steered = omega * v + (1 - omega) * free + towards
        applies = (t_min <= t) & (t <= t_max)
        applies = applies if rows.dropped is None else applies & ~rows.dropped
        return jax.lax.stop_gradient(jnp.where(bcast(applies, v), steered, v))

    def loss(
        u: MeanVelocity, target: MeanVelocity, times: Times, process: Process, key: Key[Array, ""], rows: Rows
    ) -> tuple[Array, dict[str, Array]]:
        time_key, noise_key = jax.random.split(key)
        first, second = (times(process, k, len(rows.x_0))[0] for k in jax.random.split(time_key))
        moved = jax.random.bernoulli(jax.random.fold_in(time_key, 2), ratio, first.shape)
        t, s = jnp.maximum(first, second), jnp.where(moved, jnp.minimum(first, second), jnp.maximum(first, second))
        x_t, v = straight(noise_key, rows.x_0, t)
        steered = guided(u, x_t, t, v, rows)
        value, goal = mean_flow_target(lambda x, t: u(x, t, s, rows.cond), x_t, t, s, steered)
        error = row_mean(jnp.square(value - goal))
        weight = jax.lax.stop_gradient(error + epsilon / rows.x_0[0].size) ** -power
        return weight * error, {"velocity_error": _mean_over(error, ~moved)}

    return Objective(loss)


def shortcut(num_steps: int = 128, every: int = 8, clip: float = 4.0) -> Objective:
    """Shortcut models (arXiv:2410.12557): u over a gap is regressed on two steps of half of it, see `shortcut_target`.

    One row in `every` is such a row, with a gap of 1, 1/2, 1/4, ... or 2 / num_steps and t on the grid of this gap; the
    target is that of the average of the parameters. The others are flow matching at the training times, where the
    network is evaluated at the gap 1 / num_steps. Metrics are "velocity_error" and "shortcut_error", the mean squares
    of both.

    Raises ValueError unless num_steps is a power of 2, `every` at least 2, and clip positive.
    """
    levels = num_steps.bit_length() - 1
    check(num_steps >= 2 and num_steps == 1 << levels, "num_steps", num_steps, "a power of 2, at least 2")
    check(every >= 2, "every", every, "at least 2")
    check(clip > 0, "clip", clip, "positive")

    def loss(
        u: MeanVelocity, target: MeanVelocity, times: Times, process: Process, key: Key[Array, ""], rows: Rows
    ) -> tuple[Array, dict[str, Array]]:
        time_key, noise_key = jax.random.split(key)
        num = len(rows.x_0)
        # Every so many rows, so that devices that share a batch have the same work.
        chosen = slice(None, None, every)
        t, _ = times(process, time_key, num)
        level_key, place_key = jax.random.split(jax.random.fold_in(time_key, 2))
        level = jax.random.randint(level_key, t[chosen].shape, 0, levels)
        gap = 2.0**-level
        place = jax.random.uniform(place_key, gap.shape)
        t = t.at[chosen].set(gap * (1 + jnp.floor(place / gap)))
        s = t.at[chosen].add(-gap)
        x_t, v = straight(noise_key, rows.x_0, t)
        cond = jax.tree.map(lambda c: c[chosen], rows.full)
        jumps = shortcut_target(target, x_t[chosen], t[chosen], s[chosen], cond, clip)
        # Conditions of these rows are kept: their target has the condition as well.
        cond = jax.tree.map(lambda dropped, full: dropped.at[chosen].set(full[chosen]), rows.cond, rows.full)
        error = row_mean(jnp.square(u(x_t, t, s, cond) - v.at[chosen].set(jumps)))
        moved = jnp.zeros(num, bool).at[chosen].set(True)
        return error, {"velocity_error": _mean_over(error, ~moved), "shortcut_error": _mean_over(error, moved)}

    return Objective(loss, least_gap=1 / num_steps, averaged=True)


def straight(
    key: Key[Array, ""], x_0: Float[Array, "batch *shape"], t: Float[Array, "batch"]
) -> tuple[Float[Array, "batch *shape"], Float[Array, "batch *shape"]]:
    """(x_t, v) of straight paths: x_t = (1 - t) x_0 + t eps and v = eps - x_0."""
    eps = jax.random.normal(key, x_0.shape, x_0.dtype)
    return bcast(1 - t, x_0) * x_0 + bcast(t, x_0) * eps, eps - x_0


def _mean_over(error: Float[Array, "batch"], rows: Bool[Array, "batch"]) -> Float[Array, ""]:
    """The mean over some rows; 0 if there are none."""
    return jnp.sum(jnp.where(rows, error, 0)) / jnp.maximum(jnp.sum(rows), 1)
