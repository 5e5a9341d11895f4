"""Inpainting of held-out digits by an unconditional model: replacement, RePaint, and what needs no model.

    python -m benchmarks.inpainting runs/ddpm --picture docs/pictures/inpainting_digits.png
    python -m benchmarks.inpainting --exact

For every region and method four samples of each of 100 held-out images are drawn. The table has evaluations of D, PSNR
on painted pixels (of one sample, and of the mean of the four; from the mean squared error of all images, the range of
pixels being 2), and the boundary: the mean squared difference of neighbouring pixels across the edge of the region,
over that of the real images. LMMSE is the linear estimator with the mean and covariance of the training images, the
best that a Gaussian prior gives. `--exact` replaces the model by the exact denoiser of the training digits, each
widened to a Gaussian of standard deviation 0.12.

With `--strokes` the table is that of SDEdit instead, of digits as coarse blocks of four grey levels: for every strength
the distance to the guide, over that of random digits, and the Frechet distance in the features of a small classifier,
over that of the guides.
"""

import argparse
import dataclasses
import functools
import math
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import data, parameterizations, processes, solvers, systems
from diffusion_jax.config import build, from_file, trained
from diffusion_jax.data.regions import read_mask
from diffusion_jax.evaluation import feature_classifier as classifiers
from diffusion_jax.evaluation import metrics, sheets
from diffusion_jax.guidance.editing import Editing, sdedit
from diffusion_jax.guidance.inpainting import repaint, replacement
from diffusion_jax.solvers import grids
from diffusion_jax.training.rows import in_batches

METHODS = {
    "replacement, 50 steps": (50, 50, replacement()),
    "replacement, 250 steps": (250, 250, replacement()),
    "RePaint(50, 5, 5)": (50, 230, repaint(5, 5)),
    "RePaint(250, 10, 5)": (250, 1210, repaint(10, 5)),
}
SAMPLES = 4  # of each image
STRENGTHS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)


def psnr(error: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of errors of pixels in [-1, 1]."""
    return 10 * math.log10(4 / np.mean(np.square(error)))


def boundary(x: np.ndarray, painted: np.ndarray) -> float:
    """Mean squared difference of neighbours of which one is painted and the other is known."""
    x, painted = x[..., 0], painted[..., 0]
    squares = [np.diff(x, axis=axis)[..., :, :] ** 2 for axis in (1, 2)]
    across = [np.diff(painted.astype(int), axis=axis) != 0 for axis in (0, 1)]
    return np.concatenate([square[:, edge].ravel() for square, edge in zip(squares, across, strict=True)]).mean()


def exact_prior(x: np.ndarray, width: float = 0.12) -> systems.Diffusion:
    """The diffusion model whose data are the images x with Gaussian noise of standard deviation `width`, without error.

    Its denoiser is a softmax over the images: no network, no training.
    """
    process, means, v = processes.discrete_vp(), jnp.asarray(x.reshape(len(x), -1)), width**2

    def apply(params, x, c_noise, cond, *, key=None):
        alpha, sigma = (f(c_noise / 999)[:, None] for f in (process.alpha, process.sigma))
        flat, variance = x.reshape(len(x), -1), alpha**2 * v + sigma**2
        products = alpha * (flat @ means.T) - alpha**2 * (means**2).sum(1) / 2
        nearest = jax.nn.softmax(products / variance) @ means
        return (nearest + alpha * v / variance * (flat - alpha * nearest)).reshape(x.shape)

    return systems.Diffusion(
        init_network=lambda key: {},
        apply=apply,
        process=process,
        param=parameterizations.x0_prediction(),
        loss_fn=None,
        solver=solvers.ancestral(),
        grid=grids.discrete("linspace"),
        steps=50,
        shape=x.shape[1:],
    )


def drawn(model, editing: Editing, steps: int, cond: dict[str, np.ndarray]) -> np.ndarray:
    """One edit of each row of `cond` by `model`, a system and its parameters, with the ancestral sampler."""
    system, params = model
    system = dataclasses.replace(system, editing=editing, steps=steps, solver=solvers.ancestral())
    draw = jax.jit(lambda ids, cond: system.draw(params, jax.random.key(0), ids, cond))
    return in_batches(draw, len(cond["image"]), 500, cond)["samples"]


def baselines(train: np.ndarray, truth: np.ndarray, painted: np.ndarray) -> dict[str, np.ndarray]:
    """Images that need no model: the mean, the nearest training image, and the linear estimate."""
    flat, x, hole = train.reshape(len(train), -1), truth.reshape(len(truth), -1), painted.ravel()
    mean, covariance = flat.mean(0), np.cov(flat, rowvar=False) + 1e-4 * np.eye(flat.shape[1])
    distances = ((x[:, None, ~hole] - flat[None, :, ~hole]) ** 2).sum(-1)
    gain = covariance[np.ix_(hole, ~hole)] @ np.linalg.inv(covariance[np.ix_(~hole, ~hole)])
    linear = x.copy()
    linear[:, hole] = mean[hole] + (x[:, ~hole] - mean[~hole]) @ gain.T
    guesses = {"mean image": np.broadcast_to(mean, x.shape), "nearest training image": flat[distances.argmin(1)]}
    return {name: g.reshape(truth.shape) for name, g in (guesses | {"LMMSE": linear}).items()}


def inpainting(model, train, test, regions: list[str], num: int, picture: pathlib.Path) -> None:
    truth, tiles = test["x"][:num], []
    for region in regions:
        mask = read_mask(region, truth.shape[1:])
        painted = mask >= 0
        hole = np.broadcast_to(painted, truth.shape)
        print(f"\n{region}, {num} images\n")
        print(
            "| method | evaluations | one sample, dB | mean of 4, dB | boundary | seconds |\n|---|---|---|---|---|---|"
        )
        real = boundary(truth, painted)
        for name, x in baselines(train["x"], truth, painted).items():
            edge = boundary(np.where(hole, x, truth), painted) / real
            print(f"| {name} | | {psnr((x - truth)[hole]):.1f} | | {edge:.2f} | |")
        cond = {"image": np.repeat(truth, SAMPLES, axis=0)}
        cond["mask"] = np.broadcast_to(mask, (len(cond["image"]), *mask.shape))
        for name, (steps, evaluations, editing) in METHODS.items():
            start = time.monotonic()
            x = drawn(model, editing, steps, cond).reshape(num, SAMPLES, *truth.shape[1:])
            seconds = time.monotonic() - start
            one, mean = (x - truth[:, None])[np.broadcast_to(hole[:, None], x.shape)], (x.mean(1) - truth)[hole]
            edge = boundary(x.reshape(-1, *truth.shape[1:]), painted) / real
            print(
                f"| {name} | {evaluations} | {psnr(one):.1f} | {psnr(mean):.1f} | {edge:.2f} | {seconds:.0f} |",
                flush=True,
            )
            if name.startswith("RePaint(50"):
                chequered = np.where(np.indices(truth.shape[1:3]).sum(0) % 2 == 0, -0.25, 0.25)[..., None]
                known = np.where(hole, chequered, truth)
                tiles.append(np.concatenate([truth[:8, None], known[:8, None], x[:8], x[:8].mean(1)[:, None]], 1))
    if picture:
        rows = np.concatenate(tiles, axis=1)
        sheets.image_sheet(rows.reshape(-1, *rows.shape[2:]), path=picture, columns=rows.shape[1])
        print(f"\n{picture}")


def strokes(x: np.ndarray) -> np.ndarray:
    """Coarse drawings of images: blocks of 2 x 2 pixels (of 4 x 4 at 28) in four grey levels."""
    n, side, _, channels = x.shape
    block = max(2, side // 7)
    coarse = x.reshape(n, side // block, block, side // block, block, channels).mean((2, 4))
    levels = np.round((coarse + 1) / 2 * 3) / 3 * 2 - 1
    return levels.repeat(block, axis=1).repeat(block, axis=2).astype(np.float32)


def edits_of_strokes(model, train, test, num: int, picture: pathlib.Path) -> None:
    classifier = classifiers.train_classifier(train["x"], train["label"], num_classes=10)
    guides = strokes(test["x"][:num])

    def judged(x: np.ndarray) -> dict[str, float]:
        options = dict(classifier=classifier, labels=test["label"][: len(x)])
        return metrics.classifier_metrics(np.clip(x, -1, 1), train, test, **options)

    def distance(x: np.ndarray) -> float:
        return float(np.sqrt(np.square(x - guides).sum((1, 2, 3))).mean())

    others, base = distance(np.roll(test["x"][:num], 1, axis=0)), judged(guides)
    print(f"\nstrokes, {num} images\n\n| strength | distance to the guide | Frechet distance | class of the guide |")
    print(f"|---|---|---|---|\n| 0, the guide | 0 | 1 | {base['condition_accuracy']:.2f} |")
    tiles = [test["x"][:8], guides[:8]]
    for strength in STRENGTHS:
        x = drawn(model, sdedit(strength), 250, {"image": guides})
        found = judged(x)
        frechet = found["classifier_frechet"] / base["classifier_frechet"]
        row = f"{distance(x) / others:.2f} | {frechet:.2f} | {found['condition_accuracy']:.2f}"
        print(f"| {strength} | {row} |", flush=True)
        tiles.append(x[:8])
    if picture:
        sheets.image_sheet(np.stack(tiles, 1).reshape(-1, *guides.shape[1:]), path=picture, columns=len(tiles))
        print(f"\n{picture}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", nargs="?", default="", help="of a trained diffusion model of images")
    parser.add_argument("--exact", action="store_true", help="the exact denoiser of the training digits instead")
    parser.add_argument("--regions", nargs="+", default=["lower_half", "box"])
    parser.add_argument("--num", type=int, default=100, help="held-out images")
    parser.add_argument("--strokes", action="store_true", help="SDEdit of strokes instead")
    parser.add_argument("--picture", type=pathlib.Path, default=None)
    args = parser.parse_args()

    if bool(args.workdir) == args.exact:
        parser.error("give the work directory of a trained model, or --exact")

    def made(config):
        built = build.build(config)
        return built.system, built.recipe.role

    run = trained.open_run(args.workdir, "workdir", made, "denoiser") if args.workdir else None
    source = build.build(run.config if run else from_file("configs/ddpm.py")).source
    train, test = (data.arrays(source(evaluation=e)) for e in (False, True))
    model = (run.system, run.load()) if run else (exact_prior(train["x"]), {"network": {}})
    function = edits_of_strokes if args.strokes else functools.partial(inpainting, regions=args.regions)
    function(model, train, test, num=args.num, picture=args.picture)


if __name__ == "__main__":
    main()
