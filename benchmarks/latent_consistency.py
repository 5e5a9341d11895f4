"""Quality of digits that were asked for, by the number of evaluations of the network, for runs that are given by name.

    python -m benchmarks.latent_consistency runs/words:ddim:50:2 runs/lcm:consistency:4:2 [--picture FILE]

Each argument is RUN:SOLVER:STEPS or RUN:SOLVER:STEPS:SCALE, with the scale of the guidance of the run's config, or of
classifier-free guidance where it has none, on the grid of the run; `ddim` takes "trailing" timesteps instead of
"linspace", as few steps need. A run of text to image is asked
for the digits in words, others by class. Printed are the evaluations of the network for one sample, of which
classifier-free guidance takes two in a step, the Frechet ratio with its range, the share of samples that are the digit
asked for (see `evaluation.metrics.classifier_metrics`), means over four seeds of 500 samples, and the milliseconds for
one sample in this run. All runs are compared by one classifier.
"""

from __future__ import annotations

import argparse
import pathlib
import time

import jax
import numpy as np

import diffusion_jax
from diffusion_jax import data
from diffusion_jax.config import presets
from diffusion_jax.evaluation import metrics, sheets
from diffusion_jax.evaluation.feature_classifier import train_classifier
from diffusion_jax.run.pretrained import Pretrained

SEEDS, NUM, SHOWN = range(4), 500, 20


def opened(row: str) -> tuple[Pretrained, int]:
    """The model of an argument and its evaluations of the network for one sample."""
    run, solver, steps, *scale = row.split(":")
    changes = {"solver.name": solver, "sampling.steps": int(steps)}
    model = diffusion_jax.load(run, changes=changes)
    if scale:
        name = model.config.guidance.name
        changes |= {"guidance.name": "classifier_free" if name == "none" else name, "guidance.scale": float(scale[0])}
    if solver == "ddim" and model.config.sampling.grid.get("spacing") == "linspace":
        changes["sampling.grid.spacing"] = "trailing"
    model = diffusion_jax.load(run, changes=changes)
    twice = model.config.guidance.name == "classifier_free"
    return model, int(steps) * (1 + twice)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", help="RUN:SOLVER:STEPS[:SCALE]")
    parser.add_argument("--picture", type=pathlib.Path, help="a file of 20 samples of each row")
    arguments = parser.parse_args()
    splits = [data.arrays(data.load(name="digits", split=split)) for split in ("train", "test")]
    classifier = train_classifier(splits[0]["x"], splits[0]["label"], num_classes=10)
    labels = np.arange(NUM) % 10
    print(f"{'row':36} {'evals':>5} {'ratio':>7} {'range':>15} {'asked for':>9} {'ms':>7}")
    shown = []
    for row in arguments.rows:
        model, evaluations = opened(row)
        asked = "|".join(presets.WORDS) if "tokens" in model.system.conditions else ",".join(map(str, range(10)))
        cond = model.conditions(asked, NUM)
        results, drawn = [], []
        for seed in SEEDS:
            start = time.perf_counter()
            drawn.append(model.sample(jax.random.key(seed), NUM, cond))
            seconds = time.perf_counter() - start  # of the last seed: without compilation
            drawn[-1] = np.clip(drawn[-1], -1, 1)
            results.append(metrics.classifier_metrics(drawn[-1], *splits, classifier=classifier, labels=labels))
        ratios = [result["classifier_frechet_ratio"] for result in results]
        accuracy = np.mean([result["condition_accuracy"] for result in results])
        name, _, rest = row.partition(":")
        print(
            f"{pathlib.Path(name).name + ':' + rest:36} {evaluations:5} {np.mean(ratios):7.2f} "
            f"{min(ratios):7.2f}-{max(ratios):<7.2f} {accuracy:9.3f} {1e3 * seconds / NUM:7.3f}",
            flush=True,
        )
        shown.append(drawn[0][:SHOWN])
    if arguments.picture:
        sheets.write_png(sheets.image_sheet(np.concatenate(shown), columns=SHOWN), arguments.picture)


if __name__ == "__main__":
    main()
