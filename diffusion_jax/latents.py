"""The former name of `diffusion_jax.run.encode`, kept for `python -m diffusion_jax.latents`."""

from diffusion_jax.run.encode import main
from diffusion_jax.training.faults import one_line_if_interrupted

if __name__ == "__main__":
    with one_line_if_interrupted():
        main()
