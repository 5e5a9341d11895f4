"""Plots samples of several work directories side by side, as in docs/pictures/grid.png.

    python docs/grid.py docs/pictures/grid.png NCSN=runs/ncsn DDPM=runs/ddpm "VE SDE=runs/score_sde" EDM=runs/edm

Each directory must hold samples/samples.npz, which --mode=sample writes.
"""

import pathlib
import sys

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diffusion_jax.evaluation.sheets import image_sheet


def main(path: str, *runs: str) -> None:
    figure = Figure(figsize=(3.2 * len(runs), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, run in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
        title, _, directory = run.partition("=")
        samples = np.load(pathlib.Path(directory) / "samples" / "samples.npz")["samples"]
        axis.imshow(image_sheet(samples[:64], columns=8), interpolation="nearest")
        axis.set_title(title)
        axis.set_axis_off()
    figure.savefig(path, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main(*sys.argv[1:])
