"""Configs: how names become a system. A config file imports `choose`, `defaults`, `presets` and `replace`."""

from diffusion_jax.config import presets
from diffusion_jax.config.defaults import choose, defaults, from_file, replace

__all__ = ["choose", "defaults", "from_file", "presets", "replace"]
