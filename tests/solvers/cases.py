"""Every solver once, with what is promised of it. The tests of order and of invariance run over this table."""

from typing import NamedTuple

from diffusion_jax import solvers
from diffusion_jax.processes import VE, VP
from diffusion_jax.solvers import grids
from diffusion_jax.solvers.grids import Grid
from diffusion_jax.types import Process, Solver


class Case(NamedTuple):
    """`order` of convergence to the probability-flow ODE, or None for a sampler with noise.

    Every solver reaches the marginals of `process` on `grid` with `num_steps` steps, up to a relative `bias` of
    standard deviations and weights, in `dimension` dimensions. The order is measured on `processes`, all
    by default.
    """

    solver: Solver
    order: int | None = None
    process: Process = VP()
    grid: Grid = grids.uniform_log_snr(1e-3, 1.0)
    num_steps: int = 100
    bias: float = 0.02
    dimension: int = 2
    processes: tuple[str, ...] = ()


LEVELS = VE(sigma_min=0.1, sigma_max=5.0)
# Its step size depends on the norms of single noise vectors and scores, which concentrate in high dimension only.
CORRECTED = solvers.predictor_corrector(solvers.reverse_diffusion(), solvers.langevin_corrector(snr=0.1))

CASES = {
    "ddim": Case(solvers.ddim(), order=1),
    "euler": Case(solvers.euler(), order=1),
    "heun": Case(solvers.heun(), order=2),
    "dpm_solver_pp_2m": Case(solvers.dpm_solver_pp(2), order=2),
    "unipc_3": Case(solvers.unipc(3), order=4),
    # With EDM's time its weights for equal steps are the right ones, and the order is higher.
    "pndm": Case(solvers.pndm(), order=2, processes=("vp", "sub_vp", "ve", "cosine", "rectified_flow")),
    "ancestral_beta_tilde": Case(solvers.ancestral("beta_tilde")),
    "ancestral_beta": Case(solvers.ancestral("beta")),
    "ddim_eta_half": Case(solvers.ddim(0.5)),
    "ddim_eta_one": Case(solvers.ddim(1.0)),
    "euler_maruyama": Case(solvers.euler_maruyama(), num_steps=400),
    "reverse_diffusion": Case(solvers.reverse_diffusion(), num_steps=400),
    "sde_dpm_solver_pp_2m": Case(solvers.sde_dpm_solver_pp(2)),
    "seeds_2": Case(solvers.seeds(2)),
    "predictor_corrector": Case(CORRECTED, num_steps=200, dimension=64),
    "predictor_corrector_ve": Case(CORRECTED, process=LEVELS, grid=grids.uniform(0.0), num_steps=200, dimension=64),
    "annealed_langevin": Case(
        solvers.annealed_langevin(step_size=0.001, num_steps=20), process=LEVELS, grid=grids.levels(), num_steps=50
    ),
}

# Members of a family that has another one above: only their order is measured.
TWO = ("vp", "rectified_flow")
RELATIVES = {
    "dpm_solver_2s": Case(solvers.dpm_solver(2), order=2, processes=TWO),
    "dpm_solver_3s": Case(solvers.dpm_solver(3), order=3),
    "dpm_solver_3m": Case(solvers.dpm_solver(3, "multistep"), order=3, processes=TWO),
    "dpm_solver_pp_3m": Case(solvers.dpm_solver_pp(3), order=3, processes=TWO),
    "dpm_solver_pp_3s_heun": Case(solvers.dpm_solver_pp(3, "singlestep", "heun"), order=3, processes=TWO),
    "unipc_2_bh1": Case(solvers.unipc(2, "bh1"), order=3, processes=TWO),
    "unipc_4_eps": Case(solvers.unipc(4, prediction="eps"), order=5, processes=TWO),
    "deis_4": Case(solvers.deis(4), order=4, processes=TWO),
    "lms_4": Case(solvers.lms(4), order=4, processes=("vp", "edm")),
    "plms_4": Case(solvers.plms(4), order=2, processes=TWO),
}
