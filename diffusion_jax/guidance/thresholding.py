"""Keeping the predicted data in its range."""

import jax.numpy as jnp

from diffusion_jax.parameterizations import mapped
from diffusion_jax.types import Denoiser


def clip(D: Denoiser, bound: float = 1.0) -> Denoiser:
    """Static thresholding: D limited to [-bound, bound], as DDPM samples (arXiv:2006.11239)."""
    return mapped(D, lambda x_0: jnp.clip(x_0, -bound, bound))
