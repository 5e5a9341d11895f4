"""Quality of samples of digits by the number of evaluations of the network, for runs that are given by name.

    python -m benchmarks.flow_maps runs/flow:heun:50 runs/flow:euler:1 runs/mean_flow:flow_map:1 [--picture FILE]

Each argument is RUN:SOLVER:STEPS. Printed are the evaluations of the network for one sample, the Frechet ratio with
its range and the entropy of the classes (see `evaluation.metrics.classifier_metrics`), means over four seeds of 500
samples, and the milliseconds for one sample on this machine. All runs are compared by one classifier.
"""

from __future__ import annotations

import argparse
import pathlib
import time

import jax
import numpy as np

import diffusion_jax
from diffusion_jax import data
from diffusion_jax.evaluation import metrics, sheets
from diffusion_jax.evaluation.feature_classifier import train_classifier

SEEDS, NUM, SHOWN = range(4), 500, 20


def evaluations(solver: str, steps: int) -> int:
    """Of the network, for one sample: Heun's method takes two in a step, and one in the last."""
    return 2 * steps - 1 if solver == "heun" else steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", help="RUN:SOLVER:STEPS")
    parser.add_argument("--picture", type=pathlib.Path, help="a file of 20 samples of each row")
    arguments = parser.parse_args()
    splits = [data.arrays(data.load(name="digits", split=split)) for split in ("train", "test")]
    classifier = train_classifier(splits[0]["x"], splits[0]["label"], num_classes=10)
    print(f"{'run':28} {'solver':10} {'steps':>5} {'evals':>5} {'ratio':>7} {'range':>15} {'entropy':>7} {'ms':>7}")
    shown = []
    for row in arguments.rows:
        run, solver, steps = row.split(":")
        changes = {"solver.name": solver, "sampling.steps": int(steps)}
        model = diffusion_jax.load(run, changes=changes)
        results, drawn = [], []
        for seed in SEEDS:
            start = time.perf_counter()
            drawn.append(model.sample(jax.random.key(seed), NUM))
            seconds = time.perf_counter() - start  # of the last seed: without compilation
            results.append(metrics.classifier_metrics(np.clip(drawn[-1], -1, 1), *splits, classifier=classifier))
        ratios = [result["classifier_frechet_ratio"] for result in results]
        entropy = np.mean([result["class_entropy_ratio"] for result in results])
        print(
            f"{pathlib.Path(run).name:28} {solver:10} {steps:>5} {evaluations(solver, int(steps)):>5} "
            f"{np.mean(ratios):7.2f} {min(ratios):7.2f}-{max(ratios):<7.2f} {entropy:7.3f} {1e3 * seconds / NUM:7.3f}",
            flush=True,
        )
        shown.append(drawn[0][:SHOWN])
    if arguments.picture:
        sheets.write_png(sheets.image_sheet(np.clip(np.concatenate(shown), -1, 1), columns=SHOWN), arguments.picture)


if __name__ == "__main__":
    main()
