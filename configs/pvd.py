"""PVD: diffusion models of point clouds, and completion of clouds of which some points are given (arXiv:2104.03670).

    python -m diffusion_jax.main --config=configs/pvd.py --workdir=runs/pvd
    python -m diffusion_jax.main --config=configs/pvd.py:completion --workdir=runs/pvd_completion
    python -m diffusion_jax.main --config=configs/pvd.py:kaykit --workdir=runs/pvd_kaykit \\
        --config.data.path=kaykit_pointclouds.npz
    python -m diffusion_jax.main --config=configs/pvd.py:kaykit_completion --workdir=runs/pvd_kaykit_completion \\
        --config.data.path=kaykit_pointclouds.npz

Without a variant the clouds are synthetic: solids of random proportions. `kaykit` has those of game assets
(docs/point_clouds.md#data). `completion` and `kaykit_completion` give half of each cloud, that on one side of a random
plane, and draw the rest. Samples are arrays, turntables and, with --config.sampling.format=ply, files of points.

`chair` and `car` are the paper's settings of generation, `chair_completion` and `car_completion` those of completion,
with a transformer instead of PVCNN++. config.data.path is a folder of ShapeNet's clouds of one category, with the
folders train and test.
"""

import functools
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def small(data: dict[str, Any], num_steps: int, **sections: Any) -> ConfigDict:
    """Generation."""
    return replace(defaults(), **presets.small_clouds(num_steps), data=data, **sections)


def completion(data: dict[str, Any], num_steps: int) -> ConfigDict:
    """Completion of clouds of which half of the points are given."""
    config = small(data, num_steps, system=dict(name="cloud_completion", given=data["points"] // 2))
    config.network.known = True
    return config


def paper(batch_size: int, given: int, epoch: int) -> ConfigDict:
    """10,000 epochs of `epoch` steps: eps-prediction, 1000 steps with linear betas, Adam without averaging.

    The learning rate falls by 0.2 % after every epoch in the authors' code; here to a hundredth at the end.
    """
    num_steps = 10_000 * epoch
    config = replace(
        defaults(),
        **presets.ddpm("linear", 1000, beta_start=1e-4, beta_end=0.02),
        network=dict(name="point_transformer", width=512, depth=12, num_heads=8),
        solver=dict(name="ancestral"),
        data=presets.clouds(2048, normalize="global"),
        training=dict(num_steps=num_steps, batch_size=batch_size, checkpoint_every=5000, sample_every=0),
        optimizer=dict(name="adam", learning_rate=2e-4, b1=0.5, clip_norm=0.0, schedule="cosine", final_factor=0.01),
        ema=dict(rates=(0.0,), warmup=False),
        sampling=dict(num_samples=24, steps=1000, batch_size=32, grid=dict(name="discrete")),
        evaluation=dict(metrics=(), after_training=False),
    )
    if given:
        config.network.known = True
        config.system = ConfigDict(dict(name="cloud_completion", given=given))
    return config


VARIANTS = {
    "solids": functools.partial(small, presets.clouds(128), 1500),
    "completion": functools.partial(completion, presets.clouds(128), 1500),
    "kaykit": functools.partial(small, presets.kaykit(), 2500),
    "kaykit_completion": functools.partial(completion, presets.kaykit(), 2000),
    "chair": functools.partial(paper, 16, 0, 288),
    "car": functools.partial(paper, 16, 0, 153),
    "chair_completion": functools.partial(paper, 48, 200, 96),
    "car_completion": functools.partial(paper, 48, 200, 51),
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "solids")()
