"""The modalities by the name that a `Spec` gives them."""

from __future__ import annotations

from diffusion_jax.modalities.base import PLAIN, Modality
from diffusion_jax.modalities.cloud import CLOUD
from diffusion_jax.modalities.image import IMAGE
from diffusion_jax.modalities.points import POINTS
from diffusion_jax.modalities.segmentation import MASK
from diffusion_jax.modalities.series import SERIES
from diffusion_jax.modalities.tokens import TOKENS
from diffusion_jax.modalities.waveform import MEL, WAVEFORM
from diffusion_jax.types import Spec

MODALITIES: dict[str, Modality] = {
    "array": PLAIN,
    "latents": PLAIN,
    "image": IMAGE,
    "mask": MASK,
    "points": POINTS,
    "tokens": TOKENS,
    "series": SERIES,
    "waveform": WAVEFORM,
    "mel": MEL,
    "cloud": CLOUD,
}


def of(spec: Spec) -> Modality:
    """The modality of data with this spec. ValueError: its name is unknown."""
    if spec.modality not in MODALITIES:
        raise ValueError(f"data.modality={spec.modality!r} is unknown; choose one of {', '.join(MODALITIES)}")
    return MODALITIES[spec.modality]
