"""The former name of `diffusion_jax.config`, kept for config files that import it."""

from diffusion_jax.config.defaults import choose, defaults, from_file, replace

__all__ = ["choose", "defaults", "from_file", "replace"]
