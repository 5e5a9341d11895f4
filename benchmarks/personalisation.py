"""Personalised models of digits, measured by nearest neighbours among digits and by edits that are computed.

    python -m benchmarks.personalisation subjects runs/words runs/dreambooth runs/dreambooth_plain runs/dreambooth_lora
    python -m benchmarks.personalisation tokens runs/inversion
    python -m benchmarks.personalisation edits runs/edits

`subjects`: the shares of samples of "my three" that are inverted threes, and of "three" and "seven" that are threes and
sevens as they were. The nearest neighbours among the digits of scikit-learn and their inversions decide, which know
nothing of the models.

`tokens`: the shares of samples of "<new>" that are threes, for the learned vectors and for random ones.

`edits`: PSNR of edits of held-out digits against the exact edit, next to that of the unchanged image (the identity) and
that under the instruction of another edit.
"""

from __future__ import annotations

import argparse
import pathlib

import jax
import numpy as np

import diffusion_jax
from diffusion_jax import data
from diffusion_jax.data.captions import texts_of
from diffusion_jax.evaluation import sheets
from diffusion_jax.evaluation.reconstruction import psnr
from diffusion_jax.run.pretrained import Pretrained

DIGITS = dict(name="digits", image_size=8, channels=1)
PROMPTS = {"my three": (3, True), "three": (3, False), "seven": (7, False)}  # prompt -> (digit, inverted)
NEIGHBOURS = 5


def nearest(x: np.ndarray) -> np.ndarray:
    """The class of each image, digit + 10 if it is inverted, by a vote of its nearest neighbours in pixels."""
    train = data.arrays(data.load(**DIGITS, split="train"))
    known = np.concatenate([train["x"], -train["x"]]).reshape(2 * len(train["x"]), -1)
    labels = np.concatenate([train["label"], train["label"] + 10])
    distances = ((x.reshape(len(x), 1, -1) - known) ** 2).sum(-1)
    votes = labels[np.argsort(distances, axis=1)[:, :NEIGHBOURS]]
    return np.array([np.bincount(row).argmax() for row in votes])


def drawn(model: Pretrained, prompt: str, num: int) -> np.ndarray:
    """`num` samples of a prompt, in [-1, 1]."""
    return np.clip(model.sample(jax.random.key(0), num, prompt), -1, 1)


def subjects(runs: list[pathlib.Path], num: int) -> list[np.ndarray]:
    """The table of runs, and a row of samples of every prompt for each of them."""
    test = data.arrays(data.load(**DIGITS, split="test"))
    print(f"nearest neighbours of held-out digits: {np.mean(nearest(test['x']) == test['label']):.3f} right\n")
    print(f"| run | {' | '.join(PROMPTS)} |\n|---|{'---|' * len(PROMPTS)}")
    tiles = []
    for run in runs:
        model, cells = diffusion_jax.load(run), []
        for prompt, (digit, inverted) in PROMPTS.items():
            x = drawn(model, prompt, num)
            cells.append(f"{np.mean(nearest(x) == digit + 10 * inverted):.2f}")
            tiles.append(x[:8])
        print(f"| {run.name} | {' | '.join(cells)} |", flush=True)
    return tiles


def tokens(runs: list[pathlib.Path], num: int) -> list[np.ndarray]:
    """The table of runs of textual inversion, and rows of samples of learned and of random vectors."""
    print("| run | learned vectors | random vectors |\n|---|---|---|")
    tiles = []
    for run in runs:
        model = diffusion_jax.load(run)
        start = jax.jit(model.system.init)(jax.random.key(1))["vectors"]
        pair = [model.params, {**model.params, "vectors": start}]
        cond = model.conditions(model.config.sampling.cond, num)
        found = [
            np.clip(model.system.sample(params, jax.random.key(0), num, cond)["samples"], -1, 1) for params in pair
        ]
        digit = model.config.data.instance.only[0]
        print(f"| {run.name} | {' | '.join(f'{np.mean(nearest(x) == digit):.2f}' for x in found)} |", flush=True)
        tiles += [x[:8] for x in found]
    return tiles


def edited(runs: list[pathlib.Path], num: int) -> list[np.ndarray]:
    """The table of edits, and rows of images, edits and exact edits."""
    tiles = []
    for run in runs:
        model = diffusion_jax.load(run)
        batch = data.shuffled(model.job.held_out, num)
        cond = {name: batch[name] for name in ("image", "tokens")}
        other = {**cond, "tokens": np.roll(cond["tokens"], 1, axis=0)}
        x, wrong = (np.clip(model.sample(jax.random.key(0), num, given), -1, 1) for given in (cond, other))
        texts = np.array(texts_of(batch["tokens"]))
        changed = texts != np.roll(texts, 1)
        print(
            f"\n{run.name}, {num} edits\n\n| instruction | PSNR | identity | another instruction |\n|---|---|---|---|"
        )
        for text in (*sorted(set(texts)), "all"):
            rows = (texts == text) | (text == "all")
            cells = [
                f"{psnr(images[chosen], batch['x'][chosen]).mean():.1f}"
                for images, chosen in ((x, rows), (batch["image"], rows), (wrong, rows & changed))
            ]
            print(f"| {text} | {' | '.join(cells)} |", flush=True)
        tiles += [batch["image"][:12], x[:12], batch["x"][:12]]
    return tiles


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("subjects", "tokens", "edits"))
    parser.add_argument("runs", nargs="+", type=pathlib.Path, help="work directories")
    parser.add_argument("--num", type=int, default=200, help="samples of each prompt, or edits")
    parser.add_argument("--picture", type=pathlib.Path, help="a sheet of samples")
    flags = parser.parse_args()
    rows = {"subjects": subjects, "tokens": tokens, "edits": edited}[flags.what](flags.runs, flags.num)
    if flags.picture:
        images = np.concatenate(rows)
        sheets.image_sheet(images, path=flags.picture, columns=len(rows[0]))
