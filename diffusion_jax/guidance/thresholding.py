"""Keeping the predicted data in its range."""

import jax.numpy as jnp

from diffusion_jax.types import Denoiser


def clip(D: Denoiser, bound: float = 1.0) -> Denoiser:
    """Static thresholding: D limited to [-bound, bound], as DDPM samples (arXiv:2006.11239)."""
    return lambda x, t, cond=None: jnp.clip(D(x, t, cond), -bound, bound)
