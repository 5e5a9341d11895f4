"""Quality of samples of digits by the number of evaluations of the network, for runs that are given by name.

    python -m benchmarks.flow_maps runs/flow:heun:50 runs/flow:euler:1 runs/mean_flow:flow_map:1 [--picture FILE]
    python -m benchmarks.flow_maps runs/consistency:consistency:1 runs/consistency:consistency:2:80,1

Each argument is RUN:SOLVER:STEPS or RUN:SOLVER:STEPS:LEVELS, with the noise level sigma / alpha that each step starts
at. Printed are the evaluations of the network for one sample, the Frechet ratio with its range and the entropy of the
classes (see `evaluation.metrics.classifier_metrics`), means over four seeds of 500 samples, and the milliseconds for
one sample in this run, those of the fastest seed. All runs are compared by one classifier.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from typing import Any

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
    parser.add_argument("rows", nargs="+", help="RUN:SOLVER:STEPS or RUN:SOLVER:STEPS:LEVELS")
    parser.add_argument("--picture", type=pathlib.Path, help="a file of 20 samples of each row")
    arguments = parser.parse_args()
    splits = [data.arrays(data.load(name="digits", split=split)) for split in ("train", "test")]
    classifier = train_classifier(splits[0]["x"], splits[0]["label"], num_classes=10)
    print(f"{'run':28} {'solver':12} {'steps':16} {'evals':>5} {'ratio':>7} {'range':>15} {'entropy':>7} {'ms':>7}")
    shown = []
    for row in arguments.rows:
        run, solver, steps, *levels = row.split(":")
        changes: dict[str, Any] = {"solver.name": solver, "sampling.steps": int(steps)}
        if levels:
            values = tuple(float(level) for level in levels[0].split(","))
            changes |= {"sampling.grid.name": "noise_levels", "sampling.grid.values": values}
        model = diffusion_jax.load(run, changes=changes)
        results, drawn, seconds = [], [], []
        for seed in SEEDS:
            start = time.perf_counter()
            drawn.append(model.sample(jax.random.key(seed), NUM))
            seconds.append(time.perf_counter() - start)
            results.append(metrics.classifier_metrics(np.clip(drawn[-1], -1, 1), *splits, classifier=classifier))
        ratios = [result["classifier_frechet_ratio"] for result in results]
        entropy = np.mean([result["class_entropy_ratio"] for result in results])
        print(
            f"{pathlib.Path(run).name:28} {solver:12} {' '.join([steps, *levels]):16} "
            f"{evaluations(solver, int(steps)):>5} {np.mean(ratios):7.2f} {min(ratios):7.2f}-{max(ratios):<7.2f} "
            f"{entropy:7.3f} {1e3 * min(seconds) / NUM:7.3f}",
            flush=True,
        )
        shown.append(drawn[0][:SHOWN])
    if arguments.picture:
        sheets.write_png(sheets.image_sheet(np.clip(np.concatenate(shown), -1, 1), columns=SHOWN), arguments.picture)


if __name__ == "__main__":
    main()
