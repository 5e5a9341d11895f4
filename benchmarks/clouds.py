"""Metrics of point clouds that no model drew: what `pvd.py:kaykit` is compared with.

    python -m benchmarks.clouds kaykit_pointclouds.npz [--points 128]

Training clouds, Gaussians with the mean and covariance of training clouds, uniform points in their boxes, and training
clouds with a little noise, each against the held-out clouds, by Chamfer distance.
"""

from __future__ import annotations

import argparse

import numpy as np
from jaxtyping import Float32

from diffusion_jax import data
from diffusion_jax.config import presets
from diffusion_jax.evaluation import clouds

_NOISE = 0.03  # standard deviation in the copies of training clouds, whose longest side is 2


def baselines(train: Float32[np.ndarray, "n points 3"], seed: int = 0) -> dict[str, Float32[np.ndarray, "n points 3"]]:
    """Sets of clouds by name, one cloud for each of `train`."""
    rng, points = np.random.default_rng(seed), train.shape[1]
    gaussian = [rng.multivariate_normal(cloud.mean(0), np.cov(cloud.T), points) for cloud in train]
    uniform = [rng.uniform(cloud.min(0), cloud.max(0), (points, 3)) for cloud in train]
    sets = {
        "training clouds": train,
        "Gaussians of their moments": gaussian,
        "uniform in their boxes": uniform,
        f"training clouds and noise of {_NOISE}": train + _NOISE * rng.standard_normal(train.shape),
    }
    return {name: np.asarray(x, np.float32) for name, x in sets.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--points", type=int, default=128)
    arguments = parser.parse_args()
    section = presets.kaykit(arguments.points) | {"path": arguments.path}
    train, test = (data.arrays(data.load(**section, evaluation=held_out))["x"] for held_out in (False, True))
    print(f"{len(train)} training and {len(test)} held-out clouds of {arguments.points} points")
    for name, samples in baselines(train).items():
        values = clouds.generation(samples, test, train, clouds.CD) | clouds.memorisation(samples, test, train)
        shown = ("one_nna_cd", "mmd_cd", "coverage_cd", "nearest_train_ratio")
        print(f"{name:36}", *(f"{key} {values[key]:.4f}" for key in shown))


if __name__ == "__main__":
    main()
