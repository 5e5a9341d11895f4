"""Measured orders of convergence of the solvers, evaluations of D per step, and error against evaluations.

    python -m benchmarks.solver_orders                                      # all processes; the picture of docs/
    python -m benchmarks.solver_orders --picture errors.png --processes vp  # one process, another file

Everything is in float64 on problems whose answers are known. The orders of ODE solvers are measured on a mixture of
Gaussians in one dimension, whose flow keeps every point's quantile, so the error is a difference of distribution
functions. The weak orders of SDE solvers are measured on a Gaussian: their results are Gaussian, with a mean and a
variance that are computed to rounding rather than sampled. Both are slopes between two numbers of steps on grids whose
first steps are short.
"""

import argparse
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from diffusion_jax import solvers
from diffusion_jax.processes import VP
from diffusion_jax.solvers import grids
from diffusion_jax.types import Solver
from tests.solvers.test_order import ODE, REGULAR, STEPS, integrate, mixture, order_of
from tests.solvers.weak import errors

NOISY = {
    "ancestral": solvers.ancestral(),
    "ancestral_beta": solvers.ancestral("beta"),
    "ddim_eta_half": solvers.ddim(0.5),
    "euler_maruyama": solvers.euler_maruyama(),
    "reverse_diffusion": solvers.reverse_diffusion(),
    "sde_dpm_solver_pp_2m": solvers.sde_dpm_solver_pp(2),
    "exponential_sde_half_3": solvers.exponential_sde(0.5, 3),
    "exponential_sde_one_3": solvers.exponential_sde(1.0, 3),
    "seeds_1": solvers.seeds(1),
    "seeds_2": solvers.seeds(2),
    "seeds_3": solvers.seeds(3),
    "seeds_3_x0": solvers.seeds(3, "x0"),
}
CHURN = 20.0  # shared among the steps of a solve, so every number of steps is another solver
NOISY_STEPS = (1600, 3200)
DRAWN = {  # the palette of Okabe and Ito, which colour-blind readers can distinguish
    "ddim": ("#000000", "o"),
    "euler": ("#999999", "s"),
    "heun": ("#E69F00", "^"),
    "dpm_solver_pp_2m": ("#56B4E9", "D"),
    "dpm_solver_3s": ("#009E73", "v"),
    "unipc_3": ("#D55E00", "P"),
    "lms_4": ("#CC79A7", "X"),
    "deis_4": ("#0072B2", "*"),
}
DRAWN_NOISY = {
    "ancestral": ("#000000", "o"),
    "euler_maruyama": ("#999999", "s"),
    "heun_churn_20": ("#E69F00", "^"),
    "sde_dpm_solver_pp_2m": ("#56B4E9", "D"),
    "exponential_sde_half_3": ("#0072B2", "*"),
    "seeds_2": ("#009E73", "v"),
    "seeds_3": ("#D55E00", "P"),
}
COUNTS = (4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256)
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
WIDE = VP(), grids.uniform_log_snr(1e-3, 1.0)


def order(name: str, process_name: str) -> float:
    """The measured order of a deterministic solver on the mixture."""
    process, start, end = REGULAR[process_name]
    data, (start, end) = mixture(), jnp.array([start, end])
    x = jnp.linspace(-2, 2, 9)[:, None]
    quantile = data.cdf(process, x, start)
    reached = [integrate(name, process_name, mixture, x, start, end, n) for n in STEPS]
    return order_of([float(jnp.abs(data.cdf(process, x_s, end) - quantile).max()) for x_s in reached])


def noisy_errors(name: str, process_name: str, counts: tuple[int, ...]) -> np.ndarray:
    """Errors of mean or deviation on a Gaussian after each number of steps."""
    if name == "heun_churn_20":
        return np.array([errors(solvers.heun(CHURN, num_steps=n), *REGULAR[process_name], (n,))[0] for n in counts])
    return errors(NOISY[name], *REGULAR[process_name], counts)


def weak_order(name: str, process_name: str) -> float:
    found = noisy_errors(name, process_name, NOISY_STEPS)
    return float(np.log(found[0] / found[1]) / np.log(NOISY_STEPS[1] / NOISY_STEPS[0]))


@functools.cache
def evaluations(solver: Solver) -> tuple[int, ...]:
    """Calls of D in each of 6 steps, counted while they run without compilation."""
    process, data, calls = VP(), mixture(), []

    def D(x, t):
        calls.append(t)
        return data.denoiser(process)(x, t)

    x, keys, counts = jnp.ones((1, 1)), jax.random.split(jax.random.key(0), 1), []
    carry = solver.init(x)
    times = WIDE[1](process, 7)
    with jax.disable_jit():
        for k in range(6):
            calls.clear()
            x, carry = solver.step(process, D, keys, x, times[k], times[k + 1], carry)
            counts.append(len(calls))
    return tuple(counts)


def per_step(solver: Solver) -> str:
    """Such as "1", or "1, first 3: 4"."""
    counts = evaluations(solver)
    usual = counts[-1]
    first = [count for count in counts if count != usual]
    return str(usual) + (f", first {len(first)}: {first[0]}" if first else "")


def table(rows: dict[str, tuple[str, Callable[[str], float]]], names: list[str]) -> None:
    """A row per solver: evaluations per step, then its orders on the processes `names`."""
    print(f"| solver | D per step | {' | '.join(names)} |\n|---|---|{'---|' * len(names)}")
    for solver, (count, measure) in rows.items():
        print(f"| `{solver}` | {count} | {' | '.join(f'{measure(name):.1f}' for name in names)} |", flush=True)


def ends() -> tuple[jax.Array, jax.Array]:
    """The first and last time of `WIDE`, rounded as in a grid of many steps."""
    process, grid = WIDE
    times = grid(process, 2).astype(jnp.float64)
    return times[0], times[-1]


def error_of_flow(solver: Solver, x: jax.Array, exact: jax.Array) -> tuple[list[int], list[float]]:
    """Evaluations of D and root mean square errors at the end of `WIDE`, over numbers of steps."""
    (process, grid), most = WIDE, max(COUNTS)
    D = mixture().denoiser(process)

    @jax.jit
    def run(times, num_steps):
        keys = jax.random.split(jax.random.key(0), len(x))
        step = lambda i, state: solver.step(process, D, keys, state[0], times[i], times[i + 1], state[1])  # noqa: E731
        return jax.lax.fori_loop(0, num_steps, step, (x, solver.init(x)))[0]

    counts = evaluations(solver)
    found = []
    for n in COUNTS:
        times = jnp.pad(grid(process, n).astype(x.dtype), (0, most - n), mode="edge")
        found.append(float(jnp.sqrt(jnp.mean((run(times, n) - exact) ** 2))))
    return [sum(counts[:n]) + max(n - len(counts), 0) * counts[-1] for n in COUNTS], found


def error_of_adaptive(x: jax.Array, exact: jax.Array) -> tuple[list[int], list[float]]:
    """As `error_of_flow` for `adaptive_ode`; evaluations are those of the row that needs most."""
    (process, _), (t, s) = WIDE, ends()
    D = mixture().denoiser(process)
    keys, calls = jax.random.split(jax.random.key(0), len(x)), []

    def counted(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return D(x, t)

    nfe, found = [], []
    for tolerance in TOLERANCES:
        solver = solvers.adaptive_ode("dopri5", tolerance, tolerance)
        calls.clear()
        x_s, _ = jax.jit(lambda x, solver=solver: solver.step(process, counted, keys, x, t, s, ()))(x)
        found.append(float(jnp.sqrt(jnp.mean((x_s - exact) ** 2))))
        jax.effects_barrier()
        nfe.append(len(calls))
    return nfe, found


def adaptive_sde_table(num: int = 20_000) -> None:
    """By tolerance: evaluations of the row that needs most, and the largest difference of distribution functions."""
    process, data, calls = VP(), mixture(), []
    t, s = jnp.array(1.0), jnp.array(1e-3)
    keys, D = jax.random.split(jax.random.key(1), num), data.denoiser(process)
    x_T = data.at(process, t).sample(jax.random.key(0), num)

    def counted(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return D(x, t)

    print("| rtol = atol | D, hardest row | difference of distribution functions |\n|---|---|---|")
    for tolerance in (1.0, 0.3, 0.1, 0.03, 0.01):
        solver = solvers.adaptive_sde(tolerance, tolerance)
        calls.clear()
        x, _ = jax.jit(lambda x, solver=solver: solver.step(process, counted, keys, x, t, s, ()))(x_T)
        jax.effects_barrier()
        quantile = jnp.sort(data.cdf(process, x, s).ravel())
        difference = jnp.abs(quantile - (jnp.arange(num) + 0.5) / num).max()
        print(f"| {tolerance} | {len(calls)} | {difference:.4f} |", flush=True)


def draw(axis: plt.Axes, name: str, style: tuple[str, str], counts, found) -> None:
    colour, marker = style
    axis.loglog(counts, found, color=colour, marker=marker, label=name, lw=1.3, ms=6)


def picture(path: str) -> None:
    (process, _), (t, s) = WIDE, ends()
    x = process.sigma(t) * jnp.linspace(-2.0, 2.0, 33)[:, None]
    keys = jax.random.split(jax.random.key(0), len(x))
    strict = solvers.adaptive_ode("dopri8", 1e-12, 1e-12)
    exact, _ = jax.jit(lambda x: strict.step(process, mixture().denoiser(process), keys, x, t, s, ()))(x)
    drift = jnp.abs(mixture().cdf(process, exact, s) - mixture().cdf(process, x, t)).max()
    assert drift < 5e-8, f"the reference is off by {drift} in quantiles"

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5.2), layout="constrained")
    for name, style in DRAWN.items():
        draw(left, name, style, *error_of_flow(ODE[name].solver, x, exact))
    draw(left, "adaptive_ode", ("#B8860B", "h"), *error_of_adaptive(x, exact))
    left.set(xlabel="evaluations of D", ylabel="root mean square error of x", title="Probability-flow ODE, mixture")
    for name, style in DRAWN_NOISY.items():
        cost = evaluations(NOISY.get(name, solvers.heun()))[-1]
        draw(right, name, style, np.array(COUNTS) * cost, noisy_errors(name, "vp", COUNTS))
    right.set(xlabel="evaluations of D", ylabel="error of mean or deviation", title="Solvers with noise, Gaussian")
    for axis in (left, right):
        axis.grid(True, which="major", color="0.88")
        axis.legend(fontsize=9, frameon=False)
    figure.savefig(path, dpi=110)
    print(f"\n{path}: VP, {max(COUNTS)} steps at most; left t = 1 to 0.001 with equal steps of log SNR")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", nargs="+", default=list(REGULAR), choices=list(REGULAR))
    parser.add_argument("--picture", default="docs/pictures/solver_errors.png", help="a file, or empty for none")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)

    print(f"Orders on a mixture, between {STEPS[0]} and {STEPS[1]} steps:\n")
    rows = {name: (per_step(case.solver), functools.partial(order, name)) for name, case in ODE.items()}
    table(rows, args.processes)
    print(f"\nWeak orders on a Gaussian, between {NOISY_STEPS[0]} and {NOISY_STEPS[1]} steps:\n")
    rows = {name: (per_step(solver), functools.partial(weak_order, name)) for name, solver in NOISY.items()}
    rows["heun_churn_20"] = (per_step(solvers.heun(CHURN, num_steps=6)), functools.partial(weak_order, "heun_churn_20"))
    table(rows, args.processes)
    print("\nadaptive_sde by tolerance, VP from t = 1 to 0.001 on the mixture, 20,000 samples:\n")
    adaptive_sde_table()
    if args.picture:
        picture(args.picture)


if __name__ == "__main__":
    main()
