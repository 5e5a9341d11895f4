"""At which times a loss is evaluated: functions times(process, key, n) -> (t [n], weight [n]).

The weight is 1 / density where t is drawn from another density than the one the loss is stated for, else 1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.processes.base import time_of_log_snr
from diffusion_jax.types import Process
from diffusion_jax.weightings import Weighting, snr

Times = Callable[[Process, Key[Array, ""], int], tuple[Float[Array, "n"], Float[Array, "n"]]]


def uniform(t_min: float = 1e-5, t_max: float = 1.0) -> Times:
    """Independent uniform times in [t_min, t_max]."""

    def draw(process: Process, key: Key[Array, ""], n: int) -> tuple[Array, Array]:
        return jax.random.uniform(key, (n,), minval=t_min, maxval=t_max), jnp.ones(n)

    return draw


def low_discrepancy(t_min: float = 1e-5, t_max: float = 1.0) -> Times:
    """One uniform offset and n evenly spaced times: each marginally uniform (arXiv:2107.00630, appendix I.1)."""

    def draw(process: Process, key: Key[Array, ""], n: int) -> tuple[Array, Array]:
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


def log_normal(mean: float = -1.2, std: float = 1.2) -> Times:
    """log(sigma / alpha) ~ N(mean, std^2), limited to the process's range (arXiv:2206.00364, table 1)."""

    def draw(process: Process, key: Key[Array, ""], n: int) -> tuple[Array, Array]:
        log_sigma = mean + std * jax.random.normal(key, (n,))
        return time_of_log_snr(process, -2 * log_sigma), jnp.ones(n)

    return draw


def logit_normal(mean: float = 0.0, std: float = 1.0) -> Times:
    """logit(t) ~ N(mean, std^2) (arXiv:2403.03206, eq. 19)."""

    def draw(process: Process, key: Key[Array, ""], n: int) -> tuple[Array, Array]:
        return jax.nn.sigmoid(mean + std * jax.random.normal(key, (n,))), jnp.ones(n)

    return draw


def importance(weighting: Weighting, t_min: float = 1e-5, t_max: float = 1.0, num_points: int = 4096) -> Times:
    """Density proportional to weighting / SNR, so that a loss under `weighting` becomes a constant times eps error.

    With the likelihood weighting this is g^2 / sigma^2 (arXiv:2101.09258, section 3.3). Inverse-transform sampling
    from a table with `num_points` entries, spaced evenly in log t where the density is steep.
    """

    def draw(process: Process, key: Key[Array, ""], n: int) -> tuple[Array, Array]:
        grid = jnp.geomspace(t_min, t_max, num_points)
        density = weighting(process, grid) / snr(process, grid)
        mass = jnp.concatenate([jnp.zeros(1), jnp.cumsum((density[1:] + density[:-1]) / 2 * jnp.diff(grid))])
        t = jnp.interp(jax.random.uniform(key, (n,)) * mass[-1], mass, grid)
        return t, mass[-1] / (t_max - t_min) / (weighting(process, t) / snr(process, t))

    return draw
