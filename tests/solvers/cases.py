"""Every solver once, with what is promised of it. The tests of order and of invariance run over this table."""

from typing import NamedTuple

from diffusion_jax import grids, solvers
from diffusion_jax.grids import Grid
from diffusion_jax.processes import VE, VP
from diffusion_jax.types import Process, Solver


class Case(NamedTuple):
    """`order` of convergence to the probability-flow ODE, or None for a sampler with noise.

    Every solver reaches the marginals of `process` on `grid` with `num_steps` steps, up to a relative `bias` of
    standard deviations and weights, in `dimension` dimensions.
    """

    solver: Solver
    order: int | None = None
    process: Process = VP()
    grid: Grid = grids.uniform_log_snr(1e-3, 1.0)
    num_steps: int = 100
    bias: float = 0.02
    dimension: int = 2


LEVELS = VE(sigma_min=0.1, sigma_max=5.0)
# Its step size depends on the norms of single noise vectors and scores, which concentrate in high dimension only.
CORRECTED = solvers.predictor_corrector(solvers.reverse_diffusion(), solvers.langevin_corrector(snr=0.1))

CASES = {
    "ddim": Case(solvers.ddim(), order=1),
    "euler": Case(solvers.euler(), order=1),
    "heun": Case(solvers.heun(), order=2),
    "ancestral_beta_tilde": Case(solvers.ancestral("beta_tilde")),
    "ancestral_beta": Case(solvers.ancestral("beta")),
    "ddim_eta_half": Case(solvers.ddim(0.5)),
    "ddim_eta_one": Case(solvers.ddim(1.0)),
    "euler_maruyama": Case(solvers.euler_maruyama(), num_steps=400),
    "reverse_diffusion": Case(solvers.reverse_diffusion(), num_steps=400),
    "predictor_corrector": Case(CORRECTED, num_steps=200, dimension=64),
    "predictor_corrector_ve": Case(CORRECTED, process=LEVELS, grid=grids.uniform(0.0), num_steps=200, dimension=64),
    "annealed_langevin": Case(
        solvers.annealed_langevin(step_size=0.001, num_steps=20), process=LEVELS, grid=grids.levels(), num_steps=50
    ),
}
