"""Inversion of images: reconstruction by solver and steps, interpolation, and class editing, with trained runs.

    python -m benchmarks.inversion runs/cfg --tables reconstruction classes --picture docs/pictures/inversion.png
    python -m benchmarks.inversion runs/ddpm --tables reconstruction interpolation

Held-out images are encoded, by a class-conditional run under their own class, and decoded

- under the same one, without guidance: the table has the PSNR of this reconstruction by evaluations of D in encoding,
  which are as many in decoding, and the order of the error: log2 of its ratio to that of half the steps
- from the midpoint between two of them, by an unconditional run: distances to the nearest training image are over those
  of held-out images, and *certainty* is the mean largest probability of a small classifier
- under another class, for scales of guidance: the share that the classifier takes for this class, the distance to the
  image over that of random images of this class, and the correlation of the ink (the mean of the pixels) with that of
  the image; samples of this class from noise are next to them
"""

import math

import numpy as np

from benchmarks import priors
from benchmarks.priors import Prior
from diffusion_jax import solvers
from diffusion_jax.evaluation import feature_classifier as classifiers
from diffusion_jax.evaluation import sheets
from diffusion_jax.evaluation.feature_classifier import Classifier
from diffusion_jax.guidance import inversion, steering
from diffusion_jax.guidance.editing import none
from diffusion_jax.solvers import grids

# Of a solver: evaluations of D per step.
SOLVERS = {
    "ddim": (solvers.ddim(), 1),
    "dpm_solver, order 2": (solvers.dpm_solver(order=2), 2),
    "dpm_solver, order 3": (solvers.dpm_solver(order=3), 3),
}
EVALUATIONS = (24, 48, 96, 192)
SCALES = (1.0, 2.0, 3.0)
GRIDS = {
    "discrete, trailing, end=1": grids.discrete("trailing", end=1),
    "uniform_log_snr": grids.uniform_log_snr(t_min=1e-3, t_max=0.999),
}
# What the tables of interpolation and of classes are drawn by.
USED = dict(solver=solvers.ddim(), steps=100, grid=GRIDS["discrete, trailing, end=1"], denoise=True)


def reconstruction(prior: Prior, classifier: Classifier, cond: dict[str, np.ndarray]) -> None:
    process = prior.system.process
    for name, grid in GRIDS.items():
        print(f"\nreconstruction, {name}\n\n| solver | {' | '.join(map(str, EVALUATIONS))} |")
        print(f"|---|{'---|' * len(EVALUATIONS)}")
        for solver_name, (solver, each) in SOLVERS.items():
            row, before = [], None
            for evaluations in EVALUATIONS:
                steps = evaluations // each
                fields = dict(solver=solver, grid=grid, guidance=steering.none(), threshold=lambda D: D)
                x = prior.drawn(inversion.inversion(), steps, cond, **fields)
                error = np.sqrt(np.square(x - process.alpha(grid(process, steps)[-1]) * cond["image"]).mean())
                order = "" if before is None else f" ({math.log2(before / error):.1f})"
                row, before = [*row, f"{20 * math.log10(2 / error):.1f}{order}"], error
            print(f"| {solver_name} | {' | '.join(row)} |", flush=True)


def interpolation(prior: Prior, classifier: Classifier, cond: dict[str, np.ndarray]) -> np.ndarray:
    train, num = prior.train["x"].reshape(len(prior.train["x"]), -1), len(cond["image"])

    def nearest(x: np.ndarray) -> float:
        flat = x.reshape(len(x), -1)
        squares = (flat**2).sum(1)[:, None] - 2 * flat @ train.T + (train**2).sum(1)
        return float(np.sqrt(np.maximum(squares.min(1), 0)).mean())

    def certainty(x: np.ndarray) -> float:
        return float(classifiers.probabilities(classifier, np.clip(x, -1, 1)).max(1).mean())

    held_out = cond["image"]
    print("\nmidpoints\n\n| | distance to the nearest training image | certainty |\n|---|---|---|")
    print(f"| held-out images | 1 | {certainty(held_out):.2f} |")
    average = (held_out + np.roll(held_out, -1, axis=0)) / 2
    print(f"| mean of the pixels | {nearest(average) / nearest(held_out):.2f} | {certainty(average):.2f} |")
    cond = {"image": held_out, "label": cond["label"]}
    cond |= {"other": np.roll(held_out, -1, axis=0), "weight": np.full(num, 0.5, np.float32)}
    fields = USED | dict(guidance=steering.none())
    for path in inversion.PATHS:
        x = prior.drawn(inversion.between(path), cond=cond, **fields)
        print(f"| {path} | {nearest(x) / nearest(held_out):.2f} | {certainty(x):.2f} |", flush=True)
    rows = {name: np.repeat(value[:4], 10, axis=0) for name, value in cond.items()}
    rows["weight"] = np.tile(np.linspace(0, 1, 10, dtype=np.float32), 4)
    return prior.drawn(inversion.between(), cond=rows, **fields).reshape(4, 10, *held_out.shape[1:])


def classes(prior: Prior, classifier: Classifier, cond: dict[str, np.ndarray]) -> np.ndarray:
    image, own, num = cond["image"], cond["source_label"], len(cond["image"])
    random, kinds = np.random.default_rng(0), int(prior.train["label"].max()) + 1
    target = (own + random.integers(1, kinds, num)) % kinds
    others = np.stack([random.choice(np.flatnonzero(prior.train["label"] == label)) for label in target])
    others = prior.train["x"][others]

    def ink(x: np.ndarray) -> np.ndarray:
        return x.mean((1, 2, 3))

    def distance(x: np.ndarray) -> float:
        return float(np.sqrt(np.square(x - image).sum((1, 2, 3))).mean())

    def described(x: np.ndarray) -> str:
        found = classifiers.probabilities(classifier, np.clip(x, -1, 1)).argmax(1)
        ratio, kept = distance(x) / distance(others), np.corrcoef(ink(x), ink(image))[0, 1]
        return f"{(found == target).mean():.2f} | {ratio:.2f} | {kept:.2f}"

    print("\nclasses\n\n| | scale | requested class | distance to the image | ink |\n|---|---|---|---|---|")
    print(f"| training images of the class | | {described(others)} |")
    asked = {**cond, "label": target}
    for scale in SCALES:
        fields = USED | dict(guidance=steering.classifier_free(scale=scale))
        for name, editing in {"from noise": none(), "inversion": inversion.inversion()}.items():
            x = prior.drawn(editing, cond=asked, **fields)
            print(f"| {name} | {scale:g} | {described(x)} |", flush=True)
    rows = {name: np.repeat(value[:8], kinds, axis=0) for name, value in cond.items()}
    rows["label"] = np.tile(np.arange(kinds), 8)
    fields = USED | dict(guidance=steering.classifier_free(scale=2.0))
    edits = prior.drawn(inversion.inversion(), cond=rows, **fields).reshape(8, kinds, *image.shape[1:])
    return np.concatenate([image[:8, None], edits], axis=1)


def main() -> None:
    parser = priors.arguments(__doc__)
    parser.add_argument("--num", type=int, default=200, help="held-out images")
    parser.add_argument("--tables", nargs="+", default=["reconstruction"], choices=list(TABLES))
    args = parser.parse_args()
    prior = priors.opened(parser, args)
    train, image = prior.train, prior.test["x"][: args.num]
    own = np.asarray(prior.test["label"][: args.num], np.int32)
    classifier = classifiers.train_classifier(train["x"], train["label"], num_classes=int(train["label"].max()) + 1)
    for name in args.tables:
        rows = TABLES[name](prior, classifier, {"image": image, "label": own, "source_label": own})
        if args.picture and rows is not None:
            path = args.picture.with_stem(f"{args.picture.stem}_{name}")
            sheets.image_sheet(rows.reshape(-1, *rows.shape[2:]), path=path, columns=rows.shape[1])
            print(f"\n{path}", flush=True)


TABLES = {"reconstruction": reconstruction, "interpolation": interpolation, "classes": classes}

if __name__ == "__main__":
    main()
