"""What solvers share: how to make a stateless one, and the transition between two times of the forward process."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.types import Process, Solver


def stateless(step: Callable[..., Array]) -> Solver:
    """A solver without memory from `step(process, D, keys, x, t, s) -> x_s`."""
    return Solver(
        init=lambda x: (),
        step=lambda process, D, keys, x, t, s, carry: (step(process, D, keys, x, t, s), carry),
    )


def transition(process: Process, t: Float[Array, ""], s: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(alpha_ts, variance_ts) of q(x_t | x_s) = N(alpha_ts x_s, variance_ts I) for s < t.

    alpha_ts = alpha_t / alpha_s, variance_ts = sigma_t^2 - alpha_ts^2 sigma_s^2 = sigma_t^2 (1 - SNR_t / SNR_s).
    arXiv:2107.00630, appendix A.
    """
    alpha_ts = process.alpha(t) / process.alpha(s)
    ratio = alpha_ts * process.sigma(s) / process.sigma(t)
    return alpha_ts, process.sigma(t) ** 2 * jnp.maximum(1 - ratio**2, 0)
