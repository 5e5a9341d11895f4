"""DAPS: at each noise level a draw of x_0 under the measurement, which is noised again to the next level."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.guidance.methods import Method, solved
from diffusion_jax.guidance.operators import Mask, Operator
from diffusion_jax.processes.base import row_keys, row_normal, time_of_log_snr
from diffusion_jax.solvers.replacement import check_alone, check_memory
from diffusion_jax.types import Denoiser, Needs, Process, Solver, check

_NEXT, _PRIOR, _NOISE, _LANGEVIN = (2**31 - 3 - i for i in range(4))  # folded into the keys of a step
_POWER, _LEAST = 7, 0.01  # of the noise-to-signal ratios of the inner solver


def daps(steps: int = 5, variance: float = 0.0, langevin: int = 100, rate: float = 0.5) -> Method:
    """Decoupled annealing: x_s = alpha_s x_0 + sigma_s z with x_0 drawn from N(x_0; m, r^2 I) N(y; A x_0, q^2 I).

    m is where `steps` steps of the solver carry x_t, along the probability-flow ODE, at sigma / alpha^(1/7) evenly
    spaced; with one step it is D. r = sigma / alpha as in the paper, or with `variance` > 0 that of data
    N(m, `variance` I), r^2 = variance sigma^2 / (sigma^2 + alpha^2 variance): with one step exact for those. The draw
    is exact for a linear operator. For another one it takes `langevin` steps of
    x <- x + h grad log density + sqrt(2 h) z with h = `rate` / (1 / r^2 + 1 / q^2), for a derivative of A of norm 1 at
    most. arXiv:2407.01521, algorithm 1, which takes Langevin steps for every operator and does not use the true q.

    Raises ValueError for numbers out of range, and, with a solver that is no solver of the ODE or has memory.
    """
    check(steps >= 1, "steps", steps, "at least 1")
    check(variance >= 0, "variance", variance, "positive, or 0 for r = sigma / alpha")
    check(langevin >= 1, "langevin", langevin, "at least 1")
    check(0 < rate < 2, "rate", rate, "in (0, 2), where Langevin steps are stable")

    def around(solver: Solver, operator: Operator, y: Array, mask: Mask) -> Solver:
        def step(process: Process, D: Denoiser, keys: Key[Array, "batch"], x: Array, t: Array, s: Array, carry):
            ratio = process.sigma(t) / process.alpha(t)
            mean = _clean(solver, process, D, keys, x, t, ratio, steps)
            r_2 = variance * ratio**2 / (variance + ratio**2) if variance else ratio**2
            if operator.linear:
                x_0 = _drawn(operator, y, mask, keys, mean, r_2)
            else:
                x_0 = _walked(operator, y, mask, keys, mean, r_2, langevin, rate)
            x_s = process.alpha(s) * x_0 + process.sigma(s) * row_normal(row_keys(keys, _NEXT), x)
            return x_s.astype(x.dtype), carry

        return Solver(init=lambda x: (), step=step, needs=Needs(alpha=True, sigma=True) | solver.needs)

    return Method(around=around, differentiable=True, noisy_if_nonlinear=True, check_solver=_check_ode)


def _check_ode(solver: Solver) -> None:
    check_alone(solver)
    if solver.needs.falling_times:
        raise ValueError("the method needs a solver of the probability-flow ODE, such as ddim, heun or dpm_solver")
    check_memory(solver)


def _clean(
    solver: Solver, process: Process, D: Denoiser, keys: Array, x: Array, t: Array, ratio: Array, steps: int
) -> Float[Array, "batch *shape"]:
    """Where the solver carries x from t to t = 0, divided by alpha(0)."""
    share = jnp.arange(1, steps) / steps
    least = jnp.minimum(_LEAST, ratio / 2)
    ratios = ((1 - share) * ratio ** (1 / _POWER) + share * least ** (1 / _POWER)) ** _POWER
    times = jnp.concatenate([jnp.reshape(t, 1), time_of_log_snr(process, -2 * jnp.log(ratios)), jnp.zeros(1)])

    def body(x: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        return solver.step(process, D, keys, x, *pair, solver.init(x))[0].astype(x.dtype), None

    return jax.lax.scan(body, x, (times[:-1], times[1:]))[0] / process.alpha(times[-1])


def _drawn(operator: Operator, y: Array, mask: Mask, keys: Array, mean: Array, r_2: Array) -> Array:
    """A draw from N(x; mean, r^2 I) N(y; A x, q^2 I): one of x and its measurement, corrected by y (Matheron)."""
    x = mean + jnp.sqrt(r_2) * row_normal(row_keys(keys, _PRIOR), mean)
    seen = operator(x, mask) + operator.noise * row_normal(row_keys(keys, _NOISE), y)
    return x + r_2 * operator.transpose(solved(operator, mask, y - seen, r_2), mask)


def _walked(
    operator: Operator, y: Array, mask: Mask, keys: Array, mean: Array, r_2: Array, num: int, rate: float
) -> Array:
    """`num` Langevin steps from the mean on N(x; mean, r^2 I) N(y; A x, q^2 I)."""
    width = rate / (1 / r_2 + 1 / operator.noise**2)

    def body(x: Array, i: Array) -> tuple[Array, None]:
        seen, pull = jax.vjp(lambda x: operator(x, mask), x)
        slope = (mean - x) / r_2 + pull((y - seen) / operator.noise**2)[0]
        noise = row_normal(row_keys(row_keys(keys, _LANGEVIN), i), x)
        return x + width * slope + jnp.sqrt(2 * width) * noise, None

    return jax.lax.scan(body, mean, jnp.arange(num))[0]
