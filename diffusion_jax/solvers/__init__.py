"""Solvers of the reverse process. Each is a function of its numbers that returns a `Solver`, a pair of functions.

To add one, write `step(process, D, keys, x, t, s, carry) -> (x_s, carry)` and list it here and in `build.py`.
"""

from diffusion_jax.solvers.ancestral import ancestral, ddim
from diffusion_jax.solvers.langevin import annealed_langevin, langevin_corrector, ncsnv2_step_size
from diffusion_jax.solvers.ode import euler, heun
from diffusion_jax.solvers.sde import euler_maruyama, predictor_corrector, reverse_diffusion

__all__ = [
    "ancestral",
    "annealed_langevin",
    "ddim",
    "euler",
    "euler_maruyama",
    "heun",
    "langevin_corrector",
    "ncsnv2_step_size",
    "predictor_corrector",
    "reverse_diffusion",
]
