"""Data sets as batches of arrays: digits, any TFDS image set, folders, array files and 2-D toys, without TensorFlow."""

from diffusion_jax.data.load import SOURCES, Opener, load
from diffusion_jax.data.pipeline import arrays, batches, device_batches, epoch_indices, shuffled
from diffusion_jax.data.source import Source

__all__ = [
    "SOURCES",
    "Opener",
    "Source",
    "arrays",
    "batches",
    "device_batches",
    "epoch_indices",
    "load",
    "shuffled",
]
