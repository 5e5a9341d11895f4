"""At which times a solver steps: functions grid(process, num_steps) -> decreasing times [num_steps + 1].

Every grid raises ValueError for fewer than one step.
"""

import functools
import itertools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.processes.base import log_snr, time_of_log_snr
from diffusion_jax.types import Process, check, needing

Grid = Callable[[Process, int], Float[Array, "num_times"]]


def _stepping(grid: Grid) -> Grid:
    """`grid` that raises ValueError for fewer than one step."""

    @functools.wraps(grid)
    def checked(process: Process, num_steps: int) -> Array:
        check(num_steps >= 1, "num_steps", num_steps, "at least 1")
        return grid(process, num_steps)

    return checked


def uniform(t_min: float = 1e-3, t_max: float = 1.0, denoising: bool = False) -> Grid:
    """Evenly spaced times.

    With `denoising` the denoising that follows at t_min is the last of the `num_steps` steps, as score SDEs
    (arXiv:2011.13456) and EDM count: the grid has one time less.
    """
    return _stepping(lambda process, num_steps: jnp.linspace(t_max, t_min, _before(num_steps, denoising) + 1))


def quadratic(t_min: float = 1e-3, t_max: float = 1.0) -> Grid:
    """Evenly spaced in sqrt(t), dense near the data (arXiv:2010.02502, appendix D.2)."""
    return _stepping(lambda process, num_steps: jnp.linspace(t_max**0.5, t_min**0.5, num_steps + 1) ** 2)


def cosine(t_min: float = 0.0, t_max: float = 1.0) -> Grid:
    """t = cos(pi/2 u) of evenly spaced u, dense at the noise: the grid of MD4 (arXiv:2406.04329) for t_max = 1."""

    def grid(process: Process, num_steps: int) -> Array:
        return t_min + (t_max - t_min) * _with_ends(
            1.0, jnp.cos(jnp.pi / 2 * jnp.linspace(0, 1, num_steps + 1)[1:-1]), 0.0
        )

    return _stepping(grid)


def karras(rho: float = 7.0, t_min: float = 0.0, t_max: float = 1.0, denoising: bool = False) -> Grid:
    """(sigma / alpha)^(1 / rho) evenly spaced between the times' noise levels (arXiv:2206.00364, eq. 5).

    sigma must be positive at t_min and alpha at t_max. `denoising` as in `uniform`: `num_steps` is the paper's N then.
    Raises ValueError unless rho is positive.
    """
    check(rho > 0, "rho", rho, "positive")

    @needing(alpha=True, sigma=True)
    def grid(process: Process, num_steps: int) -> Array:
        high, low = (jnp.exp(-log_snr(process, jnp.float32(t)) / 2) ** (1 / rho) for t in (t_max, t_min))
        sigma = jnp.linspace(high, low, _before(num_steps, denoising) + 1)[1:-1] ** rho
        return _with_ends(t_max, time_of_log_snr(process, -2 * jnp.log(sigma)), t_min)

    return _stepping(grid)


def uniform_log_snr(t_min: float = 1e-3, t_max: float = 1.0) -> Grid:
    """log SNR evenly spaced (arXiv:2206.00927, section 3.3). sigma(t_min) and alpha(t_max) must be positive."""

    @needing(alpha=True, sigma=True)
    def grid(process: Process, num_steps: int) -> Array:
        low, high = log_snr(process, jnp.float32(t_max)), log_snr(process, jnp.float32(t_min))
        inner = time_of_log_snr(process, jnp.linspace(low, high, num_steps + 1)[1:-1])
        return _with_ends(t_max, inner, t_min)

    return _stepping(grid)


def discrete(spacing: str = "leading", offset: int = 0, end: int = 0) -> Grid:
    """A subsequence of the T grid points of a discrete process, then t = `end` / T, the data for 0.

    With k = 0..T-1 the training timestep and t = (k + 1) / T: `leading` takes k = 0, T // n, 2 (T // n), ...;
    `linspace` rounds n evenly spaced numbers from 0 to T - 1; `trailing` goes down from T - 1 in steps of T / n.
    arXiv:2305.08891, table 2. All three are the full grid when n = T. `offset` is added to every k of `leading`.
    Stable Diffusion is sampled with offset = end = 1 (in diffusers steps_offset=1 and set_alpha_to_one=False). Raises
    ValueError if n > T, for times beyond T, or an end that is not below them.
    """
    if spacing not in ("leading", "linspace", "trailing"):
        raise ValueError(f"spacing is {spacing!r}; choose leading, linspace or trailing")
    if offset < 0 or (offset and spacing != "leading"):
        raise ValueError(f"offset is {offset}; it must be at least 0, and 0 for the spacing {spacing!r}")

    @needing(num_steps=True)
    def grid(process: Process, num_steps: int) -> Array:
        total = process.num_steps
        if not 1 <= num_steps <= total:
            raise ValueError(f"steps is {num_steps}; a process of {total} steps allows 1 to {total}")
        if spacing == "leading" and num_steps == 1 < total:
            raise ValueError(f"steps is 1: the spacing 'leading' would start at t = 1 / {total}; choose 'trailing'")
        if spacing == "leading":
            timesteps = np.arange(num_steps)[::-1] * (total // num_steps) + offset
        elif spacing == "linspace":
            timesteps = np.linspace(total - 1, 0, num_steps).round()
        else:
            timesteps = np.round(total - np.arange(num_steps) * (total / num_steps)) - 1
        if timesteps[0] >= total or not 0 <= end <= timesteps[-1]:
            raise ValueError(
                f"steps is {num_steps}: the timesteps {timesteps[-1]:g} to {timesteps[0]:g}, with offset {offset}, "
                f"must be below {total}, and end, {end}, at most the first of them"
            )
        return jnp.asarray(np.append((timesteps + 1) / total, end / total), jnp.float32)

    return grid


def noise_levels(values: tuple[float, ...] = (80.0,), t_min: float = 0.0) -> Grid:
    """The times at which sigma / alpha has the `values`, one for each step, and t_min, where the last step ends.

    How few-step models are sampled: consistency models in two steps at (80, 0.821), for example. alpha must be positive
    at those times. Raises ValueError for values that are not positive and decreasing, or if there are not as many as
    steps; a value above that of t = 1 is taken there, as rounding may have it.
    """
    fall = all(a > b for a, b in itertools.pairwise((*values, 0)))
    check(bool(values) and fall, "values", values, "positive and decreasing, one for each step")

    def grid(process: Process, num_steps: int) -> Array:
        check(num_steps == len(values), "num_steps", num_steps, f"{len(values)}, one for each of the values {values}")
        return jnp.append(time_of_log_snr(process, -2 * jnp.log(jnp.float32(values))), jnp.float32(t_min))

    return _stepping(grid)


def latent_consistency(original_steps: int = 50) -> Grid:
    """A part of the times i / M, i = M..1, with M = `original_steps`, those at which a teacher was distilled; then 0.

    Of n steps the i-th starts at the time of index M - floor(i M / n), as in the authors' code: four of 50 are the
    timesteps 999, 759, 499 and 259 of 1000 (arXiv:2310.04378, section 4.3). Raises ValueError for more steps than M.
    """
    check(original_steps >= 1, "original_steps", original_steps, "at least 1")

    def grid(process: Process, num_steps: int) -> Array:
        check(num_steps <= original_steps, "num_steps", num_steps, f"at most original_steps, {original_steps}")
        indices = original_steps - np.arange(num_steps) * original_steps // num_steps
        return jnp.asarray(np.append(indices / original_steps, 0), jnp.float32)

    return _stepping(grid)


def betas(values: tuple[float, ...] = (1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5)) -> Grid:
    """The times at which alpha^2 = prod_{j <= i} (1 - beta_j), i = S..1, of a noise schedule for S steps, and t = 0.

    How vocoders are sampled in few steps by a network that was trained with many: the default is DiffWave's fast
    schedule (arXiv:2009.09761, appendix B). Between those of training, times and with them the label of the network are
    fractional. Noise that the process does not reach is that of t = 1. Raises ValueError for values outside of
    (0, 1), or if there are not as many as steps.
    """
    check(bool(values) and all(0 < value < 1 for value in values), "values", values, "in (0, 1), one for each step")
    alpha_squared = np.cumprod(1 - np.asarray(values, np.float64))[::-1]

    def grid(process: Process, num_steps: int) -> Array:
        check(num_steps == len(values), "num_steps", num_steps, f"{len(values)}, one for each of the values {values}")
        target = jnp.asarray(np.log(alpha_squared / (1 - alpha_squared)), jnp.float32)
        return jnp.append(time_of_log_snr(process, target), jnp.float32(0))

    return _stepping(grid)


def levels() -> Grid:
    """t = 1, then all `num_steps` noise levels from 1 to 0, evenly spaced: what annealed Langevin visits."""
    return _stepping(lambda process, num_steps: jnp.append(1.0, jnp.linspace(1.0, 0.0, num_steps)))


def jumps(grid: Grid, length: int, repeats: int) -> Grid:
    """`grid` with time travel: decreasing times with jumps of `length` steps back to more noise, see `time_travel`.

    The step of a jump is for a solver such as `solvers.travelling` makes. arXiv:2201.09865, section 4.2.
    """
    return functools.wraps(grid)(lambda process, num_steps: time_travel(grid(process, num_steps), length, repeats))


def time_travel(times: Float[Array, "num_times"], length: int, repeats: int) -> Float[Array, "num_times2"]:
    """The times of RePaint: every stretch of `length` steps is taken `repeats` times, with jumps back in between.

    Counted from the end, where times[-1] is level 0, sampling jumps `repeats` - 1 times from each of the levels
    1, 1 + length, 1 + 2 length, ... to the level `length` above, in one step, as far as the times reach. With
    `repeats` = 1 the times are unchanged. 250 steps, length 10 and 10 repeats are 2410 decreasing steps, which evaluate
    D, and 216 jumps. The authors' code takes the `length` steps of a jump one by one, which has the same law.
    arXiv:2201.09865, section 4.2 and appendix B.

    Raises ValueError unless both are at least 1, and with repeats for a length that is not less than the steps.
    """
    check(length >= 1, "length", length, "at least 1")
    check(repeats >= 1, "repeats", repeats, "at least 1")
    last = len(times) - 1
    if repeats > 1 and length >= last:
        raise ValueError(f"length is {length}; it must be less than the {last} steps, to jump back by so many")
    left = {level: repeats - 1 for level in range(1, last - length + 1, length)}
    levels = [last]
    while levels[-1]:
        levels.append(levels[-1] - 1)
        if left.get(levels[-1]):
            left[levels[-1]] -= 1
            levels.append(levels[-1] + length)
    return times[last - np.array(levels)]


def _before(num_steps: int, denoising: bool) -> int:
    """The number of steps before the denoising, if it is one of `num_steps`."""
    if denoising and num_steps < 2:
        raise ValueError(f"steps is {num_steps}; it must be at least 2 if the denoising is one of them")
    return num_steps - denoising


def _with_ends(t_max: float, inner: Array, t_min: float) -> Array:
    return jnp.concatenate([jnp.full(1, t_max), inner, jnp.full(1, t_min)])
