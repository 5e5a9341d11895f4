"""Label-efficient segmentation: pixels classified by the features of a trained denoiser (DDPM-Seg, arXiv:2112.03126).

    python -m diffusion_jax.main --config=configs/pixel_classifier.py:composites_denoiser --workdir=runs/pixel_denoiser
    python -m diffusion_jax.main --config=configs/pixel_classifier.py --workdir=runs/pixel_classifier
    python -m diffusion_jax.main --config=configs/pixel_classifier.py:composites_patches --workdir=runs/pixel_patches

The first command trains a diffusion model of pictures without any labels, the second an ensemble of small classifiers
on its activations for 20 pictures with masks, which takes seconds. The third one is the baseline, the same classifiers
on squares of 5 x 5 pixels. `emoji` and `emoji_denoiser` have 32 x 32 pictures of a file with an alpha channel
(--config.data.path=FILE). `python -m benchmarks.segmentation` compares them, and a linear discriminant.

`bedroom256_28`, `ffhq256_34`, `cat256_15` and `horse256_21` are the authors' settings, on pairs that `data.prepare
masks --classes K` makes, with ADM's networks: the paper reports a mean IoU of 49.4, 59.1, 53.7 and 65.0.
"""

import functools
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace

LABELLED = "train[:20]"


def classifier(*, system: dict[str, Any], **sections: Any) -> ConfigDict:
    """The sections that all variants share."""
    return replace(
        defaults(),
        system=dict(name="pixel_classifier", **system),
        optimizer=dict(name="adam", learning_rate=1e-3, schedule="constant", warmup_steps=0, clip_norm=0.0),
        ema=dict(rates=()),
        **sections,
    )


def small(side: int, **system: Any) -> ConfigDict:
    data = dict(name="composites", split=LABELLED, eval_split="test", image_size=side, augment=False, path="")
    return classifier(
        system=system,
        data=data,
        training=dict(num_steps=200, batch_size=10, log_every=50, checkpoint_every=200, sample_every=0),
        sampling=dict(num_samples=16, batch_size=50),
        evaluation=dict(num_samples=200),
    )


def on_denoiser(side: int, run: str, variant: str) -> ConfigDict:
    """Blocks 1 to 4 of six, of both upper resolutions, at three times."""
    config = f"configs/pixel_classifier.py:{variant}"
    return small(side, denoiser=run, denoiser_config=config, times=(0.05, 0.15, 0.25), blocks=(1, 2, 3, 4))


def patches(side: int) -> ConfigDict:
    return small(side, patch=5)


def denoiser(side: int, num_steps: int) -> ConfigDict:
    """A small diffusion model of pictures: v-prediction on the cosine schedule."""
    return replace(
        defaults(),
        **presets.small_adm(num_steps, attention_resolutions=(side // 4,)),
        data=dict(name="composites", split="train", eval_split="test", image_size=side, target="picture", path=""),
        sampling=dict(num_samples=64, steps=25, batch_size=100, threshold=dict(name="static")),
        evaluation=dict(num_samples=100, metrics=("auto",)),
    )


def paper(run: str, run_config: str, *, classes: int, images: int) -> ConfigDict:
    """The authors' settings: 50, 150 and 250 of 1000 timesteps, five blocks of ADM's decoder path, ten members."""
    system = dict(
        denoiser=run,
        denoiser_config=run_config,
        times=(0.051, 0.151, 0.251),
        blocks=(5, 6, 7, 8, 12),
        members=10,
        hidden=(256, 128) if classes >= 30 else (128, 32),
        pixels=16,
        min_pixels=20,
        vote="majority",
    )
    splits = dict(split=f"train[:{images}]", eval_split="test")
    return classifier(
        system=system,
        data=dict(name="arrays", **splits, modality="mask", image_size=256, channels=classes, path=""),
        training=dict(num_steps=20_000, batch_size=4, checkpoint_every=5000, sample_every=0),
        sampling=dict(num_samples=16, batch_size=4),
        evaluation=dict(num_samples=20, metrics=(), after_training=False),
    )


VARIANTS = {
    "composites": functools.partial(on_denoiser, 16, "runs/pixel_denoiser", "composites_denoiser"),
    "composites_patches": functools.partial(patches, 16),
    "composites_denoiser": functools.partial(denoiser, 16, 1500),
    "emoji": functools.partial(on_denoiser, 32, "runs/emoji_denoiser", "emoji_denoiser"),
    "emoji_patches": functools.partial(patches, 32),
    "emoji_denoiser": functools.partial(denoiser, 32, 4000),
    "bedroom256_28": lambda: paper("runs/lsun_bedroom256", "configs/adm.py:lsun_bedroom256", classes=29, images=40),
    "ffhq256_34": lambda: paper("runs/ffhq256", "configs/adm.py:lsun_bedroom256", classes=34, images=20),
    "cat256_15": lambda: paper("runs/lsun_cat256", "configs/adm.py:lsun_bedroom256", classes=15, images=30),
    "horse256_21": lambda: paper("runs/lsun_horse256", "configs/adm.py:lsun_bedroom256", classes=21, images=30),
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "composites")()
