"""Exponential integrators of reverse-time SDEs: the linear part and the noise are exact, D or eps is a polynomial.

The SDEs dx = (f x - (1 + eta^2) / 2 g^2 score) dt + eta g dw, run from t = 1 to 0, share the marginals of the process
for every eta: 0 is the probability-flow ODE, 1 the reverse-time SDE. With lambda = log(alpha / sigma),
h = lambda_s - lambda_t, theta in [0, 1] the fraction of h, m = 1 + eta^2 and z_1 ~ N(0, I), their solution is

    x_s = (sigma_s / sigma_t) e^(-eta^2 h) x_t + alpha_s m h int_0^1 e^(-m h (1 - theta)) D(theta) dtheta
          + sigma_s sqrt(1 - e^(-2 eta^2 h)) z_1,
    x_s = (alpha_s / alpha_t) x_t - sigma_s m h int_0^1 e^(h (1 - theta)) eps(theta) dtheta
          + eta sigma_s sqrt(e^(2 h) - 1) z_1

(arXiv:2309.05019, propositions 4.1 and 4.2; arXiv:2211.01095, section 5; arXiv:2305.14267, section 3). The solvers of
this module go from t to s < t only.
"""

import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.processes.base import row_keys, row_normal, time_of_log_snr
from diffusion_jax.solvers.base import stateless
from diffusion_jax.solvers.exponential import (
    History,
    Scalar,
    check_order,
    coefficients,
    half_log_snr,
    select,
)
from diffusion_jax.solvers.multistep import difference, predictions
from diffusion_jax.types import Denoiser, Needs, Process, Solver, check_choice


def sde_dpm_solver_pp(order: int = 2, solver_type: str = "midpoint", num_steps: int | None = None) -> Solver:
    """SDE-DPM-Solver++(1) and (2M): `exponential_sde` with eta = 1. Order 1 is `ancestral` sampling.

    One evaluation of D per step. The second-order term has the coefficient (1 - e^(-2h)) / 2 (`midpoint`) or its
    exact integral (`heun`). Raises ValueError for another order or solver_type. arXiv:2211.01095, section 5.
    """
    check_order("sde_dpm_solver_pp", order, 2, num_steps)
    check_choice("solver_type", solver_type, ("midpoint", "heun"))
    return _multistep(1.0, order, "bh2" if solver_type == "midpoint" else "exact")


def exponential_sde(eta: float = 1.0, order: int = 2, num_steps: int | None = None) -> Solver:
    """Stochastic exponential Adams-Bashforth method for D, with noise of scale `eta` >= 0. Orders 1 to 3.

    One evaluation of D per step: a polynomial through the latest `order` values is integrated exactly. eta = 0 is
    `dpm_solver_pp` in its multistep form; more noise forgets errors of earlier steps and needs more steps. A step
    that ends where sigma = 0, or starts where alpha = 0, is of first order, and one that is much longer than those
    before it has lower order, see `exponential.reliable`. `num_steps` is the number of steps of the whole solve. It is
    the predictor of SA-Solver with a constant tau = eta (arXiv:2309.05019, section 5.1).

    The order is `order` for eta = 0; the weak order is 1, 2 and 2 with noise.

    Raises ValueError for another order, a negative eta, or fewer steps than the order.
    """
    check_order("exponential_sde", order, 3, num_steps)
    if not eta >= 0:
        raise ValueError(f"eta is {eta}; it must be at least 0")
    return _multistep(eta, order, "exact")


def _multistep(eta: float, order: int, variant: str) -> Solver:
    def step(process: Process, D: Denoiser, keys: Array, x: Array, t: Array, s: Array, history: History):
        x_0, eps = predictions(process, D, x, t)
        here, h = half_log_snr(process, t), half_log_snr(process, s) - half_log_snr(process, t)
        x_s = _first_order(process, s, h, x_0, eps, eta, row_normal(keys, x))
        finite = jnp.isfinite(h)
        h = jnp.where(finite, h, 1)
        nodes = history.nodes(jnp.where(jnp.isfinite(here), here, 0), h)
        count = jnp.where(finite, history.reliable(nodes), 0)
        c = select(count, nodes, lambda used: coefficients(used, -(1 + eta**2) * h, variant))
        return x_s - process.alpha(s) * difference(c, x_0, history), history.push(here, x_0)

    return Solver(
        init=lambda x: History.empty(x, order - 1),
        step=step,
        needs=Needs(sigma=True, alpha_after=eta != 0, distinct_times=order > 1, falling_times=eta != 0),
    )


def _first_order(process: Process, s: Scalar, h: Scalar, x_0: Array, eps: Array, eta: float, noise: Array) -> Array:
    """The exact solution for a constant D: alpha_s D + sigma_s (e^(-eta^2 h) eps + sqrt(1 - e^(-2 eta^2 h)) z)."""
    if eta == 0:
        return process.alpha(s) * x_0 + process.sigma(s) * eps
    kept, added = jnp.exp(-(eta**2) * h), jnp.sqrt(-jnp.expm1(-2 * eta**2 * h))
    return process.alpha(s) * x_0 + process.sigma(s) * (kept * eps + added * noise)


def seeds(order: int = 3, prediction: str = "eps") -> Solver:
    """SEEDS-1, -2 and -3: single-step exponential Runge-Kutta methods for the reverse-time SDE (eta = 1).

    `order` evaluations of D per step, at times that split h in equal parts, along one and the same Brownian path:
    the noise of a stage is part of that of the whole step. `prediction` is the quantity whose polynomial is
    integrated, eps as in the paper's algorithms for VP, or D (`x0`) as in its section on EDM, which is steadier in
    large steps. Weak order 1, 2 and 2. A step that ends where sigma = 0, or starts where alpha = 0, is that of
    `ancestral` sampling. Raises ValueError for another order or prediction. arXiv:2305.14267, algorithms 1 to 3.
    """
    check_order("seeds", order, 3)
    check_choice("prediction", prediction, ("eps", "x0"))
    data = prediction == "x0"
    # Of z / h and of the exponents in the variance of the noise.
    rate, growth = (-2, -2) if data else (1, 2)

    def step(process: Process, D: Denoiser, keys: Array, x: Array, t: Array, s: Array) -> Array:
        x_0, eps = predictions(process, D, x, t)
        M = x_0 if data else eps
        here, h = half_log_snr(process, t), half_log_snr(process, s) - half_log_snr(process, t)
        finite = jnp.isfinite(h)
        noises = [row_normal(row_keys(keys, k), x) for k in range(order)]

        def part(fraction):
            """The time at `fraction` of h, and the part of h that times of finite precision really give."""
            u = time_of_log_snr(process, 2 * jnp.where(finite, here + fraction * h, 0))
            u = jnp.where(finite, u, t)
            return u, jnp.where(finite, half_log_snr(process, u) - here, fraction)

        times, ends = zip(*[part(k / order) for k in range(1, order)], (s, jnp.where(finite, h, 1)), strict=True)

        def advance(stage, nodes=(), later=(), rule="exact"):
            """From t to times[stage], with the differences `later` of M from its first value at `nodes`."""
            u, length = times[stage], ends[stage]
            change = jnp.expm1(rate * length) * M
            for c, excess in zip(coefficients(list(nodes), rate * length, rule), later, strict=True):
                change = change + c * excess
            noise = jnp.zeros_like(x)
            for begin, end, z in zip((jnp.zeros_like(h), *ends), ends[: stage + 1], noises, strict=False):
                variance = jnp.exp(growth * (length - end)) * jnp.abs(jnp.expm1(growth * (end - begin)))
                noise = noise + jnp.sqrt(variance) * z
            noise = process.sigma(u) * noise
            if data:
                return process.sigma(u) / process.sigma(t) * jnp.exp(-length) * x - process.alpha(u) * change + noise
            alpha_t = jnp.where(finite, process.alpha(t), 1)
            return process.alpha(u) / alpha_t * x - 2 * process.sigma(u) * change + noise

        def later(x_u, u):
            return predictions(process, D, x_u, u)[not data] - M

        if order == 1:
            x_s = advance(0)
        elif order == 2:
            x_s = advance(1, [ends[0] / ends[1]], [later(advance(0), times[0])], "bh2")
        else:
            first = later(advance(0), times[0])
            second = later(advance(1, [ends[0] / ends[1]], [first]), times[1])
            x_s = advance(2, [ends[1] / ends[2]], [second])
        return jnp.where(finite, x_s, _first_order(process, s, h, x_0, eps, 1.0, noises[0]))

    return stateless(step, sigma=True, alpha_after=True, distinct_times=order > 1, falling_times=True)
