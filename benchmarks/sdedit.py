"""SDEdit of strokes, coarse drawings of held-out images: what an edit keeps of its guide, and how real it is.

    python -m benchmarks.sdedit --exact --num 500 --picture docs/pictures/sdedit_strokes.png
    python -m benchmarks.sdedit runs/ddpm

The guides are blocks of pixels (2 x 2 of 8 x 8, 4 x 4 of 28 x 28) in four grey levels. For every strength the table has

- the noise of a block: sigma / alpha over the side of the block, the standard deviation of the mean of its pixels
- the distance of the edit to the guide, over that of the image of another guide, and the same of the means of blocks,
  which are all that a guide says; the row of real images has those of the images that the guides were made of
- the Frechet distance to real images, over that of the guides, in the features of a small classifier
- the share of edits that this classifier takes for the class of the guide
"""

import pathlib

import numpy as np

from benchmarks import priors
from benchmarks.priors import Prior
from diffusion_jax.evaluation import feature_classifier as classifiers
from diffusion_jax.evaluation import metrics, sheets
from diffusion_jax.guidance.editing import sdedit

STRENGTHS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6)


def block(x: np.ndarray) -> int:
    """The side of a block of strokes."""
    return max(2, x.shape[1] // 7)


def means(x: np.ndarray) -> np.ndarray:
    """The means of the blocks of images, [n, rows, columns, channels]."""
    n, side, _, channels = x.shape
    b = block(x)
    return x.reshape(n, side // b, b, side // b, b, channels).mean((2, 4))


def strokes(x: np.ndarray) -> np.ndarray:
    """Coarse drawings of images: blocks in four grey levels."""
    levels = np.round((means(x) + 1) / 2 * 3) / 3 * 2 - 1
    return levels.repeat(block(x), axis=1).repeat(block(x), axis=2).astype(np.float32)


def edits_of_strokes(prior: Prior, steps: int, num: int, picture: pathlib.Path) -> None:
    train, test, process = prior.train, prior.test, prior.system.process
    classifier = classifiers.train_classifier(train["x"], train["label"], num_classes=int(train["label"].max()) + 1)
    truth = test["x"][:num]
    guides, others = strokes(truth), np.roll(truth, 1, axis=0)

    def distance(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.sqrt(np.square(x - y).sum((1, 2, 3))).mean())

    def described(x: np.ndarray, frechet_of_guides: float = 1.0) -> tuple[list[str], float]:
        options = dict(classifier=classifier, labels=test["label"][: len(x)])
        found = metrics.classifier_metrics(np.clip(x, -1, 1), train, test, **options)
        numbers = [
            distance(x, guides) / distance(others, guides),
            distance(means(x), means(guides)) / distance(means(others), means(guides)),
            found["classifier_frechet"] / frechet_of_guides,
            found["condition_accuracy"],
        ]
        return [f"{number:.2f}" for number in numbers], found["classifier_frechet"]

    base = described(guides)[1]
    print(f"\nstrokes, {num} images, {steps} steps\n")
    print("| strength | noise of a block | distance to the guide | of blocks | Frechet distance | class of the guide |")
    print("|---|---|---|---|---|---|")
    for name, x in {"0, the guide": guides, "real images": truth}.items():
        print(f"| {name} | | {' | '.join(described(x, base)[0])} |")
    tiles, times = [truth[:8], guides[:8]], prior.system.grid(process, steps)
    for strength in STRENGTHS:
        x, t = prior.drawn(sdedit(strength), steps, {"image": guides}), times[steps - int(steps * strength)]
        noise = float(process.sigma(t) / process.alpha(t)) / block(x)
        print(f"| {strength} | {noise:.2f} | {' | '.join(described(x, base)[0])} |", flush=True)
        tiles.append(x[:8])
    if picture:
        sheets.image_sheet(np.stack(tiles, 1).reshape(-1, *guides.shape[1:]), path=picture, columns=len(tiles))
        print(f"\n{picture}")


def main() -> None:
    parser = priors.arguments(__doc__)
    parser.add_argument("--steps", type=int, default=250, help="of the whole grid")
    parser.add_argument("--num", type=int, default=100, help="held-out images")
    args = parser.parse_args()
    edits_of_strokes(priors.opened(parser, args), args.steps, args.num, args.picture)


if __name__ == "__main__":
    main()
