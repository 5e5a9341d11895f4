"""Which two times a consistency loss compares: schedules of the times (t, s), s < t, which close up during training.

A schedule is `Schedule.interval(process, t, train) -> (t, s)`, of drawn times t [n], and `points(train)`, the number of
points of its grid. `train` is the progress of training, None after it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.processes.base import log_snr, time_of_log_snr
from diffusion_jax.types import Process, Train, check, check_choice

Time = Float[Array, "n"]
Points = Callable[[Train | None], Array]  # the number N of grid points, a float


class Schedule(NamedTuple):
    """Intervals of time: `interval(process, t, train) -> (t, s)`, and `points(train)`, None without a grid.

    `start(process, t)` is where the segment of t begins, for schedules with several segments.
    """

    interval: Callable[[Process, Time, Train | None], tuple[Time, Time]]
    points: Points | None = None
    start: Callable[[Process, Time], Time] | None = None


def _karras(rho: float) -> tuple[Callable, Callable]:
    """Position of a time along the grid, and its inverse: (sigma / alpha)^(1 / rho)."""

    def position(process: Process, t: Array) -> Array:
        return jnp.exp(-log_snr(process, t) / (2 * rho))

    def time(process: Process, u: Array) -> Array:
        return time_of_log_snr(process, -2 * rho * jnp.log(u))

    return position, time


def on_grid(
    points: Points, spacing: str = "karras", rho: float = 7.0, t_min: float = 0.0, skip: int = 1, segments: int = 1
) -> Schedule:
    """The interval between neighbours of a grid of `points` times from t_min to 1 in which a drawn time falls.

    With `skip` it ends as many points further down, but not below the first point of the segment of t: there are
    `segments` of equally many intervals. `spacing` "karras" has (sigma / alpha)^(1 / rho) evenly spaced
    (arXiv:2206.00364, eq. 5), which needs sigma > 0 at t_min and alpha > 0 at t = 1. "uniform" has the times
    i / (N - 1) themselves, the first raised to t_min.
    """
    check(rho > 0, "rho", rho, "positive")
    check_choice("spacing", spacing, ("karras", "uniform"))
    check(0 <= t_min < 1, "t_min", t_min, "in [0, 1)")

    def interval(process: Process, t: Time, train: Train | None) -> tuple[Time, Time]:
        count = points(train) - 1
        index = interval_of(process, t, count)
        lower = jnp.maximum(index + 1 - skip, first(index, count))
        return at(process, index + 1, count), at(process, lower, count)

    def interval_of(process: Process, t: Time, count: Array) -> Array:
        """The index of the lower end of the interval of t."""
        if spacing == "uniform":
            return jnp.clip(jnp.ceil(t * count), 1, count) - 1
        low, high, position, _ = ends(process)
        return jnp.clip(jnp.floor((position(process, t) - low) / (high - low) * count), 0, count - 1)

    def first(index: Array, count: Array) -> Array:
        """The index of the point where the segment of an interval begins."""
        length = count / segments
        return jnp.floor(index / length) * length

    def at(process: Process, index: Array, count: Array) -> Time:
        """The time of a point of the grid; those of its ends are not rounded."""
        if spacing == "uniform":
            return jnp.maximum(index / count, t_min)
        low, high, _, time = ends(process)
        inner = time(process, low + index / count * (high - low))
        return jnp.where(index == count, 1.0, jnp.where(index == 0, jnp.float32(t_min), inner))

    def ends(process: Process) -> tuple[Array, Array, Callable, Callable]:
        position, time = _karras(rho)
        low, high = (position(process, jnp.float32(end)) for end in (t_min, 1))
        return low, high, position, time

    def start(process: Process, t: Time) -> Time:
        """Of the segment of t, where t is a point of the grid and belongs to the segment below it."""
        count = points(None) - 1
        if spacing == "uniform":
            index = jnp.round(t * count)
        else:
            low, high, position, _ = ends(process)
            index = jnp.round((position(process, t) - low) / (high - low) * count)
        return at(process, first(jnp.clip(index - 1, 0, count - 1), count), count)

    return Schedule(interval, points, start if segments > 1 else None)


def fixed(
    points: int = 18, spacing: str = "karras", rho: float = 7.0, t_min: float = 0.0, skip: int = 1, segments: int = 1
) -> Schedule:
    """A grid of always N = `points` points, as in consistency distillation (arXiv:2303.01469, algorithm 2).

    `spacing`, `rho`, `t_min`, `skip` and `segments` as in `on_grid`. The `skip` of latent consistency distillation is
    20 of 1000 intervals (arXiv:2310.04378, section 4.3). Raises ValueError for fewer than 2 points, a skip that is not
    less than them, or segments that are not of the same number of intervals.
    """
    check(points >= 2, "points", points, "at least 2")
    check(1 <= skip < points, "skip", skip, f"from 1 to {points - 1}")
    allowed = segments >= 1 and (points - 1) % segments == 0
    check(allowed, "segments", segments, f"at least 1 and a divisor of the {points - 1} intervals")
    return on_grid(lambda train: jnp.float32(points), spacing, rho, t_min, skip, segments)


def scales(s0: int = 2, s1: int = 150, rho: float = 7.0, t_min: float = 0.0) -> Schedule:
    """N(k) = ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 grid points at step k of K: consistency training.

    It grows from s0 to s1 + 1 (arXiv:2303.01469, appendix C). Raises ValueError unless 2 <= s0 <= s1.
    """
    check(2 <= s0 <= s1, "(s0, s1)", (s0, s1), "2 <= s0 <= s1")

    def points(train: Train | None) -> Array:
        done = jnp.float32(1) if train is None else train.step / train.num_steps
        return jnp.ceil(jnp.sqrt(done * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1

    return on_grid(points, "karras", rho, t_min)


def doubling(s0: int = 10, s1: int = 1280, rho: float = 7.0, t_min: float = 0.0) -> Schedule:
    """N(k) = min(s0 2^floor(k / K'), s1) + 1 grid points with K' = floor(K / (log2 floor(s1 / s0) + 1)).

    Improved consistency training (arXiv:2310.14189, section 3.4). Raises ValueError unless 1 <= s0 <= s1.
    """
    check(1 <= s0 <= s1, "(s0, s1)", (s0, s1), "1 <= s0 <= s1")
    stages = (s1 // s0).bit_length()  # floor(log2) + 1

    def points(train: Train | None) -> Array:
        if train is None:
            return jnp.float32(s1 + 1)
        length = max(int(train.num_steps / (math.log2(s1 // s0) + 1)), 1)
        stage = jnp.minimum(train.step // length, stages)
        return jnp.minimum(jnp.left_shift(s0, stage), s1) + 1.0

    return on_grid(points, "karras", rho, t_min)


def ratio(q: float = 2.0, k: float = 8.0, b: float = 1.0, stages: int = 8, t_min: float = 0.0) -> Schedule:
    """s / t = max(0, 1 - (1 + k sigmoid(-b t)) / q^(a + 1)) in stage a = 0, 1, ..., with sigma / alpha for s and t.

    Easy consistency tuning (arXiv:2406.14548, section 3.3): in the first stage s is t_min for most t, which is
    denoising, and s / t tends to 1. Training has `stages` stages of the same length. Raises ValueError for q <= 1, a
    negative k or b, or no stages.
    """
    check(q > 1, "q", q, "greater than 1")
    check(k >= 0 and b >= 0, "(k, b)", (k, b), "at least 0")
    check(stages >= 1, "stages", stages, "at least 1")
    check(0 <= t_min < 1, "t_min", t_min, "in [0, 1)")

    def interval(process: Process, t: Time, train: Train | None) -> tuple[Time, Time]:
        stage = stages - 1 if train is None else jnp.minimum(train.step // -(-train.num_steps // stages), stages - 1)
        sigma = jnp.exp(-log_snr(process, t) / 2)
        part = jnp.maximum(1 - (1 + k * jax.nn.sigmoid(-b * sigma)) / jnp.float32(q) ** (stage + 1), 0)
        s = time_of_log_snr(process, -2 * jnp.log(part * sigma))
        return t, jnp.clip(s, t_min, t)

    return Schedule(interval)


def ema_rate(mu: float = 0.95) -> Callable[[Train], Array]:
    """A target network that follows the student by an EMA of a fixed rate. Raises ValueError unless mu is in [0, 1)."""
    check(0 <= mu < 1, "mu", mu, "in [0, 1)")
    return lambda train: jnp.float32(mu)


def scheduled_rate(
    mu0: float = 0.9, s0: int = 2, variant: str = "authors", *, points: Points | None = None
) -> Callable[[Train], Array]:
    """mu(k) = exp(s0 log mu0 / N(k)), the rate of the target's EMA for N(k) grid points (arXiv:2303.01469, appendix C).

    The `variant` "authors" is their code, which divides by N(k) - 1: at k = 0 it is .81 where the "paper" has .9, for
    mu0 = .9 and s0 = 2. Raises ValueError for a schedule without a grid, or values out of range.
    """
    check(0 < mu0 < 1, "mu0", mu0, "in (0, 1)")
    check_choice("variant", variant, ("authors", "paper"))
    check(points is not None, "schedule", points, "one with a grid, whose number of points the rate depends on")
    fewer = 1 if variant == "authors" else 0
    return lambda train: jnp.exp(s0 * jnp.log(jnp.float32(mu0)) / (points(train) - fewer))
