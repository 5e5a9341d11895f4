"""Guidance: functions from denoisers to denoisers."""

from diffusion_jax.guidance.classifier import classifier
from diffusion_jax.guidance.classifier_free import autoguidance, classifier_free, instruct_pix2pix, rescaled

__all__ = ["autoguidance", "classifier", "classifier_free", "instruct_pix2pix", "rescaled"]
