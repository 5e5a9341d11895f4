"""At which times a loss is evaluated: functions times(process, key, n) -> (t [n], weight [n]).

The weight is 1 / density where t is drawn from another density than the one the loss is stated for, else 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.losses.weightings import Weighting, snr
from diffusion_jax.processes.base import log_snr, time_of_log_snr
from diffusion_jax.types import Needs, Process, check, needing

Times = Callable[[Process, Key[Array, ""], int], tuple[Float[Array, "n"], Float[Array, "n"]]]


def uniform(t_min: float = 1e-5, t_max: float = 1.0) -> Times:
    """Independent uniform times in [t_min, t_max]. Raises ValueError unless t_min <= t_max."""
    _check_interval(t_min, t_max)

    def draw(process: object, key: Key[Array, ""], n: int) -> tuple[Array, Array]:
        return jax.random.uniform(key, (n,), minval=t_min, maxval=t_max), jnp.ones(n)

    return draw


def low_discrepancy(t_min: float = 1e-5, t_max: float = 1.0) -> Times:
    """One uniform offset and n evenly spaced times: each marginally uniform (arXiv:2107.00630, appendix I.1).

    Raises ValueError unless t_min <= t_max.
    """
    _check_interval(t_min, t_max)

    def draw(process: object, key: Key[Array, ""], n: int) -> tuple[Array, Array]:
        u = (jax.random.uniform(key) + jnp.arange(n) / n) % 1
        return t_min + (t_max - t_min) * u, jnp.ones(n)

    return draw


def discrete(num_steps: int) -> Times:
    """Uniform over the grid points i / T, i = 1..T, of a discrete process with T = `num_steps`."""

    def draw(process: Process, key: Key[Array, ""], n: int) -> tuple[Array, Array]:
        return jax.random.randint(key, (n,), 1, num_steps + 1) / num_steps, jnp.ones(n)

    return draw


def levels(num_levels: int) -> Times:
    """Uniform over the noise levels i / (L - 1), i = 0..L-1, of NCSN with L = `num_levels` >= 2."""
    if num_levels < 2:
        raise ValueError(f"num_levels is {num_levels}; it must be at least 2")

    def draw(process: Process, key: Key[Array, ""], n: int) -> tuple[Array, Array]:
        return jax.random.randint(key, (n,), 0, num_levels) / (num_levels - 1), jnp.ones(n)

    return draw


def log_normal(mean: float = -1.2, std: float = 1.2, truncated: bool = False) -> Times:
    """log(sigma / alpha) ~ N(mean, std^2), limited to the process's range (arXiv:2206.00364, table 1).

    What lies outside of the range is moved to its ends, or with `truncated` never drawn, as in improved consistency
    training (arXiv:2310.14189, section 3.5). Raises ValueError unless std is positive.
    """
    check(std > 0, "std", std, "positive")

    def draw(process: Process, key: Key[Array, ""], n: int) -> tuple[Array, Array]:
        if truncated:
            low, high = ((-log_snr(process, jnp.float32(end)) / 2 - mean) / std for end in (0, 1))
            normal = jax.random.truncated_normal(key, low, high, (n,))
        else:
            normal = jax.random.normal(key, (n,))
        log_sigma = mean + std * normal
        return time_of_log_snr(process, -2 * log_sigma), jnp.ones(n)

    return draw


def karras(rho: float = 7.0, t_min: float = 0.0, t_max: float = 1.0) -> Times:
    """(sigma / alpha)^(1 / rho) uniform between t_min and t_max: each interval of the grid `karras` is as likely.

    sigma must be positive at t_min and alpha at t_max. Raises ValueError unless rho is positive and t_min < t_max.
    """
    check(rho > 0, "rho", rho, "positive")
    check(t_min < t_max, "(t_min, t_max)", (t_min, t_max), "t_min < t_max")

    @needing(alpha=True, sigma=True)
    def draw(process: Process, key: Key[Array, ""], n: int) -> tuple[Array, Array]:
        low, high = (jnp.exp(-log_snr(process, jnp.float32(t)) / (2 * rho)) for t in (t_min, t_max))
        sigma = jax.random.uniform(key, (n,), minval=low, maxval=high) ** rho
        return time_of_log_snr(process, -2 * jnp.log(sigma)), jnp.ones(n)

    return draw


def logit_normal(mean: float = 0.0, std: float = 1.0) -> Times:
    """logit(t) ~ N(mean, std^2) (arXiv:2403.03206, eq. 19). Raises ValueError unless std is positive."""
    check(std > 0, "std", std, "positive")

    def draw(process: Process, key: Key[Array, ""], n: int) -> tuple[Array, Array]:
        return jax.nn.sigmoid(mean + std * jax.random.normal(key, (n,))), jnp.ones(n)

    return draw


def importance(weighting: Weighting, t_min: float = 1e-5, t_max: float = 1.0, num_points: int = 4096) -> Times:
    """Density proportional to weighting / SNR, so that a loss under `weighting` becomes a constant times eps error.

    With the likelihood weighting this is g^2 / sigma^2 (arXiv:2101.09258, section 3.3). Inverse-transform sampling
    from a table with `num_points` entries, spaced evenly in log t where the density is steep. Between two entries the
    density is constant, and times are weighted by this density, so that weighted means are unbiased for any table.

    Raises ValueError unless 0 < t_min < t_max and `num_points` is at least 2.
    """
    check(0 < t_min < t_max, "(t_min, t_max)", (t_min, t_max), "0 < t_min < t_max, as entries are even in log t")
    check(num_points >= 2, "num_points", num_points, "at least 2")

    def draw(process: Process, key: Key[Array, ""], n: int) -> tuple[Array, Array]:
        grid = jnp.geomspace(t_min, t_max, num_points)
        density = weighting(process, grid) / snr(process, grid)
        density = (density[1:] + density[:-1]) / 2
        mass = jnp.concatenate([jnp.zeros(1), jnp.cumsum(density * jnp.diff(grid))])
        u = jax.random.uniform(key, (n,)) * mass[-1]
        cell = jnp.clip(jnp.searchsorted(mass, u, side="right") - 1, 0, num_points - 2)
        return jnp.interp(u, mass, grid), mass[-1] / (t_max - t_min) / density[cell]

    return draw


def _check_interval(t_min: float, t_max: float) -> None:
    # jax.random.uniform returns t_min every time for the wrong order.
    check(t_min <= t_max, "(t_min, t_max)", (t_min, t_max), "t_min <= t_max")


class Resampler(NamedTuple):
    """Times whose density follows the losses seen so far, as three pure functions.

    `init() -> state`, `draw(state) -> Times`, and `update(state, t, loss) -> state` of [batch] times and losses.
    """

    init: Callable[[], Any]
    draw: Callable[[Any], Times]
    update: Callable[[Any, Array, Array], Any]
    needs: Needs = Needs(learned_variance=True)  # whose losses have the bound's terms by time


def loss_second_moment(num_steps: int, history: int = 10, uniform_share: float = 0.001) -> Resampler:
    """Grid points i / T with density proportional to sqrt(E[L_t^2]) over the last `history` losses at each.

    A share `uniform_share` of the density is uniform, and all of it until every grid point has its history. The
    gradient of a sum over t has the least variance under it. arXiv:2102.09672, section 3.3, eq. 18.
    """
    if history < 1 or not 0 <= uniform_share <= 1:
        raise ValueError(f"history is {history}, at least 1, and uniform_share is {uniform_share}, in [0, 1]")

    def init() -> dict[str, Array]:
        return {"losses": jnp.zeros((num_steps, history)), "count": jnp.zeros(num_steps, jnp.int32)}

    def draw(state: dict[str, Array]) -> Times:
        def times(process: Process, key: Key[Array, ""], n: int) -> tuple[Array, Array]:
            moment = jnp.sqrt(jnp.mean(state["losses"] ** 2, axis=1))
            warm = jnp.all(state["count"] >= history) & (jnp.sum(moment) > 0)
            p = jnp.where(warm, moment / jnp.where(warm, jnp.sum(moment), 1), 1 / num_steps)
            p = (1 - uniform_share) * p + uniform_share / num_steps
            index = jax.random.choice(key, num_steps, (n,), p=p)
            return (index + 1) / num_steps, 1 / (num_steps * p[index])

        return times

    def update(state: dict[str, Array], t: Array, loss: Array) -> dict[str, Array]:
        def push(state: dict[str, Array], seen: tuple[Array, Array]) -> tuple[dict[str, Array], None]:
            index, loss = seen
            count = state["count"][index]
            losses = state["losses"].at[index, count % history].set(loss)
            return {"losses": losses, "count": state["count"].at[index].add(1)}, None

        index = jnp.round(t * num_steps).astype(jnp.int32) - 1
        return jax.lax.scan(push, state, (index, loss.astype(jnp.float32)))[0]

    return Resampler(init, draw, update)
