"""Point-E's transformer of point clouds, conditioned on classes, with classifier-free guidance (arXiv:2212.08751).

    python -m diffusion_jax.main --config=configs/point_e.py --workdir=runs/point_e
    python -m diffusion_jax.main --config=configs/point_e.py:kaykit --workdir=runs/point_e_kaykit \\
        --config.data.path=kaykit_pointclouds.npz
    python -m diffusion_jax.main --config=configs/point_e.py --workdir=runs/point_e --mode=sample \\
        --config.sampling.cond=torus,cone

Without a variant the clouds are synthetic: solids of random proportions, by their kind. `kaykit` has the 16 largest
classes of game assets (docs/point_clouds.md#data).

`base40m`, `base300m` and `base1b` have the networks, the process and the sampler of the public models, for classes in
place of pictures and without colours. config.data.path is a folder with one folder of clouds per class, of which there
are 55 in ShapeNet.
"""

import functools

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace

GUIDED = dict(name="classifier_free", scale=2.0)


def solids() -> ConfigDict:
    config = replace(
        defaults(),
        **presets.small_clouds(1500, num_classes=5),
        data=presets.clouds(128),
        guidance=GUIDED,
    )
    config.system.cond_dropout = 0.1
    return config


def kaykit() -> ConfigDict:
    """The prefixes of the names of files as classes. Twins stay: of a class there are few other shapes."""
    config = replace(
        defaults(),
        **presets.small_clouds(2500, num_classes=16),
        data=presets.clouds(
            128, split="train[:70%]", eval_split="train[70%:]", label_key="prefix", largest=16, deduplicate=0.0
        ),
        guidance=GUIDED,
    )
    config.system.cond_dropout = 0.1
    return config


def base(width: int, depth: int, num_heads: int) -> ConfigDict:
    """A base model of 1024 points: learned variances, the cosine schedule of 1024 steps, 64 of Karras' and Heun's."""
    config = replace(
        defaults(),
        **presets.ddpm("cosine", 1024),
        loss=dict(name="hybrid"),
        network=dict(
            name="point_transformer",
            width=width,
            depth=depth,
            num_heads=num_heads,
            num_classes=55,
            learn_sigma=True,
            remat=width > 1000,
        ),
        data=presets.clouds(1024, normalize="box"),
        guidance=dict(name="classifier_free", scale=3.0),
        solver=dict(name="heun", churn=3.0),
        training=dict(num_steps=1_300_000, batch_size=64, checkpoint_every=5000, sample_every=0),
        optimizer=dict(name="adamw", learning_rate=1e-4, warmup_steps=1000),
        sampling=dict(num_samples=24, steps=64, batch_size=24, grid=dict(name="karras", t_min=1 / 1024, t_max=0.995)),
        evaluation=dict(metrics=(), after_training=False),
    )
    config.system.cond_dropout = 0.1
    return config


VARIANTS = {
    "solids": solids,
    "kaykit": kaykit,
    "base40m": functools.partial(base, 512, 12, 8),
    "base300m": functools.partial(base, 1024, 24, 16),
    "base1b": functools.partial(base, 2048, 24, 32),
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "solids")()
