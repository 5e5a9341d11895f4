"""The former name of `diffusion_jax.run.encode`, kept for `python -m diffusion_jax.latents`."""

from diffusion_jax.run.encode import main

if __name__ == "__main__":
    main()
