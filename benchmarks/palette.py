"""Palette: every task on every held-out image, next to a regression by a network of equal size.

    python -m benchmarks.palette runs/palette runs/palette_regression --picture runs/palette/tasks.png

For each task the table has the PSNR over unknown pixels of the degraded image, of the regression, of one sample and of
the mean of several; the Frechet ratio, the Frechet distance from the training images in the features of a small
classifier of their labels, over that of the held-out images; and for colorization the variance of the saturation of an
image, max - min of its channels, over that of the real one. JPEG files have the quality `--quality`. The picture has
for each task a row of real images, and below it the degraded ones, the regression and samples.
"""

import argparse
import pathlib

import jax
import numpy as np

import diffusion_jax
from diffusion_jax import data
from diffusion_jax.data.corruptions import corrupted
from diffusion_jax.evaluation import feature_classifier as classifiers
from diffusion_jax.evaluation import frechet, restoration, sheets

SHOWN = 16  # images in a row of the picture


def saturation(x: np.ndarray) -> float:
    """The mean over images of the variance of max - min of the channels."""
    return float(np.ptp(np.clip(x, -1, 1), axis=-1).var((1, 2)).mean())


def requests_of(task: str, number: int, x: np.ndarray, quality: int) -> dict[str, np.ndarray]:
    """The conditions of one task for images x, the same in every call."""
    u = np.random.default_rng(number).random((len(x), 2), np.float32)
    return corrupted((task,), (quality, quality)).make(x, u) | {"task": np.full(len(x), number, np.int32)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="work directory of a trained model")
    parser.add_argument("regression", help="work directory of the regression, a variant of the same config")
    parser.add_argument("--draws", type=int, default=8, help="samples of each image")
    parser.add_argument("--num", type=int, default=500, help="held-out images, at most")
    parser.add_argument("--quality", type=int, default=5, help="of JPEG files")
    parser.add_argument("--picture", type=pathlib.Path, default=None)
    args = parser.parse_args()
    model, regression = (diffusion_jax.load(run) for run in (args.run, args.regression))
    train, test = data.arrays(model.job.source), data.arrays(model.job.held_out)
    truth = test["x"][: args.num]
    classifier = classifiers.train_classifier(train["x"], train["label"], num_classes=int(train["label"].max()) + 1)

    def features(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return frechet.statistics(classifiers.features(classifier, np.clip(x, -1, 1)))

    reference = features(train["x"])
    real = frechet.frechet_distance(*features(truth), *reference)
    print(f"{len(truth)} held-out images, {args.draws} samples of each; Frechet distance {real:.3f}\n")
    print("| task | image | PSNR, dB | Frechet ratio | saturation |\n|---|---|---|---|---|")
    tiles = []
    for number, name in enumerate(model.config.system.tasks):
        cond = requests_of(name, number, truth, args.quality)
        draws = [np.asarray(model.sample(jax.random.key(seed), len(truth), cond)) for seed in range(args.draws)]
        found = {
            "degraded": cond["image"],
            "regression": np.asarray(regression.sample(jax.random.key(0), len(truth), cond)),
            "one sample": draws[0],
            f"mean of {args.draws}": np.mean(draws, 0),
        }
        for words, x in found.items():
            rows = np.concatenate(draws) if x is draws[0] else x
            values = restoration.by_task(rows, truth, cond["image"], cond["mask"] >= 0, [name] * len(truth))
            ratio = frechet.frechet_distance(*features(x), *reference) / real
            colour = f"{saturation(x) / saturation(truth):.2f}" if name == "colorization" else ""
            print(f"| {name} | {words} | {values[f'tasks_{name}_psnr']:.1f} | {ratio:.2f} | {colour} |", flush=True)
        tiles += [truth[:SHOWN], *(x[:SHOWN] for x in list(found.values())[:2]), *(x[:SHOWN] for x in draws[:2])]
    if args.picture:
        sheets.image_sheet(np.concatenate(tiles), columns=SHOWN, path=args.picture)


if __name__ == "__main__":
    main()
