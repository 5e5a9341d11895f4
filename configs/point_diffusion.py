"""Luo and Hu's diffusion model of point clouds: a latent of the shape, and points given it (arXiv:2103.01458).

    python -m diffusion_jax.main --config=configs/point_diffusion.py --workdir=runs/point_diffusion
    python -m diffusion_jax.main --config=configs/point_diffusion.py:kaykit --workdir=runs/point_diffusion_kaykit \\
        --config.data.path=kaykit_pointclouds.npz

Without a variant the clouds are synthetic: solids of random proportions. `kaykit` has those of game assets
(docs/point_clouds.md#data).

`airplane` and `chair` are the paper's setting of generation. config.data.path is a folder of ShapeNet's clouds of one
category, with the folders train and test.
"""

import functools
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def luo_hu(data: dict[str, Any], **sections: Any) -> ConfigDict:
    """The sections that all variants share: eps-prediction, 100 steps with linear betas, ancestral sampling."""
    config = replace(
        defaults(),
        **presets.ddpm("linear", 100, beta_start=1e-4, beta_end=0.02),
        system=dict(name="point_vae", kl_weight=1e-3),
        network=dict(name="pointwise", vector_dim=256),
        solver=dict(name="ancestral"),
        data=data,
        sampling=dict(num_samples=24, steps=100, batch_size=64, grid=dict(name="discrete")),
    )
    config.parameterization.label = "unit_time"
    return replace(config, **sections)


def small(data: dict[str, Any], num_steps: int) -> ConfigDict:
    """A latent of 64 numbers, and networks of half the paper's widths."""
    config = luo_hu(
        data,
        network=dict(name="pointwise", widths=(64, 128, 256, 128, 64), vector_dim=64),
        training=dict(num_steps=num_steps, batch_size=32, log_every=50, checkpoint_every=500, sample_every=0),
        optimizer=presets.adam(2e-3, warmup_steps=100),
        ema=dict(rates=(0.995,)),
        evaluation=dict(num_samples=100, metrics=("auto",)),
    )
    config.system.update(encoder_widths=(64, 64, 128, 256), encoder_head=(128, 64), flow_depth=8, flow_hidden=64)
    return config


def paper() -> ConfigDict:
    """Clouds of mean 0 and variance 1, Adam at 2e-3, falling to 1e-4."""
    return luo_hu(
        presets.clouds(2048, normalize="unit"),
        training=dict(num_steps=400_000, batch_size=128, checkpoint_every=5000, sample_every=0),
        optimizer=dict(name="adam", learning_rate=2e-3, schedule="linear", final_factor=0.05, clip_norm=10.0),
        ema=dict(rates=(0.0,), warmup=False),
        evaluation=dict(metrics=(), after_training=False),
    )


VARIANTS = {
    "solids": functools.partial(small, presets.clouds(128, normalize="unit"), 2000),
    "kaykit": functools.partial(small, presets.kaykit(normalize="unit"), 4000),
    "airplane": paper,
    "chair": paper,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "solids")()
