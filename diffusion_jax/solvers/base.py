"""What solvers share: how to make a stateless one, and the transition between two times of the forward process."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.parameterizations import LearnedVariance
from diffusion_jax.processes.base import bcast, row_keys
from diffusion_jax.types import Denoiser, Needs, Process, Solver

Time = Float[Array, "*n"]
Variance = Float[Array, "..."]  # a scalar, one number per row, or one per value


def stateless(step: Callable[..., Array], **needs: Any) -> Solver:
    """A solver without memory from `step(process, D, keys, x, t, s) -> x_s`, with the `needs` of `types.Needs`."""
    return Solver(
        init=lambda x: (),
        step=lambda process, D, keys, x, t, s, carry: (step(process, D, keys, x, t, s), carry),
        needs=Needs(**needs),
    )


def staged(first: Solver, *others: Solver) -> Solver:
    """A solver whose step is one of `first` from t to s, then one of each of the `others`, which stays at s."""
    stages = (first, *others)

    def step(process: Process, D: Denoiser, keys: Array, x: Array, t: Array, s: Array, carry: tuple):
        after = []
        for i, (solver, own) in enumerate(zip(stages, carry, strict=True)):
            x, own = solver.step(process, D, row_keys(keys, i), x, s if i else t, s, own)
            after.append(own)
        return x, tuple(after)

    return Solver(lambda x: tuple(solver.init(x) for solver in stages), step, first.needs, stages)


def transition(process: Process, t: Time, s: Time) -> tuple[Time, Time]:
    """(alpha_ts, variance_ts) of q(x_t | x_s) = N(alpha_ts x_s, variance_ts I) for s < t.

    alpha_ts = alpha_t / alpha_s, variance_ts = sigma_t^2 - alpha_ts^2 sigma_s^2 = sigma_t^2 (1 - SNR_t / SNR_s).
    arXiv:2107.00630, appendix A.
    """
    alpha_ts = process.alpha(t) / process.alpha(s)
    ratio = alpha_ts * process.sigma(s) / process.sigma(t)
    return alpha_ts, process.sigma(t) ** 2 * jnp.maximum(1 - ratio**2, 0)


def posterior(process: Process, t: Time, s: Time) -> tuple[Time, Time, Time]:
    """(a, b, v) of q(x_s | x_t, x_0) = N(a x_t + b x_0, v I) for s < t; v is 0 where sigma(s) = 0.

    arXiv:2006.11239, eq. 7, and arXiv:2107.00630, eq. 25, for any pair of times. t and s are scalars or [batch].
    """
    alpha_ts, variance_ts = transition(process, t, s)
    kept = (process.sigma(s) / process.sigma(t)) ** 2
    return alpha_ts * kept, process.alpha(s) * variance_ts / process.sigma(t) ** 2, variance_ts * kept


def step_variance(kind: str, beta: Variance, beta_tilde: Variance, v: Array | None = None) -> Variance:
    """The variance of a reverse step between that of the posterior and that of the forward step.

    "beta_tilde" or "beta", or "learned": v log beta + (1 - v) log beta_tilde with v in [0, 1] like x
    (arXiv:2102.09672, eq. 15).
    """
    if kind == "learned":
        log_beta, log_beta_tilde = bcast(jnp.log(beta), v), bcast(jnp.log(beta_tilde), v)
        return jnp.exp(v * log_beta + (1 - v) * log_beta_tilde)
    return beta if kind == "beta" else beta_tilde


def check_variance(variance: str, D: Denoiser) -> None:
    """Raises ValueError for an unknown kind of variance, or "learned" for a D whose network gives none."""
    if variance not in ("beta", "beta_tilde", "learned"):
        raise ValueError(f"variance is {variance!r}; choose beta, beta_tilde or learned")
    if variance == "learned" and not isinstance(D, LearnedVariance):
        raise ValueError("variance is 'learned', but this denoiser is no LearnedVariance")
