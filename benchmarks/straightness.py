"""How straight the paths of rectified flows in the plane are, with a picture of them.

    python -m benchmarks.straightness runs/flow_plane runs/reflow_plane [--picture docs/pictures/reflow_plane.png]

For each run: the straightness S = E int |x_1 - x_0 - v(x_t, t)|^2 dt along its own paths from noise x_1 to sample x_0
(arXiv:2209.03003, eq. 7), which is 0 for straight ones, the mean squared length of a path, and the 2-Wasserstein
distance to held-out points of 100 steps and of one step of Euler's method, next to that of as many training points.
"""

from __future__ import annotations

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import diffusion_jax
from diffusion_jax import data, sampling, solvers
from diffusion_jax.evaluation import sheets
from diffusion_jax.evaluation.transport import wasserstein_2
from diffusion_jax.run.pretrained import Pretrained

NUM, STEPS, PATHS = 2000, 100, 60


def paths(model: Pretrained, steps: int) -> np.ndarray:
    """The states [steps + 1, NUM, 2] from the same noise, by `steps` steps of Euler's method."""
    times = jnp.linspace(1.0, 0.0, steps + 1)
    noise = jax.random.normal(jax.random.key(0), (NUM, 2))
    key, solver = jax.random.key(1), solvers.euler()
    states = sampling.sample(solver, model.process, model.denoiser(), key, noise, times, trajectory=True)
    return np.asarray(states)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="work directories of flows in the plane")
    parser.add_argument("--picture", default="", help="where to write a picture of the paths")
    options = parser.parse_args()
    figure = Figure(figsize=(4 * len(options.runs), 4.2), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for ax, run in zip(figure.subplots(1, len(options.runs), squeeze=False)[0], options.runs, strict=True):
        model = diffusion_jax.load(run)
        states = paths(model, STEPS)
        whole = states[0] - states[-1]
        # An Euler step is v times its length.
        straightness = np.square(whole - STEPS * (states[:-1] - states[1:])).sum(-1).mean()
        test = data.shuffled(model.job.held_out, NUM)["x"]
        train = data.shuffled(model.job.source, NUM)["x"]
        one = paths(model, 1)[-1]
        print(
            f"{run}: straightness {straightness:.4f}, length^2 {np.square(whole).sum(-1).mean():.3f}, W2 in {STEPS} "
            f"steps {wasserstein_2(states[-1], test):.3f}, in one {wasserstein_2(one, test):.3f}, real "
            f"{wasserstein_2(train, test):.3f}"
        )
        ax.scatter(*states[0, :600].T, s=3, alpha=0.3, color="tab:blue", linewidths=0, label="noise")
        ax.scatter(*states[-1, :600].T, s=3, alpha=0.3, color="tab:orange", linewidths=0, label="samples")
        ax.plot(*states[:, :PATHS].transpose(2, 0, 1), color="black", linewidth=0.5, alpha=0.6)
        ax.set(title=pathlib.Path(run).name, aspect="equal", xlim=(-2.8, 2.8), ylim=(-2.8, 2.8))
        ax.legend(loc="upper right", markerscale=4, fontsize=8)
    if options.picture:
        canvas.draw()
        sheets.write_png(np.asarray(canvas.buffer_rgba())[..., :3].copy(), options.picture)


if __name__ == "__main__":
    main()
