"""Systems: what the trainer drives. Each implements the Protocol `diffusion_jax.types.System`."""

from diffusion_jax.systems.diffusion import Diffusion

__all__ = ["Diffusion"]
