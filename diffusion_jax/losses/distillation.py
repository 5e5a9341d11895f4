"""Distillation of samplers: progressive distillation, whose student makes one step of two of its teacher's.

arXiv:2202.00512.
"""

from jaxtyping import Array, Float

from diffusion_jax.processes.base import bcast
from diffusion_jax.types import Denoiser, Process


def ddim_step(
    process: Process,
    D: Denoiser,
    x: Float[Array, "batch *shape"],
    t: Float[Array, "batch"],
    s: Float[Array, "batch"],
) -> Float[Array, "batch *shape"]:
    """DDIM from x_t to x_s with times of every row: x_s = alpha_s D + sigma_s (x_t - alpha_t D) / sigma_t."""
    ratio = process.sigma(s) / process.sigma(t)
    return bcast(ratio, x) * x + bcast(process.alpha(s) - ratio * process.alpha(t), x) * D(x, t)


def progressive_target(
    process: Process,
    D: Denoiser,
    x_t: Float[Array, "batch *shape"],
    t: Float[Array, "batch"],
    s: Float[Array, "batch"],
) -> Float[Array, "batch *shape"]:
    """The x_0 with which one DDIM step from t to s arrives where two of the teacher D do, over (t + s) / 2.

    x_0 = (x_s - r x_t) / (alpha_s - r alpha_t) with r = sigma_s / sigma_t (arXiv:2202.00512, algorithm 2). A student
    that predicts it exactly makes in N steps the same samples as its teacher in 2 N. sigma_t must be positive.
    """
    middle = (t + s) / 2
    x_s = ddim_step(process, D, ddim_step(process, D, x_t, t, middle), middle, s)
    ratio = process.sigma(s) / process.sigma(t)
    return (x_s - bcast(ratio, x_t) * x_t) / bcast(process.alpha(s) - ratio * process.alpha(t), x_t)
