"""Inpainting of held-out images by an unconditional model: replacement, RePaint, and what needs no model.

    python -m benchmarks.inpainting runs/ddpm --picture docs/pictures/inpainting_digits.png
    python -m benchmarks.inpainting --exact
    python -m benchmarks.inpainting runs/ddpm_mnist --regions lower_half right_half

For every region and method four samples of each of 100 held-out images are drawn. The table has evaluations of D, PSNR
on painted pixels (of one sample, and of the mean of the four; from the mean squared error of all images, the range of
pixels being 2), and the boundary: the mean squared difference of neighbouring pixels across the edge of the region,
over that of the real images. *Right class* is the share of samples that a small classifier, trained on the training
images, takes for what the image is. LMMSE is the linear estimator with the mean and covariance of the training images,
the best that a Gaussian prior gives. `--exact` replaces the model by the exact denoiser of the training digits, each
widened to a Gaussian of standard deviation 0.12; `--exact configs/ddpm.py:mnist` by that of 10,000 images of MNIST.
"""

import math
import pathlib
import time

import jax.numpy as jnp
import numpy as np

from benchmarks import priors
from benchmarks.priors import Prior
from diffusion_jax.data.regions import read_mask
from diffusion_jax.evaluation import feature_classifier as classifiers
from diffusion_jax.evaluation import restoration, sheets
from diffusion_jax.guidance.inpainting import repaint, replacement
from diffusion_jax.guidance.operators import Operator

METHODS = {
    "replacement, 50 steps": (50, 50, replacement()),
    "replacement, 250 steps": (250, 250, replacement()),
    "RePaint(50, 5, 5)": (50, 230, repaint(5, 5)),
    "RePaint(250, 10, 5)": (250, 1210, repaint(10, 5)),
}
SAMPLES = 4  # of each image


def psnr(error: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of errors of pixels in [-1, 1]."""
    return 10 * math.log10(4 / np.mean(np.square(error)))


def boundary(x: np.ndarray, painted: np.ndarray) -> float:
    """Mean squared difference of neighbours of which one is painted and the other is known."""
    x, painted = x[..., 0], painted[..., 0]
    squares = [np.diff(x, axis=axis)[..., :, :] ** 2 for axis in (1, 2)]
    across = [np.diff(painted.astype(int), axis=axis) != 0 for axis in (0, 1)]
    return np.concatenate([square[:, edge].ravel() for square, edge in zip(squares, across, strict=True)]).mean()


def baselines(train: np.ndarray, truth: np.ndarray, painted: np.ndarray) -> dict[str, np.ndarray]:
    """Images that need no model: the mean, the nearest training image, and the linear estimate."""
    flat, x, known = train.reshape(len(train), -1), truth.reshape(len(truth), -1), ~painted.ravel()
    distances = (flat[:, known] ** 2).sum(1) - 2 * x[:, known] @ flat[:, known].T  # less a constant of each row
    seen = Operator(shape=truth.shape[1:], apply=lambda x, mask: jnp.where(painted, 0, x), noise=0.01)
    return {
        "mean image": np.broadcast_to(train.mean(0), truth.shape),
        "nearest training image": train[distances.argmin(1)],
        "LMMSE": restoration.linear_estimate(np.where(painted, 0, truth), seen, train),
    }


def inpainting(prior: Prior, regions: list[str], methods: list[str], num: int, picture: pathlib.Path) -> None:
    train, test, tiles = prior.train, prior.test, []
    truth, labels = test["x"][:num], test["label"][:num]
    shape = truth.shape[1:]
    classifier = classifiers.train_classifier(train["x"], train["label"], num_classes=int(train["label"].max()) + 1)

    def right(x: np.ndarray) -> float:
        """The share that is taken for its class; all images of one original are next to each other."""
        found = classifiers.probabilities(classifier, np.clip(x, -1, 1)).argmax(1)
        return float((found == np.repeat(labels, len(x) // num)).mean())

    print(f"{num} images, of which the classifier takes {right(truth):.2f} for what they are")
    for region in regions:
        mask = read_mask(region, shape)
        painted = mask >= 0
        hole = np.broadcast_to(painted, truth.shape)
        print(f"\n{region}\n")
        print("| method | evaluations | one sample, dB | mean of 4, dB | boundary | right class | seconds |")
        print("|---|---|---|---|---|---|---|")
        real = boundary(truth, painted)
        for name, x in baselines(train["x"][:10_000], truth, painted).items():
            x = np.where(hole, x, truth)
            edge = boundary(x, painted) / real
            print(f"| {name} | | {psnr((x - truth)[hole]):.1f} | | {edge:.2f} | {right(x):.2f} | |")
        cond = {"image": np.repeat(truth, SAMPLES, axis=0)}
        cond["mask"] = np.broadcast_to(mask, (len(cond["image"]), *mask.shape))
        for name in methods:
            steps, evaluations, editing = METHODS[name]
            start = time.monotonic()
            x = prior.drawn(editing, steps, cond)
            seconds, of_image = time.monotonic() - start, x.reshape(num, SAMPLES, *shape)
            one = (x - cond["image"])[np.broadcast_to(painted, x.shape)]
            mean, edge = (of_image.mean(1) - truth)[hole], boundary(x, painted) / real
            row = f"{psnr(one):.1f} | {psnr(mean):.1f} | {edge:.2f} | {right(x):.2f} | {seconds:.0f}"
            print(f"| {name} | {evaluations} | {row} |", flush=True)
            if name.startswith("RePaint(50"):
                chequered = np.where(np.indices(shape[:2]).sum(0) % 2 == 0, -0.25, 0.25)[..., None]
                known = np.where(hole, chequered, truth)
                shown = [truth[:8, None], known[:8, None], of_image[:8], of_image[:8].mean(1)[:, None]]
                tiles.append(np.concatenate(shown, 1))
    if picture:
        rows = np.concatenate(tiles, axis=1)
        sheets.image_sheet(rows.reshape(-1, *rows.shape[2:]), path=picture, columns=rows.shape[1])
        print(f"\n{picture}")


def main() -> None:
    parser = priors.arguments(__doc__)
    parser.add_argument("--regions", nargs="+", default=["lower_half", "box"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--num", type=int, default=100, help="held-out images")
    args = parser.parse_args()
    inpainting(priors.opened(parser, args), args.regions, args.methods, args.num, args.picture)


if __name__ == "__main__":
    main()
