"""Every pair of process, parameterization, solver and guidance samples finite values, or is refused by name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from benchmarks import solver_matrix
from benchmarks.solver_matrix import FIRST, GUIDANCE, LAST, NEAR, PROCESSES, SOLVERS
from diffusion_jax import guidance, solvers
from diffusion_jax.config import build, fits
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.processes.base import bcast, time_derivative
from diffusion_jax.solvers.sampling import sample
from diffusion_jax.types import needs_of, pytree
from tests.runs import toy

CELLS = 2**12  # of a table of a process over time
GRIDS = {"1 to 0": np.linspace(FIRST, LAST, 4), "near 1 to near 0": np.linspace(NEAR, 1e-3, 4)}
GRIDS["levels"] = np.array([1, 1, 0.5, 0])
VARIANTS = {  # of the solvers of a config, with the defaults that are tested under their names
    # Those of bridges take their coefficients from another protocol: tests/solvers/test_bridge.py.
    **{name: solver for name, solver in SOLVERS.items() if not solver.needs.bridge},
    "adaptive_ode": solvers.adaptive_ode("heun", rtol=10.0, atol=10.0, max_steps=16),
    "adaptive_sde": solvers.adaptive_sde(rtol=1e3, atol=1e3, max_steps=32),
    "annealed_langevin": solvers.annealed_langevin(num_steps=25),
    "ddim, eta": solvers.ddim(1.0),
    "heun, churn": solvers.heun(churn=2.0, num_steps=3),
}
# That of latent consistency models is for discrete processes alone: tests/test_parameterizations.py.
PARAMETERIZATIONS = {
    name: param for name, param in solver_matrix.PARAMETERIZATIONS.items() if not needs_of(param).num_steps
}
NAMES, PARAMS = list(PROCESSES), list(PARAMETERIZATIONS)
GUIDED = ["none", "classifier_free", "classifier"]
TIMES = (jnp.arange(CELLS + 1, dtype=jnp.float32) / CELLS) ** 2  # dense near the data


def tabulated(f):
    """(values, derivatives) [processes, times] of f(process, t)."""
    pairs = jax.jit(lambda t: [time_derivative(lambda t: f(p, t), t) for p in PROCESSES.values()])(TIMES)
    return jnp.stack([value for value, _ in pairs]), jnp.stack([slope for _, slope in pairs])


ALPHA, SIGMA = (tabulated(f) for f in (lambda p, t: p.alpha(t), lambda p, t: p.sigma(t)))
COEFFICIENTS = jax.jit(
    lambda t: jnp.array([[jnp.stack(f(p, t), -1) for f in PARAMETERIZATIONS.values()] for p in PROCESSES.values()])
)(TIMES)


def cell(t):
    return jnp.round(jnp.sqrt(t) * CELLS).astype(jnp.int32)


@jax.custom_jvp
def look_up(values, slopes, t):
    return values[cell(t)]


@look_up.defjvp
def _(primals, tangents):
    _, slopes, t = primals
    return look_up(*primals), look_up(slopes, slopes, t) * tangents[2]


@pytree
class Tabulated:
    """A process by its number in PROCESSES, one program for all; exact at the ends of the tables and 2^12 times."""

    index: jax.Array
    num_steps = None

    def alpha(self, t):
        return look_up(ALPHA[0][self.index], ALPHA[1][self.index], jnp.asarray(t))

    def sigma(self, t):
        return look_up(SIGMA[0][self.index], SIGMA[1][self.index], jnp.asarray(t))


def denoiser(process, param, kind):
    """D(x, t) under the guidance GUIDED[kind]: bounded, and not finite where a coefficient of the parameterization or
    its label is not."""

    def D(x, t, cond):
        index = jnp.broadcast_to(cell(t), x.shape[:1])
        c_in, c_skip, c_out, c_noise = COEFFICIENTS[process.index, param, index].T
        broken = 0 * (c_in + c_skip + c_out + jnp.sin(c_noise))
        alpha, sigma = bcast(process.alpha(t), x), bcast(process.sigma(t), x)
        return jnp.tanh(alpha * x / (alpha**2 + sigma**2) + 0.1 * cond["vector"]) + bcast(broken, x)

    cond, null = {"vector": jnp.ones((2, 1))}, {"vector": jnp.zeros((1, 1))}
    guided = [
        D,
        guidance.classifier_free(D, 2.0, null),
        guidance.classifier(D, lambda x, t, _: -jnp.sum(jnp.cos(x), -1), 2.0, process),
    ]
    return lambda x, t: jnp.stack([f(x, t, cond) for f in guided])[kind]


@functools.cache
def met(needs, grid):
    """For every process, whether it meets the needs at the times of the grid."""
    starts, ends = np.float32(GRIDS[grid][:-1]), np.float32(GRIDS[grid][1:])
    return np.array([fits.unmet(needs, p, starts, ends) is None for p in PROCESSES.values()])


def fitting(name, grid):
    """Which cells [process, parameterization, guidance] are not refused."""
    params = np.stack([met(needs_of(param), grid) for param in PARAMETERIZATIONS.values()], 1)
    guided = np.stack([met(GUIDANCE[kind].needs, grid) for kind in GUIDED], 1)
    return met(VARIANTS[name].needs, grid)[:, None, None] & params[:, :, None] & guided[:, None, :]


FEW = ("ddim", "ancestral", "heun", "euler_maruyama", "dpm_solver_pp", "annealed_langevin", "predictor_corrector")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FEW else [pytest.mark.slow]) for n in VARIANTS])
def test_a_pair_samples_finite_values_or_is_refused(name):
    def run(index, param, kind, times):
        process = Tabulated(index=index)
        x = process.sigma(jnp.float32(1)) * jax.random.normal(jax.random.key(1), (2, 2))
        D = denoiser(process, param, kind)
        return jnp.max(jnp.abs(sample(VARIANTS[name], process, D, jax.random.key(0), x, times)))

    shape = (len(NAMES), len(PARAMS), len(GUIDED))
    cells = [axis.ravel() for axis in jnp.meshgrid(*map(jnp.arange, shape), indexing="ij")]
    over_all = jax.jit(jax.vmap(run, (0, 0, 0, None)))
    for grid, times in GRIDS.items():
        found, accepted = np.reshape(over_all(*cells, jnp.float32(times)), shape), fitting(name, grid)
        wrong = [(NAMES[i], PARAMS[j], GUIDED[k]) for i, j, k in np.argwhere(accepted & ~np.isfinite(found))]
        assert not wrong, f"{grid}: {wrong}"
        # What the solver alone refuses really fails: with x0-prediction, which works at all times, and no guidance.
        refused = ~accepted[:, PARAMS.index("x0"), 0]
        works = refused & (found[:, PARAMS.index("x0"), 0] < 1e4)
        assert grid == "levels" or not works.any(), f"{grid}: {[NAMES[i] for i in np.flatnonzero(works)]}"


@pytest.mark.parametrize("process", PROCESSES)
def test_a_parameterization_is_finite_where_its_needs_are_met(process):
    times = np.float32([0, 1e-3, 0.5, NEAR, 1])
    rows = {**PARAMETERIZATIONS, **solver_matrix.LABELS, **solver_matrix.WEIGHTINGS}
    for name, part in rows.items():
        met = [fits.unmet(needs_of(part), PROCESSES[process], times[i : i + 1]) is None for i in range(len(times))]
        if not any(met):
            continue
        values = jax.tree.leaves(part(PROCESSES[process], jnp.asarray(times)))
        finite = np.isfinite(values).all(0)
        assert finite[met].all(), f"{name} is not finite at {times[met & ~finite]}"


def test_the_page_has_the_tables_that_the_parts_declare():
    page = solver_matrix.PAGE.read_text()
    assert page == solver_matrix.written(page), "python -m benchmarks.solver_matrix writes them"


SECTIONS = {
    "euler_maruyama": dict(solver=dict(name="euler_maruyama"), parameterization=dict(name="velocity", label="time")),
    "adaptive_sde": dict(solver=dict(name="adaptive_sde"), parameterization=dict(name="x0", label="time")),
    "eps": dict(solver=dict(name="ddim"), parameterization=dict(name="eps", label="time")),
}


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("process", ["rectified_flow", "cosine"])
def test_the_start_that_a_refusal_advises_is_accepted(name, process):
    sections = {key: ConfigDict(section) for key, section in SECTIONS[name].items()}
    options = dict(process=ConfigDict(dict(name=process)), **sections)
    with pytest.raises(ConfigError) as refusal:
        build.system(toy(**options))
    message = str(refusal.value)
    field = "parameterization" if name == "eps" else "solver"
    assert message.startswith(f"config.{field}.name={name!r}")
    assert f"config.process.name={process!r} has alpha = 0 at t = 1" in message
    advice = float(message.split("config.sampling.grid.t_max=")[1].split()[0])
    grid = ConfigDict(dict(name="uniform", t_max=advice))
    assert build.system(toy(**options, **{"sampling.grid": grid})).steps


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (dict(solver=dict(name="annealed_langevin")), ["config.solver.name='annealed_langevin'", "alpha = 1", "'vp'"]),
        (
            dict(solver=dict(name="annealed_langevin"), process=dict(name="edm")),
            ["config.solver.name='annealed_langevin'", "sigma(0) > 0.002236", "sigma(0) = 0.002", "ve"],
        ),
        (
            dict(sampling__grid=dict(name="karras")),
            ["config.sampling.grid.name='karras'", "sigma > 0", "config.sampling.grid.t_min=0.001 works"],
        ),
        (
            dict(
                process=dict(name="discrete_vp", zero_terminal_snr=True),
                parameterization=dict(name="v"),
                weighting=dict(name="velocity_matching"),
                times=dict(name="uniform", t_max=1.0),
            ),
            ["config.weighting.name='velocity_matching'", "finite derivatives", "'discrete_vp'", "config.times.t_max="],
        ),
        (dict(loss=dict(name="vlb")), ["config.loss.name='vlb'", "discrete process", "'vp'", "discrete_vp"]),
        (dict(guidance=dict(name="instruct_pix2pix")), ["config.guidance.name='instruct_pix2pix'", "'image'"]),
    ],
)
def test_refusals_name_the_part_and_what_is_allowed(sections, words):
    options = {key: ConfigDict(section) for key, section in sections.items()}
    options.setdefault("parameterization", ConfigDict(dict(name="x0", label="time")))
    with pytest.raises(ConfigError) as refusal:
        build.system(toy(**options))
    assert all(word in str(refusal.value) for word in words), str(refusal.value)
