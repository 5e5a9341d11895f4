"""From names to a system. A config file needs `choose`, `defaults` and `replace`."""

from diffusion_jax.config.defaults import choose, defaults, from_file, replace

__all__ = ["choose", "defaults", "from_file", "replace"]
