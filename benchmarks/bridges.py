"""Figures of bridges: pairs restored in few steps, and transport between unpaired sets.

    python -m benchmarks.bridges pairs runs/emoji runs/emoji_ddbm runs/emoji_regression \\
        --picture docs/pictures/bridge_emoji.png
    python -m benchmarks.bridges digits runs/digits_3_8 --picture docs/pictures/bridge_digits.png
    python -m benchmarks.bridges plane runs/schroedinger --picture docs/pictures/bridge_plane.png

`pairs` samples held-out pairs in 1, 5 and 10 evaluations of the network, with two seeds: PSNR of the mean squared
error, SSIM, and the Frechet distance in the 64 features of a small classifier that tells x_0 and x_1 of the training
split apart. A run whose own number of steps is 1, a regression of x_0 on x_1, has one row. Baselines are x_1 itself and
bicubic enlargement, or else the best cubic polynomial of the colour of each pixel, fitted to the training split.

`digits` carries held-out digits in both directions: the classes that a classifier of all ten digits gives them, and the
mean squared distance from start to sample, next to that of random pairs and of the best one-to-one pairs. `plane` is
the same for points, and draws paths. W2 is the exact 2-Wasserstein distance to as many examples of the other set; it
depends much on which are drawn, so that points are the means over four sets of 2000. Both
print next to it the exact Schroedinger bridge between Gaussians of the same means and covariances.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import diffusion_jax
from diffusion_jax import data
from diffusion_jax.evaluation import feature_classifier as classifiers
from diffusion_jax.evaluation import frechet, sheets, transport
from diffusion_jax.processes import GaussianBridge
from diffusion_jax.run.pretrained import Pretrained
from diffusion_jax.solvers import sampling
from diffusion_jax.systems.schroedinger_bridge import DIRECTIONS

STEPS = (1, 5, 10)
SEEDS, PARTS = 2, 4  # of pairs; of points, see above
SHOWN = 16  # pairs or digits in a picture
PATHS = 40


def cubic(x: np.ndarray) -> np.ndarray:
    """All monomials up to degree 3 of the channels, [n, h, w, c] -> [n h w, features]."""
    flat = x.reshape(-1, x.shape[-1]).astype(np.float64)
    terms = [np.ones((len(flat), 1))]
    for _ in range(3):
        terms.append((terms[-1][:, :, None] * flat[:, None]).reshape(len(flat), -1))
    return np.concatenate(terms, 1)


def colour_regression(train: dict[str, np.ndarray], x_1: np.ndarray) -> np.ndarray:
    """The least-squares cubic polynomial of the colour of each pixel, applied to x_1."""
    weights = np.linalg.lstsq(cubic(train["image"]), train["x"].reshape(-1, train["x"].shape[-1]), rcond=None)[0]
    return np.clip((cubic(x_1) @ weights).reshape(x_1.shape), -1, 1).astype(np.float32)


def enlarged(x_1: np.ndarray, factor: int) -> np.ndarray:
    """x_1, whose blocks of factor x factor pixels are alike, from one pixel of each by bicubic interpolation."""
    low = x_1[:, ::factor, ::factor]
    return np.clip(jax.image.resize(low, x_1.shape, "cubic"), -1, 1)


def pairs(options: argparse.Namespace) -> None:
    changes = dict(change.split("=", 1) for change in options.changes)
    model = diffusion_jax.load(options.runs[0], changes=changes)
    train, test = data.arrays(model.job.source), data.arrays(model.job.held_out)
    n, x_1 = len(test["x"]), test["image"]
    both = np.concatenate([train["x"], train["image"]])
    classifier = classifiers.train_classifier(both, np.repeat([0, 1], len(train["x"])), num_classes=2)
    real = frechet.statistics(classifiers.features(classifier, test["x"]))

    def row(name: str, nfe: int, draws: list[np.ndarray]) -> None:
        values = transport.paired(np.concatenate(draws), x_1, test["x"])
        distances = [
            frechet.frechet_distance(*real, *frechet.statistics(classifiers.features(classifier, x))) for x in draws
        ]
        print(f"{name:28} {nfe:5} {values['pairs_psnr']:7.2f} {values['pairs_ssim']:6.3f}", end="")
        print(f" {np.mean(distances):8.3f} ({min(distances):.3f} to {max(distances):.3f})", flush=True)

    print(f"{'':28}   NFE    PSNR   SSIM  Frechet")
    row("x_1", 0, [x_1])
    degradation = model.config.system.get("degradation")
    if degradation and degradation.name == "average":
        row("bicubic", 0, [enlarged(x_1, degradation.factor)])
    else:
        row("cubic colour regression", 0, [colour_regression(train, x_1)])
    panels = {"x_1": x_1, "x_0": test["x"]}
    for run in options.runs:
        config = diffusion_jax.load(run, changes=changes).config
        denoise, usual = bool(config.sampling.denoise), config.sampling.steps
        for nfe in (1,) if usual == 1 else STEPS:
            if nfe == denoise:
                continue
            model = diffusion_jax.load(run, changes={**changes, "sampling.steps": nfe - denoise})
            draws = [
                np.clip(model.sample(jax.random.key(seed), n, {"image": x_1}), -1, 1)
                for seed in range(1 if usual == 1 else SEEDS)
            ]
            row(pathlib.Path(run).name, nfe, draws)
        panels[f"{run} in {nfe}"] = draws[0]
    if options.picture:
        tiles = np.stack([x[:SHOWN] for x in panels.values()], 0).reshape(-1, *x_1.shape[1:])
        sheets.image_sheet(tiles, columns=SHOWN, path=options.picture)
        print("rows of the picture:", ", ".join(panels))


def carried(run: str, direction: str, num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, Pretrained]:
    """(start, samples, held-out examples of the other set, model): held-out examples carried in one direction."""
    model = diffusion_jax.load(run, changes={"system.direction": direction})
    test = data.shuffled(model.job.held_out, num)
    start, other = (test["image"], test["x"]) if direction == "backward" else (test["x"], test["image"])
    samples = model.sample(jax.random.key(0), len(start), {DIRECTIONS[direction]: start})
    return start, samples, other, model


def gaussian_reference(model: Pretrained, direction: str, start: np.ndarray) -> np.ndarray:
    """Samples of the exact Schroedinger bridge between Gaussians with the moments of the two training sets."""
    train, shape = data.arrays(model.job.source), start.shape[1:]
    sets = [train[name].reshape(len(train[name]), -1) for name in ("x", "image")]
    means, system = [jnp.asarray(x.mean(0)) for x in sets], model.system
    # Pixels at the border never change: a little variance keeps the covariances positive definite.
    covariances = [jnp.asarray(np.cov(x.T) + 1e-3 * np.eye(x.shape[1]), jnp.float32) for x in sets]
    exact = GaussianBridge(
        mean_0=means[0],
        mean_1=means[1],
        covariance_0=covariances[0],
        covariance_1=covariances[1],
        variance=system.process.reference.sigma(jnp.float32(1)) ** 2,
    )
    times = system.grid(system.process.reference, system.steps)
    D = getattr(exact, direction)
    x = jnp.asarray(start.reshape(len(start), -1))
    x = sampling.sample(system.solver, system.seen_from(direction), D, jax.random.key(0), x, times)
    return np.asarray(x).reshape(-1, *shape)


def report(
    name: str, samples: np.ndarray, start: np.ndarray, other: np.ndarray, train: np.ndarray, parts: int = 1
) -> None:
    """Print the means of `transport.transport` over equal parts of the examples, and the range of the ratio of W2."""
    split = [np.split(x[: len(x) // parts * parts], parts) for x in (samples, start, other, train)]
    values = [transport.transport(*rows) for rows in zip(*split, strict=True)]
    cost, independent, optimal, w2, real = (
        np.mean([value[f"transport_{key}"] for value in values])
        for key in ("cost", "cost_independent", "cost_optimal", "w2", "w2_real")
    )
    ratios = [value["transport_w2"] / value["transport_w2_real"] for value in values]
    print(f"{name:40} cost {cost:.3g} (independent {independent:.3g}, optimal {optimal:.3g})", end="")
    print(f", W2 {w2:.3g} (real {real:.3g}), {w2 / real:.2f} times ({min(ratios):.2f} to {max(ratios):.2f})")


def digits(options: argparse.Namespace) -> None:
    train = data.arrays(data.load(name="digits", image_size=8, channels=1))
    classifier = classifiers.train_classifier(train["x"], train["label"], num_classes=10)
    panels = []
    for direction, of in (("backward", "x"), ("forward", "image")):
        start, samples, other, model = carried(options.runs[0], direction, 50)
        (wanted,) = model.config.data[of].only
        found = classifiers.probabilities(classifier, np.clip(samples, -1, 1)).argmax(1)
        train, exact = data.arrays(model.job.source)[of], gaussian_reference(model, direction, start)
        report(
            f"{direction}, class {wanted}: {np.mean(found == wanted):.3f} of {len(found)}", samples, start, other, train
        )
        found = classifiers.probabilities(classifier, np.clip(exact, -1, 1)).argmax(1)
        report(f"{direction}, between Gaussians: {np.mean(found == wanted):.3f}", exact, start, other, train)
        panels += [start[:SHOWN], samples[:SHOWN]]
    if options.picture:
        sheets.image_sheet(np.concatenate(panels), columns=SHOWN, path=options.picture)


def plane(options: argparse.Namespace) -> None:
    for direction in DIRECTIONS:
        start, samples, other, model = carried(options.runs[0], direction, 2000 * PARTS)
        train = data.shuffled(model.job.source, 2000 * PARTS)["x" if direction == "backward" else "image"]
        report(direction, samples, start, other, train, PARTS)
        exact = gaussian_reference(model, direction, start)
        report(f"{direction}, between Gaussians", exact, start, other, train, PARTS)
    if options.picture:
        draw(options.runs[0], options.picture)


def draw(run: str, path: str) -> None:
    """Paths of held-out points in both directions, over both sets."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    titles = {"backward": "moons to Gaussians", "forward": "Gaussians to moons"}
    for ax, direction in zip(axes, DIRECTIONS, strict=True):
        start, samples, _, model = carried(run, direction, 600)
        system, steps = model.system, 32
        lines = system.carried(
            direction, model.params[direction], jax.random.key(1), start[:PATHS], steps, trajectory=True
        )
        ax.scatter(*start.T, s=3, alpha=0.3, color="tab:blue", linewidths=0, label="start")
        ax.scatter(*samples.T, s=3, alpha=0.3, color="tab:orange", linewidths=0, label="samples")
        ax.plot(*np.asarray(lines).transpose(2, 0, 1), color="black", linewidth=0.5, alpha=0.6)
        ax.set(title=titles[direction], aspect="equal", xlim=(-2.4, 2.4), ylim=(-2.4, 2.4))
        ax.legend(loc="upper right", markerscale=4, fontsize=8)
    canvas.draw()
    sheets.write_png(np.asarray(canvas.buffer_rgba())[..., :3].copy(), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pairs", "digits", "plane"))
    parser.add_argument("runs", nargs="+", help="work directories")
    parser.add_argument("--changes", nargs="*", default=[], help="keys of the config, such as data.path=DIR")
    parser.add_argument("--picture", default="", help="where to write a picture")
    options = parser.parse_args()
    {"pairs": pairs, "digits": digits, "plane": plane}[options.what](options)


if __name__ == "__main__":
    main()
