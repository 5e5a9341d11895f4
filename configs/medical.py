"""Medical images: denoising at matched time, translation between modalities, histology, examples for classifiers.

    python -m diffusion_jax.main --config=configs/medical.py --workdir=runs/slice
    python -m diffusion_jax.main --config=configs/medical.py --workdir=runs/slice --mode=sample \\
        --config.sampling.samples_per_condition=8
    python -m diffusion_jax.main --config=configs/medical.py --workdir=runs/slice --mode=sample \\
        --config.editing.image=scan.png --config.editing.noise=0.2
    python -m diffusion_jax.main --config=configs/medical.py:k_space --workdir=runs/slice --mode=evaluate

Without a variant, an unconditional model of 16 x 16 tiles of one slice of a head by magnetic resonance, which ships
with matplotlib, is trained in minutes on two CPU cores. It denoises held-out tiles: sampling starts from the noisy
image at the time of its noise (after arXiv:2201.11760), and the draws of one image have a mean and a spread.
--config.sampling.steps=1 --config.solver.name=ddim gives the estimate of least mean squared error instead. `k_space`
samples with the same run from undersampled frequencies of tiles, which are those of magnitudes and no raw data of a
scanner. `retina` and `speckle`, for noise that multiplies the image, are the same on 32 x 32 tiles of an image of your
own; docs/medical.md uses the retina of scikit-image.

`translation` draws the red and blue channel of pictures of blood cells given the green one, as a stand-in for a
translation between two kinds of scans, `histology` learns tiles of slides with the weights of P2 (arXiv:2204.00227),
and `cells` crops of blood cells by class, whose use for a classifier the metric "utility" measures. Make their data by

    python -m diffusion_jax.data.prepare channels --from bccd_72x54.npz --data_dir channels --size 24
    python -m diffusion_jax.data.prepare stains --from slides --data_dir normalised
    python -m diffusion_jax.data.prepare objects --from bccd_72x54.npz --data_dir cells --size 16

and give the folder as --config.data.path=DIR.

The other variants are full-size settings, and not those of a paper in every number: `mri_ct256` draws slices of
computed tomography given registered slices of magnetic resonance, from NIfTI files, with the conditional DDPM of 1000
steps that arXiv:2209.12104 describes; `histology128` is ADM's network with the weights of P2 and the classes of
patches, as arXiv:2209.13167 describes it. None of the authors published code.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace

DRAWS = 8  # samples of one image


def small(num_steps: int, batch_size: int = 32, *, network: dict[str, Any], **sections: Any) -> ConfigDict:
    """A small U-Net, sampled by the ancestral sampler, whose draws are those of the posterior as the steps grow."""
    config = replace(defaults(), **presets.small_adm(num_steps, batch_size, **network))
    config = replace(
        config,
        solver=dict(name="ancestral"),
        sampling=dict(steps=50, batch_size=400, threshold=dict(name="static"), grid=dict(name="uniform", t_min=0.0)),
    )
    return replace(config, **sections)


def draws(images: int, *metrics: str) -> dict[str, Any]:
    """Several samples of each of some images in evaluation."""
    return dict(
        sampling=dict(num_samples=8 * DRAWS),
        evaluation=dict(num_samples=DRAWS * images, samples_per_condition=DRAWS, metrics=metrics),
    )


def tiles(
    num_steps: int, image_size: int, noise: float, *, images: int, batch_size: int = 32, **data: Any
) -> ConfigDict:
    """A model of grey tiles that denoises `images` held-out ones, or the image in config.editing.image."""
    where = dict(name="tiles", split="train", eval_split="test", path="", image_size=image_size, channels=1)
    return small(
        num_steps,
        batch_size,
        network=dict(attention_resolutions=(image_size // 4,)),
        data=where | data,
        editing=dict(name="denoising", noise=noise, image=""),
        **draws(images, "restoration"),
    )


def unmeasured(config: ConfigDict) -> ConfigDict:
    """Metrics are asked for by --mode=evaluate --config.evaluation.metrics='("translation",)'."""
    return replace(config, evaluation=dict(metrics=(), after_training=False))


def slice_() -> ConfigDict:
    return tiles(1500, 16, 0.2, images=30)


def retina() -> ConfigDict:
    return tiles(1000, 32, 0.2, images=100, batch_size=16, reduce=2)


def speckle() -> ConfigDict:
    """The logarithm of the image, to which noise that multiplies it is added: 0.1 is a factor exp(0.28 n)."""
    return tiles(1000, 32, 0.1, images=100, batch_size=16, reduce=2, log=True)


def k_space() -> ConfigDict:
    """The run of the default, sampled under a quarter of the frequencies."""
    return replace(
        slice_(),
        editing=dict(name="none"),
        guidance=dict(
            name="measurement",
            operator=dict(name="k_space", acceleration=4, noise=0.02),
            method=dict(name="mmps"),
            clip=True,
        ),
        solver=dict(name="renoised", churn=0.85, eps="corrected"),
        sampling=dict(grid=dict(name="uniform", t_min=0.0, t_max=0.999)),
    )


def translation() -> ConfigDict:
    data = dict(name="arrays", split="train", eval_split="test", path="")
    return small(
        1000,
        network=dict(image_channels=1, attention_resolutions=(6,)),
        data=dict(**data, image_size=24, channels=2, modality="image"),
        **draws(50, "translation"),
    )


def histology() -> ConfigDict:
    config = small(
        1000,
        16,
        network=dict(attention_resolutions=(8,)),
        weighting=dict(name="p2", gamma=1.0, k=1.0),
        data=dict(name="tiles", split="train", eval_split="test", path="", image_size=32, channels=3, reduce=1),
    )
    return unmeasured(config)


def cells() -> ConfigDict:
    """Crops by class, of which rare classes are trained on as often as the others."""
    where = dict(name="arrays", split="train", eval_split="test", path="", balance="label")
    return small(
        1500,
        network=dict(num_classes=3, attention_resolutions=(4,)),
        data=dict(**where, image_size=16, channels=3, flip=True),
        sampling=dict(num_samples=60),
        evaluation=dict(num_samples=900, metrics=("utility",)),
    )


def full(*, batch_size: int, network: dict[str, Any], **sections: Any) -> ConfigDict:
    """DDPM's process of 1000 steps and ADM's network."""
    sizes = dict(num_res_blocks=2, attention_resolutions=(32, 16, 8), num_head_channels=64, dropout=0.1)
    config = replace(
        defaults(),
        **presets.ddpm(),
        network=dict(name="adm", **sizes, **network),
        solver=dict(name="ancestral", variance="beta_tilde"),
        training=dict(num_steps=200_000, batch_size=batch_size, checkpoint_every=5000, sample_every=0),
        optimizer=dict(name="adamw", learning_rate=1e-4, weight_decay=0.0, warmup_steps=0, clip_norm=1.0),
        ema=dict(rates=(0.9999,), warmup=False),
        sampling=dict(steps=1000, num_samples=32, batch_size=16, grid=dict(name="discrete", spacing="linspace")),
    )
    config.sampling.threshold = ConfigDict(dict(name="static"))
    return unmeasured(replace(config, **sections))


def mri_ct256() -> ConfigDict:
    where = dict(name="volumes", split="train", eval_split="test", path="", image_path="", image_size=256)
    return replace(
        full(
            batch_size=16,
            network=dict(model_channels=128, channel_mult=(1, 1, 2, 2, 4, 4), image_channels=1),
            data=dict(**where, channels=1, axis=2, window=(-1000.0, 2000.0), image_window=()),
        ),
        **draws(100),
    )


def histology128() -> ConfigDict:
    where = dict(name="folder", split="train", eval_split="test", path="", image_size=128, channels=3, flip=True)
    return full(
        batch_size=64,
        network=dict(model_channels=128, channel_mult=(1, 1, 2, 3, 4), num_classes=3),
        weighting=dict(name="p2", gamma=1.0, k=1.0),
        data=where,
    )


VARIANTS = {
    "slice": slice_,
    "k_space": k_space,
    "retina": retina,
    "speckle": speckle,
    "translation": translation,
    "histology": histology,
    "cells": cells,
    "mri_ct256": mri_ct256,
    "histology128": histology128,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "slice")()
