"""What a kind of data is: how its samples are saved, drawn and evaluated."""

from diffusion_jax.modalities.base import AUTO, Evaluation, Metric, Modality, metrics
from diffusion_jax.modalities.table import MODALITIES, of

__all__ = ["AUTO", "MODALITIES", "Evaluation", "Metric", "Modality", "metrics", "of"]
