"""A picture of how a masked diffusion model fills in the middle of a held-out passage, and in which order.

    python -m benchmarks.unmasking runs/shakespeare --picture docs/pictures/unmasking.png [--hidden 64] [--passage 3]

The first row is the held-out passage, the others are states of the sampler at falling times: hidden characters are
dots, drawn ones have the colour of the time at which they were drawn, known ones are grey. "/" is the end of a line.
"""

from __future__ import annotations

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import diffusion_jax
from diffusion_jax import sampling
from diffusion_jax.guidance.infilling import UNKNOWN
from diffusion_jax.run.pretrained import Pretrained

SHOWN = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)  # times of the rows
WIDTH, CELL, MARGIN = 64, (9, 18), 8  # characters in a line, pixels of one, and around all
GREY, BLACK, DOT = (150, 150, 150), (0, 0, 0), (200, 200, 200)
EARLY, LATE = np.array((200, 30, 30)), np.array((30, 60, 200))


def states(model: Pretrained, known: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The times of the grid, and the ids of one passage at each of them."""
    system, cond = model.system, {"known": known[None]}
    times = system.grid(system.process, system.steps)
    x_T = system.process.prior(jax.random.split(jax.random.key(seed), 1), (1, len(known)))
    x_T = jnp.where(known == UNKNOWN, x_T, known)
    solver = system.editing.around(system.solver, cond)
    D = jax.jit(system.denoiser(model.params, cond))
    x = sampling.sample(solver, system.process, D, jax.random.key(seed + 1), x_T, times, trajectory=True)
    return np.asarray(times), np.asarray(x)[:, 0]


def picture(rows: list[tuple[str, list[tuple[int, int, int]]]]) -> Image.Image:
    """Texts with a colour for each character, each on as many lines as it needs."""
    lines = -(-len(rows[0][0]) // WIDTH)
    step = (lines + 0.6) * CELL[1]
    image = Image.new("RGB", (WIDTH * CELL[0] + 2 * MARGIN, int(len(rows) * step) + MARGIN), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for top, (text, colours) in enumerate(rows):
        for i, (character, colour) in enumerate(zip(text, colours, strict=True)):
            x = MARGIN + (i % WIDTH + 0.5) * CELL[0]
            y = MARGIN + top * step + (i // WIDTH + 0.5) * CELL[1]
            draw.text((x, y), character, fill=colour, font=font, anchor="mm")
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="work directory of a masked model")
    parser.add_argument("--picture", type=pathlib.Path, required=True)
    parser.add_argument("--hidden", type=int, default=64, help="characters in the middle that are hidden")
    parser.add_argument("--passage", type=int, default=0, help="number of the held-out window")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    changes = {"editing.name": "infilling", "editing.length": arguments.hidden}
    model = diffusion_jax.load(arguments.run, changes=changes)
    decode = model.job.source.facts["decode"]
    text = lambda ids: decode(ids[None])[0].replace("\n", "/")  # noqa: E731
    truth = model.job.held_out.batch(np.array([arguments.passage]))["x"][0]
    known = model.system.conditions["known"].operator.measure(truth[None])[0]
    times, ids = states(model, known, arguments.seed)
    hidden = known == UNKNOWN
    drawn_at = times[np.argmax(ids == ids[-1], axis=0)]  # an absorbing process draws a character once
    colours = [tuple(np.round(t * EARLY + (1 - t) * LATE).astype(int).tolist()) for t in drawn_at]
    rows = [(text(truth), [BLACK if h else GREY for h in hidden])]
    print(f"held out  {rows[0][0]}")
    for t in SHOWN:
        state = ids[np.abs(times - t).argmin()]
        masked = state == model.system.process.mask
        shown = "".join("·" if m else c for m, c in zip(masked, text(state), strict=True))
        colour = [DOT if m else c if h else GREY for m, h, c in zip(masked, hidden, colours, strict=True)]
        rows.append((shown, colour))
        print(f"t = {t:.1f}   {shown}")
    print(f"{(ids[-1] == truth)[hidden].mean():.3f} of the hidden characters are those of the passage")
    picture(rows).save(arguments.picture)


if __name__ == "__main__":
    main()
