"""Plots samples of several work directories side by side, as in docs/pictures/grid.png.

    python docs/grid.py docs/pictures/grid.png NCSN=runs/ncsn DDPM=runs/ddpm "VE SDE=runs/score_sde" EDM=runs/edm

Each directory must hold samples/samples.npz, which --mode=sample writes. Instead of a directory, an .npz file of
samples can be given, and the name of an array in it, such as TITLE=FILE.npz:cond.
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
        title, _, source = run.partition("=")
        place, _, name = source.partition(":")
        file = place if place.endswith(".npz") else pathlib.Path(place) / "samples" / "samples.npz"
        axis.imshow(image_sheet(np.load(file)[name or "samples"][:64], columns=8), interpolation="nearest")
        axis.set_title(title)
        axis.set_axis_off()
    figure.savefig(path, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main(*sys.argv[1:])
