"""DPM-Solver and DPM-Solver++: exponential integrators in log-SNR for eps and for D, single-step and multistep."""

import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.processes.base import time_of_log_snr
from diffusion_jax.solvers.base import stateless
from diffusion_jax.solvers.exponential import check_order, coefficients, half_log_snr
from diffusion_jax.solvers.multistep import exponential_adams, predictions
from diffusion_jax.types import Denoiser, Process, Solver, check_choice

VARIANTS = {"midpoint": "bh2", "heun": "exact"}


def dpm_solver(
    order: int = 2, kind: str = "singlestep", solver_type: str = "midpoint", num_steps: int | None = None
) -> Solver:
    """DPM-Solver: an exponential integrator for eps. Orders 1 (DDIM) to 3; inverts.

    `singlestep` evaluates D `order` times per step, at times between t and s that split h = lambda_s - lambda_t in
    equal parts; order 2 and 3 with `solver_type` midpoint are algorithms 1 and 2 of arXiv:2206.00927. `multistep`
    evaluates D once and uses past eps. The second-order term has the coefficient (e^h - 1) / 2 (`midpoint`) or its
    exact integral (`heun`, with which the single-step order 3 fits a parabola through all three eps).

    `num_steps` is the number of steps of the whole solve, see `multistep`. A step that ends where sigma = 0, or
    starts where alpha = 0, is DDIM's. Raises ValueError for another order, kind or solver_type, or for fewer steps
    than a multistep method needs.
    """
    return _dpm_solver("dpm_solver", "eps", order, kind, solver_type, num_steps)


def dpm_solver_pp(
    order: int = 2, kind: str = "multistep", solver_type: str = "midpoint", num_steps: int | None = None
) -> Solver:
    """DPM-Solver++: an exponential integrator for D, steady under strong guidance. Orders 1 (DDIM) to 3; inverts.

    As `dpm_solver`, with D and -h in place of eps and h. 2S and 2M are algorithms 1 and 2 of arXiv:2211.01095. In 3M
    the second difference has the weight that makes it of third order, twice that of the authors' code.
    """
    return _dpm_solver("dpm_solver_pp", "x0", order, kind, solver_type, num_steps)


def _dpm_solver(name: str, prediction: str, order: int, kind: str, solver_type: str, num_steps: int | None) -> Solver:
    check_choice("kind", kind, ("singlestep", "multistep"))
    check_choice("solver_type", solver_type, tuple(VARIANTS))
    if kind == "singlestep":
        check_order(name, order, 3)
        return _singlestep(order, prediction, VARIANTS[solver_type])
    check_order(name, order, 3, num_steps)
    return exponential_adams(order, prediction, VARIANTS[solver_type])


def _singlestep(order: int, prediction: str, variant: str) -> Solver:
    kept = 0 if prediction == "x0" else 1

    def step(process: Process, D: Denoiser, keys: Array, x: Array, t: Array, s: Array) -> Array:
        first = predictions(process, D, x, t)
        here, h = half_log_snr(process, t), half_log_snr(process, s) - half_log_snr(process, t)
        finite = jnp.isfinite(h)

        def part(fraction):
            """The time at `fraction` of h, and what is really reached there, since times have finite precision."""
            u = time_of_log_snr(process, 2 * jnp.where(finite, here + fraction * h, 0))
            u = jnp.where(finite, u, t)
            return u, jnp.where(finite, half_log_snr(process, u) - here, fraction)

        def advance(u, h, nodes=(), later=(), rule="exact"):
            """DDIM from t to u over h, with the differences `later` at `nodes`, fractions of h."""
            x_0, eps = first
            z, scale = (-h, process.alpha(u)) if prediction == "x0" else (h, process.sigma(u))
            change = sum(c * (M - first[kept]) for c, M in zip(coefficients(list(nodes), z, rule), later, strict=True))
            return process.alpha(u) * x_0 + process.sigma(u) * eps - scale * change

        if order == 1:
            return advance(s, h)
        times, parts = zip(*[part(k / order) for k in range(1, order)], strict=True)
        whole = jnp.where(finite, h, 1)
        nodes = [p / whole for p in parts]
        later = [predictions(process, D, advance(times[0], parts[0]), times[0])[kept]]
        if order == 3:
            x_u = advance(times[1], parts[1], [parts[0] / parts[1]], later)
            later.append(predictions(process, D, x_u, times[1])[kept])
            if variant != "exact":
                nodes, later = nodes[1:], later[1:]
        x_s = advance(s, whole, nodes, later, variant if order == 2 else "exact")
        return jnp.where(finite, x_s, advance(s, h))

    return stateless(step, sigma=True, distinct_times=order > 1)
