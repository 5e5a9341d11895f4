"""Solvers of the reverse process. Each is a function of its numbers that returns a `Solver`, a pair of functions.

To add one, write `step(process, D, keys, x, t, s, carry) -> (x_s, carry)` and list it here and in `config/names.py`.
"""

from diffusion_jax.solvers.adaptive import adaptive_ode, adaptive_sde
from diffusion_jax.solvers.ancestral import ancestral, ddim, renoised
from diffusion_jax.solvers.bridge import bridge_ddim, bridge_heun, bridge_posterior
from diffusion_jax.solvers.consistency import consistency
from diffusion_jax.solvers.dpm_solver import dpm_solver, dpm_solver_pp
from diffusion_jax.solvers.exponential_sde import exponential_sde, sde_dpm_solver_pp, seeds
from diffusion_jax.solvers.flow_map import flow_map
from diffusion_jax.solvers.langevin import annealed_langevin, langevin_corrector, ncsnv2_step_size
from diffusion_jax.solvers.multistep import deis, lms, plms, pndm
from diffusion_jax.solvers.ode import euler, heun
from diffusion_jax.solvers.replacement import replaced, travelling
from diffusion_jax.solvers.sde import euler_maruyama, predictor_corrector, reverse_diffusion
from diffusion_jax.solvers.unipc import unipc

__all__ = [
    "adaptive_ode",
    "adaptive_sde",
    "ancestral",
    "annealed_langevin",
    "bridge_ddim",
    "bridge_heun",
    "bridge_posterior",
    "consistency",
    "ddim",
    "deis",
    "dpm_solver",
    "dpm_solver_pp",
    "euler",
    "euler_maruyama",
    "exponential_sde",
    "flow_map",
    "heun",
    "langevin_corrector",
    "lms",
    "ncsnv2_step_size",
    "plms",
    "pndm",
    "predictor_corrector",
    "renoised",
    "replaced",
    "reverse_diffusion",
    "sde_dpm_solver_pp",
    "seeds",
    "travelling",
    "unipc",
]
