"""Guidance by the gradient of a log-likelihood: Bayes' rule for scores."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.parameterizations import rewired
from diffusion_jax.processes.base import bcast
from diffusion_jax.types import Cond, Denoiser, Process

LogLikelihood = Callable[..., Float[Array, "batch"]]  # log_prob_fn(x_t, t, cond) -> [batch]


def classifier(
    D: Denoiser,
    log_prob_fn: LogLikelihood,
    scale: float | Float[Array, ""] | Callable[[Array], Array],
    process: Process,
) -> Denoiser:
    """D_w = D + w sigma^2 / alpha grad_x log p(y | x_t), so that w grad log p(y | x_t) is added to the score.

    For eps this is eps - w sigma grad log p (arXiv:2105.05233, algorithm 2; arXiv:2011.13456, eq. 14). w = 1 with exact
    D and p is exactly the conditional denoiser. Any differentiable log-likelihood of a condition serves, trained on
    noisy inputs or not. A solver sees one denoiser, so that all of them take part.

    Args:
        D: the denoiser to steer, called with the same cond; an unconditional network ignores it.
        log_prob_fn: (x_t, t, cond) -> [batch]; row r may depend on row r of its arguments only. t is as D gets it.
        scale: w, or a function of t.
        process: whose alpha and sigma turn a score into D; alpha(t) must be positive.
    """

    def guided(
        outputs: Callable, x: Float[Array, "batch *shape"], t: Array, cond: Cond
    ) -> tuple[Float[Array, "batch *shape"], ...]:
        gradient = jax.grad(lambda x: jnp.sum(log_prob_fn(x, t, cond)))(x)
        w = scale(t) if callable(scale) else scale
        x_0, *rest = outputs(x, t, cond)
        return x_0 + bcast(w * process.sigma(t) ** 2 / process.alpha(t), x) * gradient, *rest

    return rewired(D, guided)
