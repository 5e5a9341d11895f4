"""Methods for inverse problems with an exact prior of real images, or with a trained run.

    python -m benchmarks.inverse_problems
    python -m benchmarks.inverse_problems --tasks sr half --methods mmps_renoised ddnm_raw
    python -m benchmarks.inverse_problems --run runs/ddpm --picture docs/pictures/inverse_problems.png

Without a run, the prior is the mixture of the training digits of scikit-learn with a standard deviation of 0.12 around
each: its denoiser is exact, and so are posterior samples, so that the table has the error of the methods alone. Each
entry is the PSNR in dB of one sample, of the mean of the samples of a measurement, and the residual over the noise.
"""

import argparse
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import data, solvers
from diffusion_jax.config import build, names, trained
from diffusion_jax.config.sections import construct
from diffusion_jax.evaluation import restoration, sheets
from diffusion_jax.guidance.measurement import METHODS, Method, measured
from diffusion_jax.guidance.operators import Operator
from diffusion_jax.guidance.scans import matrix_of
from diffusion_jax.processes import DiscreteVP, beta_table, prior
from diffusion_jax.solvers import grids
from diffusion_jax.solvers.sampling import sample
from diffusion_jax.types import Denoiser, Process, Solver

VARIANCE = 0.12**2  # around each training digit
SHAPE = (8, 8, 1)
TASKS = {
    "sr": dict(name="average", factor=2, noise=0.05),
    "box": dict(name="box", size=4, margin=0, noise=0.02),
    "half": dict(name="half", noise=0.02),
    "compressed": dict(name="compressed", num=16, noise=0.05),
}


class Setting(NamedTuple):
    """A method with the solver that it is sampled by."""

    method: Method
    solver: Solver
    steps: int = 100


def settings(variance: float) -> dict[str, Setting]:
    """Every method; `variance` is the mean variance of a pixel of the training split."""
    ancestral, corrected = solvers.ancestral(), solvers.renoised(0.85, "corrected")
    return {
        "mmps": Setting(METHODS["mmps"](), ancestral),
        "mmps_renoised": Setting(METHODS["mmps"](), corrected),
        "mmps_ddim": Setting(METHODS["mmps"](), solvers.ddim(), 25),
        "tmpd": Setting(METHODS["tmpd"](variance=variance), ancestral),
        "pigdm": Setting(METHODS["pigdm"](), ancestral),
        "pigdm_variance": Setting(METHODS["pigdm"](variance=variance), ancestral),
        "ddnm": Setting(METHODS["ddnm"](), ancestral),
        "ddnm_raw": Setting(METHODS["ddnm"](), solvers.renoised(0.85, "raw")),
        "ddnm_corrected": Setting(METHODS["ddnm"](), corrected),
        "diffpir": Setting(METHODS["diffpir"](), solvers.renoised(1.0, "corrected")),
        "dps": Setting(METHODS["dps"](1.0), ancestral),
        "dps_250": Setting(METHODS["dps"](1.0), ancestral, 250),
    }


def mixture(process: Process, means: np.ndarray) -> Denoiser:
    """The denoiser of a mixture of Gaussians N(means_k, VARIANCE I) [k, ...] of equal weights."""
    flat = jnp.asarray(means.reshape(len(means), -1))
    squares = jnp.sum(flat**2, -1)

    def D(x: jax.Array, t: jax.Array, cond=None) -> jax.Array:
        rows, alpha, sigma = x.reshape(len(x), -1), process.alpha(t), process.sigma(t)
        of_x = alpha**2 * VARIANCE + sigma**2
        distances = alpha**2 * squares - 2 * alpha * jnp.matmul(rows, flat.T, precision="highest")
        nearest = jax.nn.softmax(-distances / (2 * of_x), axis=-1) @ flat
        found = nearest + alpha * VARIANCE / of_x * (rows - alpha * nearest)
        return found.reshape(x.shape)

    return D


def exact_samples(entry: np.ndarray, operator: Operator, means: np.ndarray, each: int, seed: int = 0) -> np.ndarray:
    """`each` posterior samples of every measurement [each n, ...]: the posterior of a mixture is a mixture."""
    rng, drawn = np.random.default_rng(seed), []
    y, mask = operator.split(jnp.asarray(entry))
    flat = means.reshape(len(means), -1).astype(np.float64)
    for i in range(len(y)):
        matrix = np.asarray(matrix_of(operator, None if mask is None else mask[i : i + 1]), np.float64)
        if mask is not None:
            matrix = matrix[matrix.any(1)]
        known = np.asarray(y[i], np.float64).ravel()
        known = known[np.asarray(operator.known(y[i : i + 1], None if mask is None else mask[i : i + 1])).ravel() > 0]
        of_y = VARIANCE * matrix @ matrix.T + operator.noise**2 * np.eye(len(matrix))
        residual = known - flat @ matrix.T
        solved = np.linalg.solve(of_y, residual.T).T
        log_weights = -0.5 * np.sum(residual * solved, 1)
        weights = np.exp(log_weights - log_weights.max())
        chosen = rng.choice(len(flat), each, p=weights / weights.sum())
        # A sample of the joint law, corrected by what it measures (Matheron's rule).
        x = flat[chosen] + np.sqrt(VARIANCE) * rng.standard_normal((each, flat.shape[1]))
        noisy = x @ matrix.T + operator.noise * rng.standard_normal((each, len(matrix)))
        drawn.append(x + VARIANCE * np.linalg.solve(of_y, (known - noisy).T).T @ matrix)
    return np.stack(drawn, 1).reshape(-1, *means.shape[1:]).astype(np.float32)


def samples(setting: Setting, prior_of: Callable, entry: np.ndarray, operator: Operator, each: int) -> np.ndarray:
    """`each` samples of every measurement, [each n, ...]."""
    process, D = prior_of
    times = grids.discrete("linspace")(process, setting.steps)
    ids = jnp.arange(each * len(entry))
    rows = jnp.asarray(np.tile(entry, (each, *[1] * (entry.ndim - 1))))

    @jax.jit
    def run(rows: jax.Array) -> jax.Array:
        guided = measured(D, operator, rows, setting.method, process, times)
        x_T = prior(process, jax.random.key(0), (len(ids), *operator.shape), ids=ids)
        return sample(setting.solver, process, guided, jax.random.key(1), x_T, times, ids=ids)

    return np.asarray(run(rows))


def line(drawn: np.ndarray, truth: np.ndarray, entry: np.ndarray, operator: Operator, train: np.ndarray) -> str:
    """PSNR of one sample and of the mean, and the residual over the noise."""
    found = restoration.restoration(np.clip(drawn, -1, 1), truth, entry, operator, train)
    one, mean, residual = (found[f"restoration_{key}"] for key in ("psnr", "mean_psnr", "residual"))
    return f"{one:.1f} / {mean:.1f} / {residual:.1f}"


def row_of(name: str, cells: list[str]) -> None:
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--methods", nargs="+", default=[])
    parser.add_argument("--num", type=int, default=24, help="measurements")
    parser.add_argument("--each", type=int, default=6, help="samples of each measurement")
    parser.add_argument("--run", default="", help="work directory of a trained prior of the digits; empty: exact prior")
    parser.add_argument("--picture", type=pathlib.Path, default=None)
    args = parser.parse_args()
    if args.run:
        run = trained.open_run(args.run, "--run", lambda config: (build.build(config).system, "denoiser"))
        system, source = run.system, build.build(run.config).source
        split, held_out = source(), source(evaluation=True)
        process, D = system.process, system.unguided.denoiser(run.load())
    else:
        split, held_out = (data.load(name="digits", evaluation=e) for e in (False, True))
        process = DiscreteVP.from_betas(beta_table("linear"))
        D = mixture(process, data.arrays(split)["x"])
    train, truth = data.arrays(split)["x"], data.shuffled(held_out, args.num)["x"]
    operators = {task: construct(names.OPERATORS, "operator", TASKS[task], shape=SHAPE) for task in args.tasks}
    entries = {task: operator.measure(truth) for task, operator in operators.items()}
    psnr_of = lambda task, x: restoration.psnr(x, truth, restoration.unknown_of(entries[task], operators[task]))  # noqa: E731
    scored = lambda task, drawn: line(drawn, truth, entries[task], operators[task], train)  # noqa: E731
    every = settings(float(train.var(0).mean()))
    row_of("", args.tasks)
    print(f"|---|{'---|' * len(args.tasks)}")
    estimates = {task: restoration.baselines(entries[task], operators[task], train) for task in args.tasks}
    for name in ("mean", "pinv", "interpolation", "lmmse"):
        found = [psnr_of(task, estimates[task][name]) if name in estimates[task] else None for task in args.tasks]
        row_of(name, ["-" if x is None else f"{np.mean(x):.1f}" for x in found])
    if not args.run:
        exact = [exact_samples(entries[t], operators[t], train, args.each) for t in args.tasks]
        row_of("exact posterior", list(map(scored, args.tasks, exact)))
    last = {}
    for name in args.methods or every:
        for task in args.tasks:
            last[task] = samples(every[name], (process, D), entries[task], operators[task], args.each)
        row_of(f"`{name}`", [scored(task, last[task]) for task in args.tasks])
    if args.picture:
        sheet(args.picture, truth, entries, operators, estimates, last, args.each)
        print(f"\n{args.picture}")


def sheet(path, truth, entries, operators, estimates, last, each: int, rows: int = 4, shown: int = 3) -> None:
    """Truth, measurement, linear estimate, samples and their mean, `rows` measurements of each task."""
    tiles = []
    for task, drawn in last.items():
        x = drawn.reshape(each, len(truth), *truth.shape[1:])
        seen = restoration.as_image(entries[task], operators[task])
        for i in range(rows):
            tiles += [truth[i], seen[i], estimates[task]["lmmse"][i], *x[:shown, i], x[:, i].mean(0)]
    sheets.image_sheet(np.clip(np.stack(tiles), -1, 1), path=path, columns=4 + shown)


if __name__ == "__main__":
    main()
