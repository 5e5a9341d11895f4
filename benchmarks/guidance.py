"""Condition accuracy against Frechet distance over guidance scales.

    python -m benchmarks.guidance --picture docs/pictures/guidance_digits.png \\
        --curve "classifier-free" runs/cfg \\
        --curve "classifier" runs/ddpm name=classifier path=runs/classifier

Each curve is the work directory of a trained run, with changes of its own config.guidance. For every scale the same
number of samples of each class is drawn and evaluated by one small classifier, which is trained on the clean data. The
metrics are the fraction of samples in which it recognises the requested class, and the Frechet distance in its features
to the training split, over that of test images. They are not FID. The scale is an argument of the compiled sampler, so
a curve compiles once.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.config import build, trained
from diffusion_jax.evaluation import feature_classifier as classifiers
from diffusion_jax.evaluation import metrics
from diffusion_jax.training.rows import conditioned_rows


def opened(path: str, changes: dict[str, str], steps: int, solver: str, threshold: str) -> trained.Trained:
    """Open the run in `path` with another config.guidance, number of steps, solver and threshold."""

    def make(config: ConfigDict):
        if changes:
            config.guidance = ConfigDict({**(config.guidance.to_dict() if "name" not in changes else {}), **changes})
        config.sampling.steps = steps or config.sampling.steps
        if solver:
            config.solver = ConfigDict({"name": solver})
        if threshold:
            config.sampling.threshold = ConfigDict({"name": threshold})
        built = build.build(config)
        return built.system, built.recipe.role

    return trained.open_run(path, "--curve", make)


def curve(run: trained.Trained, scales: list[float], num: int, seed: int, classifier, splits) -> list[dict[str, float]]:
    """Metrics of `num` samples at each guidance scale, as `metrics.classifier_metrics` returns them."""
    system, params = run.system, run.load()
    numbers, draw = system.guidance.load(), jax.jit(system.draw)
    figures = []
    for scale in scales:
        here = functools.partial(draw, params, jax.random.key(seed), numbers={**numbers, "scale": jnp.float32(scale)})
        drawn = conditioned_rows(here, num, run.config.sampling.batch_size, system.conditions, None)
        samples = np.clip(drawn["samples"], -1, 1)
        found = metrics.classifier_metrics(samples, *splits, classifier=classifier, labels=drawn["label"])
        figures.append({"scale": scale, **found})
        print(
            f"| {scale:g} | {found['condition_accuracy']:.3f} | {found['classifier_frechet']:.2f} "
            f"| {found['classifier_frechet_ratio']:.2f} | {found['class_entropy_ratio']:.3f} |",
            flush=True,
        )
    return figures


def picture(curves: dict[str, list[dict[str, float]]], path: pathlib.Path) -> None:
    """Plot condition accuracy by scale, and Frechet ratio by condition accuracy."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    for title, figures in curves.items():
        scale, accuracy, ratio = (
            [found[key] for found in figures] for key in ("scale", "condition_accuracy", "classifier_frechet_ratio")
        )
        left.plot(scale, accuracy, marker="o", label=title)
        right.plot(accuracy, ratio, marker="o", label=title)
        for found in figures:
            at = (found["condition_accuracy"], found["classifier_frechet_ratio"])
            right.annotate(f"{found['scale']:g}", at, textcoords="offset points", xytext=(4, 4), fontsize=7)
    left.set(xlabel="scale", ylabel="condition accuracy")
    right.set(xlabel="condition accuracy", ylabel="Frechet ratio (1: as unseen real images)", yscale="log")
    left.legend()
    FigureCanvasAgg(figure).print_png(str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curve", nargs="+", action="append", required=True, metavar=("TITLE", "WORKDIR"))
    parser.add_argument("--scales", type=float, nargs="+", default=[0, 0.5, 1, 1.5, 2, 3, 5, 8])
    parser.add_argument("--num", type=int, default=500, help="samples at each scale")
    parser.add_argument("--steps", type=int, default=0, help="of the solver; 0: those of the run")
    parser.add_argument("--solver", default="", help="its name; empty: that of the run")
    parser.add_argument("--threshold", default="", help="its name; empty: that of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=pathlib.Path, default=None)
    args = parser.parse_args()
    curves, classifiers_of = {}, {}
    for title, workdir, *pairs in args.curve:
        run = opened(workdir, dict(pair.split("=", 1) for pair in pairs), args.steps, args.solver, args.threshold)
        name = (run.config.data.name, run.config.data.image_size)
        if name not in classifiers_of:
            built = build.build(run.config)
            train, test = (data.arrays(built.source(evaluation=e)) for e in (False, True))
            classes = int(train["label"].max()) + 1
            classifier = classifiers.train_classifier(train["x"], train["label"], num_classes=classes)
            classifiers_of[name] = (classifier, (train, test))
        print(
            f"\n{title}: {workdir}, {run.config.solver.name}, {run.config.sampling.steps} steps, {args.num} samples\n"
        )
        print("| scale | condition accuracy | Frechet distance | ratio | entropy of classes |\n|---|---|---|---|---|")
        curves[title] = curve(run, args.scales, args.num, args.seed, *classifiers_of[name])
    if args.picture:
        picture(curves, args.picture)
        print(f"\n{args.picture}")


if __name__ == "__main__":
    main()
