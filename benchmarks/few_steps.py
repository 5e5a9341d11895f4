"""Errors of solvers in 10 to 40 evaluations of D, on every grid and process: the table of docs/solvers.md.

    python -m benchmarks.few_steps

Data are N(0.3, 0.25), of which D and the probability-flow ODE have a closed form. The table holds the root mean square
distance of samples to the exact flow, divided by that of `ddim` in as many evaluations of D on the same grid; the
largest ratio of all processes. `tests/solvers/test_few_steps.py` bounds it for multistep solvers.
"""

from __future__ import annotations

import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import processes, solvers
from diffusion_jax.processes.base import bcast
from diffusion_jax.solvers import grids
from diffusion_jax.solvers.sampling import sample
from diffusion_jax.types import Process, Solver, pytree

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "solvers.md"
BEGIN, END = "<!-- few steps: written by python -m benchmarks.few_steps -->", "<!-- end of few steps -->"
MEAN, VARIANCE = 0.3, 0.25
EVALUATIONS = (10, 15, 20, 40)
FLOOR = 1e-3  # distances below it are of float32, not of the solver

PROCESSES: dict[str, Process] = {
    "vp": processes.VP(),
    "sub_vp": processes.SubVP(),
    "cosine": processes.Cosine(),
    "rectified_flow": processes.RectifiedFlow(),
    "ve": processes.VE(),
    "edm": processes.EDM(),
    "ddpm": processes.discrete_vp(),
    "improved_ddpm": processes.discrete_vp("cosine"),
}
# These evaluate the process at the times of the grid alone.
MULTISTEP: dict[str, Solver] = {
    "dpm_solver_pp, order 2": solvers.dpm_solver_pp(2),
    "dpm_solver_pp, order 3": solvers.dpm_solver_pp(3),
    "dpm_solver, multistep": solvers.dpm_solver(2, "multistep"),
    "unipc, order 2": solvers.unipc(2),
    "unipc, order 3": solvers.unipc(3),
    "unipc, order 4": solvers.unipc(4),
    "deis, order 3": solvers.deis(3),
    "deis, order 4": solvers.deis(4),
    "lms, order 4": solvers.lms(4),
}
# Two evaluations of D per step.
SINGLE_STEP: dict[str, Solver] = {
    "heun": solvers.heun(),
    "dpm_solver, order 2": solvers.dpm_solver(2),
    "dpm_solver_pp, singlestep": solvers.dpm_solver_pp(2, "singlestep"),
}


@pytree
class Nodes:
    """A process that is known at n + 1 times of a grid, by the values there: entry i is t = 1 - i / n."""

    alphas: jax.Array
    sigmas: jax.Array
    num_steps = None

    def alpha(self, t):
        return self.alphas[self._index(t)]

    def sigma(self, t):
        return self.sigmas[self._index(t)]

    def _index(self, t):
        return jnp.round((1 - t) * (self.alphas.shape[0] - 1)).astype(jnp.int32)


def offered(process: Process) -> dict[str, grids.Grid]:
    """The grids of a process; those in log-SNR start where alpha > 0."""
    last = 1.0 if process.alpha(jnp.float32(1)) > 0 else 0.999
    every = {
        "uniform": grids.uniform(),
        "uniform, t_min 1e-5": grids.uniform(1e-5),
        "quadratic": grids.quadratic(),
        "karras": grids.karras(t_min=1e-3, t_max=last),
        "uniform_log_snr": grids.uniform_log_snr(t_max=last),
    }
    if process.num_steps:
        every |= {spacing: grids.discrete(spacing) for spacing in ("leading", "linspace", "trailing")}
    return every


def exact_denoiser(process: Process):
    def D(x, t):
        alpha, noise = bcast(process.alpha(t), x), bcast(process.sigma(t), x) ** 2
        return MEAN + VARIANCE * alpha / (alpha**2 * VARIANCE + noise) * (x - MEAN * alpha)

    return D


def exact(process: Process, times: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The states at times[0] and times[-1] of the flow through standard normal z: MEAN alpha + deviation z."""
    alpha, sigma = process.alpha(times), process.sigma(times)
    deviation = jnp.sqrt(alpha**2 * VARIANCE + sigma**2)
    return MEAN * alpha[0] + deviation[0] * z, MEAN * alpha[-1] + deviation[-1] * z


def error(solver: Solver, process: Process, times: jax.Array) -> jax.Array:
    """Root mean square distance to the exact flow after a solve over `times`."""
    z = jax.scipy.special.ndtri((jnp.arange(64.0) + 0.5) / 64)[:, None]
    start, end = exact(process, times, z)
    x = sample(solver, process, exact_denoiser(process), jax.random.key(0), start, times)
    return jnp.sqrt(jnp.mean(jnp.square(x - end)))


@functools.partial(jax.jit, static_argnames="solver")
def errors_at_nodes(solver: Solver, alphas: jax.Array, sigmas: jax.Array, times: jax.Array) -> jax.Array:
    """`error` for rows of values and times of `Nodes`."""
    return jax.vmap(lambda a, s, t: error(solver, Nodes(alphas=a, sigmas=s), t))(alphas, sigmas, times)


class Row(NamedTuple):
    """One solve: `times` of `process` in `evaluations` steps of a grid."""

    process: str
    grid: str
    evaluations: int
    times: np.ndarray


@functools.cache
def rows() -> list[Row]:
    """Every process with every grid that it is offered on."""
    return [
        Row(name, grid, count, np.asarray(make(process, count)))
        for name, process in PROCESSES.items()
        for grid, make in offered(process).items()
        for count in EVALUATIONS
    ]


@functools.cache
def nodes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """alpha, sigma and times of `Nodes` for `rows()`, as long as the longest: with steps of length zero in front."""
    longest = max(EVALUATIONS)
    values = []
    for row in rows():
        process, index = PROCESSES[row.process], np.arange(longest + 1)
        padding = longest - row.evaluations
        times = np.append(np.full(padding, row.times[0]), row.times)
        values.append([process.alpha(times), process.sigma(times), 1 - np.maximum(index, padding) / longest])
    return tuple(np.asarray(values, np.float32).swapaxes(0, 1))


@functools.cache
def ddim() -> np.ndarray:
    """Errors of DDIM for `rows()`."""
    return np.maximum(errors_at_nodes(solvers.ddim(), *nodes()), FLOOR)


def ratios(solver: Solver) -> np.ndarray:
    """Errors of a multistep solver over those of DDIM, for `rows()`."""
    return np.maximum(errors_at_nodes(solver, *nodes()), FLOOR) / ddim()


def single_step_ratios(solver: Solver) -> np.ndarray:
    """The same for a solver of two evaluations per step, in half as many steps."""
    found = []
    for row in rows():
        process = PROCESSES[row.process]
        times = offered(process)[row.grid](process, row.evaluations // 2)
        found.append(jax.jit(functools.partial(error, solver))(process, times))
    return np.maximum(found, FLOOR) / ddim()


COLUMNS = list(offered(PROCESSES["ddpm"]))


def line(name: str, values: np.ndarray) -> str:
    """The row of the table of one solver: the largest of its ratios on every grid."""
    worst = [max(value for value, row in zip(values, rows(), strict=True) if row.grid == grid) for grid in COLUMNS]
    return f"| `{name}` | {' | '.join(f'{value:.2f}' for value in worst)} |"


def table() -> str:
    """The text between the markers."""
    found = {name: ratios(solver) for name, solver in MULTISTEP.items()}
    found |= {name: single_step_ratios(solver) for name, solver in SINGLE_STEP.items()}
    lines = [line(name, values) for name, values in found.items()]
    return "\n".join([f"| solver | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}", *lines])


def written(page: str) -> str:
    """The page with the table between its markers."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
