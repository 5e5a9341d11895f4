"""Which solver, grid, parameterization, weighting and guidance goes with which process: the tables of docs/solvers.md.

    python -m benchmarks.solver_matrix

They are what the parts declare and `config.fits` evaluates, written between the markers of docs/solvers.md.
`tests/solvers/test_matrix.py` samples every pair.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_jax import parameterizations, processes
from diffusion_jax.config import fits, names
from diffusion_jax.guidance import measurement, methods, operators, steering
from diffusion_jax.networks.conditions import NO_CONDITIONS
from diffusion_jax.types import Needs, Process, needs_of

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "solvers.md"
BEGIN, END = "<!-- matrix: written by python -m benchmarks.solver_matrix -->", "<!-- end of matrix -->"
PROCESSES: dict[str, Process] = {
    **{name: make() for name, make in names.PROCESSES.items() if name != "learned_vp"},
    "zero_snr": processes.discrete_vp(zero_terminal_snr=True),
    "learned_vp": processes.learned_vp(hidden=4),
}
# All but flow_map, which needs a denoiser that is a flow map.
SOLVERS = {name: make() for name, make in names.SOLVERS.items() if not needs_of(make()).flow_map}
LABELS = {name: parameterizations.x0_prediction(label) for name, label in names.LABELS.items()}
PARAMETERIZATIONS = {name: make() for name, make in names.PARAMETERIZATIONS.items()}
WEIGHTINGS = {name: make() for name, make in names.WEIGHTINGS.items()}
GUIDANCE = {
    "none": steering.none(),
    "classifier_free": steering.classifier_free(),
    "instruct_pix2pix": steering.instruct_pix2pix(),
    "autoguidance": steering.autoguidance(lambda params, cond: None, dict),
    "classifier": steering.classifier(lambda params, x, t, cond: None, dict, NO_CONDITIONS),
    "measurement": measurement.measurement(operators.half((2, 2, 1)), methods.ddnm()),
}
FIRST, NEAR, LAST = 1.0, 0.999, 0.0  # where grids start, or start where they must not start at 1, and end
INNER = 0.5


def fit(needs: Needs, process: Process, last: float = LAST, start: float = FIRST) -> str:
    """ "yes", "t < 1" for a part that works from 0.999 on, or "no"."""
    for word, first in (("yes", start), ("t < 1", NEAR)):
        if fits.unmet(needs, process, np.float32([first, INNER]), np.float32([INNER, last])) is None:
            return word
    return "no"


def of_grid(name: str, process: Process) -> str:
    """As `fit`, for a grid: whether its times go down to 0 and start at 1."""
    needs = needs_of(names.GRIDS[name]())
    down = "yes" if fits.unmet(Needs(sigma=needs.sigma), process, np.float32([LAST])) is None else "t > 0"
    up = fit(Needs(alpha=needs.alpha, num_steps=needs.num_steps), process)
    return {("yes", "yes"): "yes", ("t < 1", "t > 0"): "0 < t < 1", ("yes", "t > 0"): "t > 0"}.get((up, down), up)


def table(title: str, rows: Mapping[str, Any], cell: Any) -> list[str]:
    lines = [f"| {title} | {' | '.join(PROCESSES)} |", f"|---|{'---|' * len(PROCESSES)}"]
    lines += [f"| `{name}` | {' | '.join(cell(part, p) for p in PROCESSES.values())} |" for name, part in rows.items()]
    return [*lines, ""]


def tables() -> str:
    """The text between the markers."""
    of = lambda part, process: fit(needs_of(part), process)  # noqa: E731
    lines = [
        '"yes": with times from 1 to 0. "t < 1": with `config.sampling.grid.t_max=0.999`, as the message says that',
        'refuses the pair at t = 1. "t > 0": with `t_min` above 0. `zero_snr` is `discrete_vp` with',
        "`zero_terminal_snr=True`.",
        "",
        *table("`config.solver.name`", SOLVERS, of),
        *table("`config.parameterization.name`", PARAMETERIZATIONS, of),
        *table("`config.parameterization.label`", LABELS, of),
        *table("`config.guidance.name`", GUIDANCE, of),
        *table("`config.sampling.grid.name`", {name: name for name in names.GRIDS}, of_grid),
        *table("`config.weighting.name`", WEIGHTINGS, of),
    ]
    return "\n".join(lines).rstrip()


def written(page: str) -> str:
    """The page with the tables between its markers."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
