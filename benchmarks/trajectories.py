"""A picture of the paths of flows in the plane: from noise, grey, to the samples, blue, of one run next to another.

    python -m benchmarks.trajectories docs/pictures/trajectories.png runs/flow2d runs/reflow2d

Each run of points in the plane is solved by 100 steps of Euler's method from the same noise.
"""

from __future__ import annotations

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

import diffusion_jax
from diffusion_jax import solvers
from diffusion_jax.processes import prior
from diffusion_jax.solvers.sampling import sample

NUM, SIDE, EXTENT, SCALE = 160, 420, 3.0, 2


def panel(run: str) -> Image.Image:
    """The paths of one run; the straightness is the mean squared distance of the velocity from that of the chord."""
    model = diffusion_jax.load(run)
    x_T = prior(model.process, jax.random.key(0), (NUM, 2))
    times = jnp.linspace(1.0, 0.0, 101)
    D = model.denoiser()
    paths = np.asarray(sample(solvers.euler(), model.process, D, jax.random.key(0), x_T, times, trajectory=True))
    steps, chord = np.diff(paths, axis=0) * 100, paths[-1] - paths[0]
    print(f"{pathlib.Path(run).name}: straightness {np.mean(np.sum((steps - chord) ** 2, -1)):.4f}")
    image = Image.new("RGB", (SCALE * SIDE, SCALE * SIDE), "white")
    draw = ImageDraw.Draw(image)
    pixels = (paths / EXTENT * [1, -1] + 1) / 2 * SCALE * SIDE
    for path in pixels.swapaxes(0, 1):
        draw.line([tuple(point) for point in path], fill=(225, 150, 90), width=SCALE)
    for points, colour in ((pixels[0], (140, 140, 140)), (pixels[-1], (30, 70, 170))):
        for x, y in points:
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=colour)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=pathlib.Path)
    parser.add_argument("runs", nargs="+")
    arguments = parser.parse_args()
    panels = [panel(run) for run in arguments.runs]
    whole = Image.new("RGB", (SIDE * len(panels), SIDE), "white")
    for i, image in enumerate(panels):
        whole.paste(image, (i * SIDE, 0))
    whole.save(arguments.picture, optimize=True)


if __name__ == "__main__":
    main()
