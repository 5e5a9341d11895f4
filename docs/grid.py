"""Plots samples of several work directories side by side, as in docs/pictures/grid.png.

    python docs/grid.py docs/pictures/grid.png NCSN=runs/ncsn DDPM=runs/ddpm "VE SDE=runs/score_sde" EDM=runs/edm

Each directory must hold samples/samples.npz, which --mode=sample writes. Instead of a directory, an .npz file of
samples can be given, and the name of an array in it, such as TITLE=FILE.npz:cond. Points in the plane are scattered
over one square.
"""

import pathlib
import sys
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diffusion_jax.evaluation.sheets import image_sheet

LIMIT = 2.0  # half the side of the square in which points are shown


def draw(axis: Any, samples: np.ndarray) -> None:
    """64 images as a sheet, or all points [n, 2]."""
    if samples.ndim == 2:
        axis.scatter(*samples.T, s=1)
        axis.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal")
    else:
        axis.imshow(image_sheet(samples[:64], columns=8), interpolation="nearest")


def main(path: str, *runs: str) -> None:
    figure = Figure(figsize=(3.2 * len(runs), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, run in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
        title, _, source = run.partition("=")
        place, _, name = source.partition(":")
        file = place if place.endswith(".npz") else pathlib.Path(place) / "samples" / "samples.npz"
        draw(axis, np.load(file)[name or "samples"])
        axis.set_title(title)
        axis.set_axis_off()
    figure.savefig(path, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main(*sys.argv[1:])
