"""Guidance: functions from denoisers to denoisers."""

from diffusion_jax.guidance.classifier import classifier
from diffusion_jax.guidance.classifier_free import autoguidance, classifier_free, rescaled, text_and_image

__all__ = ["autoguidance", "classifier", "classifier_free", "rescaled", "text_and_image"]
