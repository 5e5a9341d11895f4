"""Losses: pure functions that return one number per example, unreduced."""

from diffusion_jax.losses.bridge import bridge_loss
from diffusion_jax.losses.denoising import denoising_loss
from diffusion_jax.losses.score_matching import (
    implicit_score_matching,
    score_matching_loss,
    sliced_score_matching,
)
from diffusion_jax.losses.variational import hybrid_loss, vlb_loss

__all__ = [
    "bridge_loss",
    "denoising_loss",
    "hybrid_loss",
    "implicit_score_matching",
    "score_matching_loss",
    "sliced_score_matching",
    "vlb_loss",
]
