"""SegDiff: segmentation by a diffusion model of the mask given the image (arXiv:2112.00390).

    python -m diffusion_jax.main --config=configs/segdiff.py --workdir=runs/segdiff
    python -m diffusion_jax.main --config=configs/segdiff.py --workdir=runs/segdiff --mode=sample \\
        --config.sampling.samples_per_condition=4
    python -m diffusion_jax.main --config=configs/segdiff.py:emoji --workdir=runs/segdiff_emoji --config.data.path=FILE

The example is the mask, and the image is its condition: the features of an image encoder are added to those of the
first layer of the U-Net. Without a variant, 16 x 16 masks of handwritten digits upon photographs are learned, in
minutes on two CPU cores; `emoji` has 32 x 32 pictures of a file with an alpha channel upon the same photographs, and
`cells` blood cells, whose masks are the ellipses in their boxes: make them by
`python -m diffusion_jax.data.prepare masks --from bccd_72x54.npz --data_dir DIR` and give --config.data.path=DIR.
Evaluation, --mode=evaluate with --config.evaluation.metrics='("auto",)', prints IoU and Dice of single draws and of the
vote of nine, and whether these are calibrated.

`composites_regression` trains the same network to predict the mask in one step, for comparison.

`cityscapes128`, `vaihingen256` and `monuseg256` are the authors' settings, on pairs in array files with the keys images
(masks) and image, see `data.prepare masks`. The paper reports an IoU of 91.12 on Vaihingen.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace

DRAWS = 9  # masks of one image, whose mean is rounded


def segdiff(**sections: Any) -> ConfigDict:
    """The sections that all variants share: several draws for each image."""
    evaluation = dict(samples_per_condition=DRAWS, metrics=("auto",))
    return replace(replace(defaults(), evaluation=evaluation), **sections)


def small(num_steps: int, *, data: dict[str, Any], num_images: int, batch_size: int, **network: Any) -> ConfigDict:
    """v-prediction in 20 steps of DDIM from random noise, as masks are decided at high noise."""
    return segdiff(
        **presets.small_adm(num_steps, batch_size, image_channels=3, **network),
        data=data,
        sampling=dict(num_samples=64, steps=20, batch_size=450),
        evaluation=dict(num_samples=DRAWS * num_images),
    )


def composites() -> ConfigDict:
    data = dict(name="composites", split="train", eval_split="test", image_size=16, path="")
    encoder = dict(attention_resolutions=(4,), image_blocks=1, image_width=16)
    return small(1000, data=data, num_images=100, batch_size=32, **encoder)


def composites_regression() -> ConfigDict:
    return regression(composites())


def regression(config: ConfigDict) -> ConfigDict:
    """The network of `config` trained at t = 1 alone and sampled in one step: noise and image in, the mean mask out."""
    return replace(
        config,
        times=dict(name="uniform", t_min=1.0, t_max=1.0),
        parameterization=dict(name="x0", label="time"),
        sampling=dict(steps=1, grid=dict(name="uniform", t_min=0.0)),
        evaluation=dict(samples_per_condition=1),
    )


def emoji() -> ConfigDict:
    data = dict(name="composites", split="train", eval_split="test", image_size=32, path="")
    encoder = dict(attention_resolutions=(8,), image_blocks=1, image_width=16)
    return small(3000, data=data, num_images=100, batch_size=16, **encoder)


def emoji_regression() -> ConfigDict:
    return regression(emoji())


def cells() -> ConfigDict:
    encoder = dict(attention_resolutions=(8,), image_blocks=1, image_width=16)
    return unmeasured(small(2000, data=pairs(32), num_images=100, batch_size=16, **encoder))


def unmeasured(config: ConfigDict) -> ConfigDict:
    """Data that the user gives: evaluation is asked for by --mode=evaluate --config.evaluation.metrics='("auto",)'."""
    return replace(config, evaluation=dict(metrics=(), after_training=False))


def pairs(image_size: int) -> dict[str, Any]:
    """Masks and their images in array files."""
    splits = dict(split="train", eval_split="test")
    return dict(name="arrays", **splits, image_size=image_size, channels=1, modality="mask", path="")


def paper(
    size: int, *, image_blocks: int, batch_size: int, channel_mult: tuple[int, ...], dropout: float = 0.0
) -> ConfigDict:
    """The authors' settings: 100 steps with the betas of 1000 scaled by ten, and the network of improved DDPM."""
    config = segdiff(
        **presets.ddpm(num_steps=100, beta_start=1e-3, beta_end=0.2),
        solver=dict(name="ancestral", variance="beta"),
        network=dict(
            name="adm",
            model_channels=128,
            channel_mult=channel_mult,
            num_res_blocks=3,
            attention_resolutions=(16, 8),
            num_heads=4,
            num_head_channels=None,
            resblock_updown=False,
            use_scale_shift_norm=False,
            dropout=dropout,
            image_channels=3,
            image_blocks=image_blocks,
        ),
        data=pairs(size),
        training=dict(
            num_steps=300_000, batch_size=batch_size, checkpoint_every=5000, sample_every=0, dtype="bfloat16"
        ),
        optimizer=dict(name="adamw", learning_rate=1e-4, weight_decay=0.0, clip_norm=0.0),
        ema=dict(rates=(0.9999,), warmup=False),
        sampling=dict(num_samples=36, steps=100, batch_size=36),
        evaluation=dict(num_samples=DRAWS * 100),
    )
    return unmeasured(config)


SIX, SEVEN = (1, 1, 2, 2, 4, 4), (1, 1, 1, 2, 2, 4, 4)  # levels at 128 and 256 pixels
VARIANTS = {
    "composites": composites,
    "composites_regression": composites_regression,
    "emoji": emoji,
    "emoji_regression": emoji_regression,
    "cells": cells,
    "cityscapes128": lambda: paper(128, image_blocks=15, batch_size=30, channel_mult=SIX),
    "vaihingen256": lambda: paper(256, image_blocks=6, batch_size=8, channel_mult=SEVEN, dropout=0.1),
    "monuseg256": lambda: paper(256, image_blocks=12, batch_size=8, channel_mult=SEVEN),
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "composites")()
