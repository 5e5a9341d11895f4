"""Guidance: functions from denoisers to denoisers."""

from diffusion_jax.guidance.classifier import classifier
from diffusion_jax.guidance.classifier_free import autoguidance, classifier_free, rescaled
from diffusion_jax.guidance.thresholding import clip

__all__ = ["autoguidance", "classifier", "classifier_free", "clip", "rescaled"]
