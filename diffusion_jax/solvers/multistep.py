"""Multistep solvers of the probability-flow ODE: one evaluation of D per step, and polynomials through past ones.

All take a first-order (DDIM) step where there is no past to use: at the start, after a start at alpha = 0, and, those
in log-SNR, in a step that ends where sigma = 0. All but `plms` and `pndm` lower their order in a step that is much
longer than those before it, see `exponential.reliable`. `num_steps`, where it is given, is the number of steps of the
whole solve; ValueError is raised if it is less than the order.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.solvers.exponential import (
    History,
    Scalar,
    check_order,
    coefficients,
    half_log_snr,
    polynomial_weights,
    select,
)
from diffusion_jax.types import Denoiser, Needs, Process, Solver


def deis(order: int = 3, num_steps: int | None = None) -> Solver:
    """DEIS in its log-rho form: eps is a polynomial in log(sigma / alpha), integrated exactly. Orders 1 to 4.

    One evaluation of D per step; inverts. This is exponential Adams-Bashforth for eps; the polynomial in the
    process's own time (the paper's tAB) is not offered. arXiv:2204.13902, section 3.3 and appendix B.
    """
    check_order("deis", order, 4, num_steps)
    return exponential_adams(order, "eps", "exact")


def exponential_adams(order: int, prediction: str, variant: str) -> Solver:
    """The exponential multistep solver of `exponential` for M = D (`x0`) or M = eps, up to `order`.

    `variant` is that of `coefficients`. DEIS and the multistep forms of DPM-Solver and DPM-Solver++ are members.
    """

    def step(process: Process, D: Denoiser, keys: Array, x: Array, t: Array, s: Array, history: History):
        x_0, eps = predictions(process, D, x, t)
        M = x_0 if prediction == "x0" else eps
        here, h = half_log_snr(process, t), half_log_snr(process, s) - half_log_snr(process, t)
        x_s = process.alpha(s) * x_0 + process.sigma(s) * eps
        correction, _ = exponential_correction(process, s, h, here, M, history, prediction, variant)
        return x_s - correction, history.push(here, M)

    needs = Needs(sigma=True, distinct_times=order > 1)
    return Solver(init=lambda x: History.empty(x, order - 1), step=step, needs=needs)


def predictions(process: Process, D: Denoiser, x: Array, t: Scalar) -> tuple[Array, Array]:
    """(D, eps) at x; sigma(t) must be positive."""
    x_0 = D(x, t)
    return x_0, (x - process.alpha(t) * x_0) / process.sigma(t)


def exponential_correction(
    process: Process,
    s: Scalar,
    h: Scalar,
    here: Scalar,
    M: Array,
    history: History,
    prediction: str,
    variant: str,
) -> tuple[Array, Array]:
    """(S sum_j c_j (M_j - M), n) of the n newest entries that are reliable: what a step of h to s subtracts from DDIM.

    n is 0 if h is infinite.
    """
    finite = jnp.isfinite(h)
    h = jnp.where(finite, h, 1)
    z, scale = (-h, process.alpha(s)) if prediction == "x0" else (h, process.sigma(s))
    nodes = history.nodes(jnp.where(jnp.isfinite(here), here, 0), h)
    count = jnp.where(finite, history.reliable(nodes), 0)
    c = select(count, nodes, lambda used: coefficients(used, z, variant))
    return scale * difference(c, M, history), count


def difference(weights: list[Scalar], M: Array, history: History) -> Array:
    """sum_j w_j (M_j - M) over the history."""
    total = jnp.zeros_like(M)
    for weight, past in zip(weights, history.predictions, strict=True):
        total = total + weight * (past - M)
    return total


def lms(order: int = 4, num_steps: int | None = None) -> Solver:
    """Linear multistep in sigma / alpha: Adams-Bashforth for d(x / alpha) = eps d(sigma / alpha). Orders 1 to 4.

    The weights integrate Lagrange's polynomials through the past eps over the actual, unequal steps. One evaluation
    of D per step; inverts; a step may end where sigma = 0 at full order. The sampler `lms` of k-diffusion.
    """
    check_order("lms", order, 4, num_steps)
    return _adams(order, lambda history, here, h: history.nodes(here, h), warm_up=0)


def plms(order: int = 4, num_steps: int | None = None) -> Solver:
    """Pseudo linear multistep: DDIM with eps replaced by an Adams-Bashforth sum with weights for equal steps.

    e' = (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3) / 24 for order 4. The solver converges with order 2 whatever the order of
    the sum from 2 on, since DDIM's step holds e' constant in sigma / alpha rather than in t. The first step averages
    eps at its two ends, at the cost of a second evaluation of D; all others have one. Inverts. arXiv:2202.09778,
    eq. 12 to 14.
    """
    check_order("plms", order, 4, num_steps)
    return _adams(order, _equal_steps, warm_up=min(order - 1, 1), stages=1)


def pndm(num_steps: int | None = None) -> Solver:
    """`plms` of order 4 after three pseudo Runge-Kutta steps of four evaluations each (F-PNDM). Order 2; inverts.

    A Runge-Kutta step evaluates D at (t + s) / 2. Raises ValueError for fewer than 4 steps. arXiv:2202.09778,
    algorithm 2.
    """
    check_order("pndm", 4, 4, num_steps)
    return _adams(4, _equal_steps, warm_up=3, stages=3)


def _equal_steps(history: History, here: Scalar, h: Scalar) -> list[Scalar]:
    return [jnp.full_like(h, -1.0 - j) for j in range(len(history.coordinates))]


def _adams(order: int, nodes_of, warm_up: int, stages: int = 0) -> Solver:
    """x_s = alpha_s (x / alpha_t + h e'), h = sigma_s / alpha_s - sigma_t / alpha_t, e' from past eps at `nodes_of`.

    While fewer than `warm_up` of them are there, e' comes from Runge-Kutta with further `stages` within the step.
    """

    def step(process: Process, D: Denoiser, keys: Array, x: Array, t: Array, s: Array, history: History):
        x_0, eps = predictions(process, D, x, t)
        here = process.sigma(t) / process.alpha(t)
        h = process.sigma(s) / process.alpha(s) - here
        finite = jnp.isfinite(h)
        h = jnp.where(finite, h, 0)
        alpha_t = jnp.where(process.alpha(t) > 0, process.alpha(t), 1)

        def average():
            """e' - eps from the past."""
            equal = [jnp.full_like(h, 1 / (k + 1)) for k in range(order)]
            nodes = nodes_of(history, jnp.where(finite, here, 0), jnp.where(finite, h, 1))
            weights = select(
                history.reliable(nodes), nodes, lambda used: polynomial_weights(used, equal[: len(used) + 1])
            )
            return difference(weights, eps, history)

        def runge_kutta():
            """e' - eps from inside the step."""
            noisy = process.sigma(s) > 0
            end = jnp.where(noisy, s, t)
            times = jnp.stack([(t + end) / 2] * (stages - 1) + [end])
            weights = jnp.asarray([1 / 3, 1 / 3, 1 / 6] if stages == 3 else [1 / 2], x.dtype)

            def stage(carry, now):
                latest, total = carry
                u, weight = now
                part = process.sigma(u) / process.alpha(u) - process.sigma(t) / alpha_t
                _, latest = predictions(process, D, process.alpha(u) * (x / alpha_t + part * latest), u)
                return (latest, total + weight * (latest - eps)), None

            (_, total), _ = jax.lax.scan(stage, (eps, jnp.zeros_like(eps)), (times, weights))
            return jnp.where(noisy, total, 0)

        change = jax.lax.cond(history.usable() < warm_up, runge_kutta, average) if warm_up else average()
        x_s = process.alpha(s) * x_0 + process.sigma(s) * eps
        x_s = x_s + jnp.where(finite, process.alpha(s) * h * change, 0)
        return x_s, history.push(here, eps)

    needs = Needs(sigma=True, distinct_times=order > 1)
    return Solver(init=lambda x: History.empty(x, order - 1), step=step, needs=needs)
