"""Guidance: functions from denoisers to denoisers."""

from diffusion_jax.guidance.thresholding import clip

__all__ = ["clip"]
