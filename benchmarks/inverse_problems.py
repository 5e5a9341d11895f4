"""Methods for inverse problems with an exact prior of real images, or with a trained run.

    python -m benchmarks.inverse_problems --exact
    python -m benchmarks.inverse_problems --exact --tasks sr half --methods mmps_renoised ddnm_raw
    python -m benchmarks.inverse_problems runs/ddpm --picture docs/pictures/inverse_problems.png

With `--exact`, the prior is the mixture of the training digits of scikit-learn with a standard deviation of 0.12 around
each: its denoiser is exact, and so are posterior samples, so that the table has the error of the methods alone. Each
entry is the PSNR in dB of one sample, of the mean of the samples of a measurement, and the residual over the noise. The
picture is a sheet of the linear tasks by `mmps_renoised`.
"""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import priors
from benchmarks.priors import Prior
from diffusion_jax import data, processes, solvers
from diffusion_jax.config import names
from diffusion_jax.config.sections import construct
from diffusion_jax.evaluation import restoration, sheets
from diffusion_jax.guidance.measurement import METHODS, Method, measured
from diffusion_jax.guidance.operators import Operator
from diffusion_jax.guidance.scans import matrix_of
from diffusion_jax.solvers.sampling import sample
from diffusion_jax.types import Solver

VARIANCE = priors.WIDTH**2  # around each training digit
TASKS = {
    "sr": dict(name="average", factor=2, noise=0.05),
    "box": dict(name="box", size=4, margin=0, noise=0.02),
    "half": dict(name="half", noise=0.02),
    "compressed": dict(name="compressed", num=16, noise=0.05),
    "tomography": dict(name="tomography", angles=4, noise=0.02),
    "k_space": dict(name="k_space", acceleration=2, centre=0.25, noise=0.05),
    "jpeg": dict(name="jpeg", quality=5),
}
PHASE = dict(name="phase", noise=0.05)
TRIES, SUCCESS = 4, 20.0  # of phase retrieval: samples of each measurement, and the PSNR in dB of a success
FOR_PHASE = ("daps_phase",)
ONE = np.ones((1, 1, 1, 1), np.float32)
PICTURED, ROWS, SHOWN = "mmps_renoised", 2, 3  # of the sheet: the method, measurements of each task, samples of each


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
        "mcg": Setting(METHODS["mcg"](1.0), ancestral),
        "ddrm_20": Setting(METHODS["ddrm"](), solvers.renoised(0.85), 20),
        "ddrm": Setting(METHODS["ddrm"](), solvers.renoised(0.85)),
        "daps": Setting(METHODS["daps"](steps=3), solvers.ddim(), 50),
        "daps_variance": Setting(METHODS["daps"](steps=3, variance=variance), solvers.ddim(), 50),
        "daps_phase": Setting(METHODS["daps"](steps=5), solvers.ddim(), 50),
    }


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


def samples(setting: Setting, given: Prior, entry: np.ndarray, operator: Operator, each: int) -> np.ndarray:
    """`each` samples of every measurement, [each n, ...]."""
    process = given.system.process
    D, times = given.system.unguided.denoiser(given.params), given.system.grid(process, setting.steps)
    ids = jnp.arange(each * len(entry))
    rows = jnp.asarray(np.tile(entry, (each, *[1] * (entry.ndim - 1))))

    @jax.jit
    def run(rows: jax.Array) -> jax.Array:
        guided = measured(D, operator, rows, setting.method, process, times)
        solver = setting.solver
        if setting.method.around:
            solver = setting.method.around(solver, operator, *operator.split(rows))
        x_T = processes.prior(process, jax.random.key(0), (len(ids), *operator.shape), ids=ids, t=times[0])
        return sample(solver, process, guided, jax.random.key(1), x_T, times, ids=ids)

    return np.asarray(run(rows))


class Task(NamedTuple):
    """One inverse problem: the operator, the true images and their measurements, and the training images."""

    operator: Operator
    truth: np.ndarray
    entry: np.ndarray
    train: np.ndarray

    def psnr(self, x: np.ndarray) -> float:
        return float(np.mean(restoration.psnr(x, self.truth, restoration.unknown_of(self.entry, self.operator))))

    def line(self, drawn: np.ndarray) -> str:
        """PSNR of one sample and of the mean, and the residual over the noise."""
        found = restoration.restoration(np.clip(drawn, -1, 1), self.truth, self.entry, self.operator, self.train)
        one, mean, residual = (found[f"restoration_{key}"] for key in ("psnr", "mean_psnr", "residual"))
        return f"{one:.1f} / {mean:.1f} / {residual:.1f}"

    def restored(self, setting: Setting, given: Prior, each: int) -> str:
        """`line` of a method, "-" if it is not for this operator."""
        try:
            setting.method.check(self.operator)
        except ValueError:
            return "-"
        return self.line(samples(setting, given, self.entry, self.operator, each))

    def baselines(self) -> dict[str, np.ndarray]:
        return restoration.baselines(self.entry, self.operator, self.train)


def made(section: dict, truth: np.ndarray, train: np.ndarray) -> Task:
    operator = construct(names.OPERATORS, "operator", section, shape=truth.shape[1:])
    return Task(operator, truth, operator.measure(truth), train)


def row_of(name: str, cells: list[str]) -> None:
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def compare(tasks: dict[str, Task], given: Prior, methods: dict[str, Setting], each: int, exact: bool) -> None:
    """The table: simple estimates, with the exact prior its posterior, and the methods."""
    row_of("", list(tasks))
    print(f"|---|{'---|' * len(tasks)}")
    estimates = [task.baselines() for task in tasks.values()]
    for name in ("mean", "pinv", "interpolation", "back_projection", "lmmse"):
        scores = [t.psnr(e[name]) if name in e else None for t, e in zip(tasks.values(), estimates, strict=True)]
        row_of(name, ["-" if score is None else f"{score:.1f}" for score in scores])
    if exact:
        drawn = lambda t: t.line(exact_samples(t.entry, t.operator, t.train, each)) if t.operator.linear else "-"  # noqa: E731
        row_of("exact posterior", list(map(drawn, tasks.values())))
    for name, setting in methods.items():
        row_of(f"`{name}`", [t.restored(setting, given, each) for t in tasks.values()])


def phase_retrieval(given: Prior, truth: np.ndarray, methods: dict[str, Setting]) -> None:
    """The table of phase retrieval: PSNR and how often it succeeds, up to a rotation by 180 degrees."""
    operator = construct(names.OPERATORS, "operator", PHASE, shape=truth.shape[1:])
    entry = operator.measure(truth)
    print(f"\n| phase retrieval | one sample | best of {TRIES} by its residual |\n|---|---|---|")
    for name, setting in methods.items():
        x = samples(setting, given, entry, operator, TRIES).reshape(TRIES, *truth.shape)
        residual = np.stack([np.square(entry - operator(jnp.asarray(tried))).sum((1, 2, 3)) for tried in x])
        both = [[restoration.psnr(np.clip(y, -1, 1), truth, ONE) for y in (t, t[:, ::-1, ::-1])] for t in x]
        score = np.max(both, axis=1)
        best = np.take_along_axis(score, residual.argmin(0)[None], 0)
        row_of(f"`{name}`", [f"{one.mean():.1f} dB, success {np.mean(one > SUCCESS):.0%}" for one in (score, best)])


def sheet(path: pathlib.Path, tasks: dict[str, Task], given: Prior, setting: Setting, each: int) -> None:
    """Truth, measurement, linear estimate, SHOWN samples and the mean of `each`, ROWS measurements of each task."""
    tiles = []
    for task in (task for task in tasks.values() if task.operator.linear):
        x = samples(setting, given, task.entry, task.operator, each).reshape(each, *task.truth.shape)
        seen, linear = restoration.as_image(task.entry, task.operator), task.baselines()["lmmse"]
        for i in range(ROWS):
            tiles += [task.truth[i], seen[i], linear[i], *x[:SHOWN, i], x[:, i].mean(0)]
    sheets.image_sheet(np.clip(np.stack(tiles), -1, 1), path=path, columns=4 + SHOWN)
    print(f"\n{path}")


def main() -> None:
    parser = priors.arguments(__doc__)
    parser.add_argument("--tasks", nargs="+", default=[*TASKS, "phase"], choices=[*TASKS, "phase"])
    parser.add_argument("--methods", nargs="+", default=[])
    parser.add_argument("--num", type=int, default=24, help="measurements")
    parser.add_argument("--each", type=int, default=6, help="samples of each measurement")
    args = parser.parse_args()
    given = priors.opened(parser, args)
    train, truth = given.train["x"][: args.most], data.shuffled(given.held_out(), args.num)["x"]
    every = settings(float(train.var(0).mean()))
    if unknown := set(args.methods) - set(every):
        parser.error(f"--methods: {', '.join(unknown)} are not among {', '.join(every)}")
    tasks = {name: made(TASKS[name], truth, train) for name in args.tasks if name in TASKS}
    chosen = {name: every[name] for name in args.methods or every}
    if tasks:
        linear = {name: setting for name, setting in chosen.items() if name not in FOR_PHASE}
        compare(tasks, given, linear, args.each, exact=bool(args.exact))
    if "phase" in args.tasks:
        phase_retrieval(given, truth, {k: v for k, v in chosen.items() if k in ("dps", "dps_250", *FOR_PHASE)})
    if args.picture:
        sheet(args.picture, tasks, given, every[PICTURED], args.each)


if __name__ == "__main__":
    main()
