"""EDM: preconditioned denoising with log-normal noise levels, sampled by Heun's method (arXiv:2206.00364).

    python -m diffusion_jax.main --config=configs/edm.py --workdir=runs/edm
    python -m diffusion_jax.main --config=configs/edm.py:cifar10_ddpmpp --workdir=runs/edm_cifar10

Without a variant, a small network is trained on the 8 x 8 digits of scikit-learn, in minutes on two CPU cores.
`stacked_digits` is for the comparison of families in docs/trilemma.md.

`cifar10_*`, `afhqv2_64_*` and `ffhq_64_*` are the paper's training runs ("config F") with DDPM++ and NCSN++,
class-conditional if they are called `cond`, and with its non-leaking augmentation, on whose parameters the network is
conditioned. AFHQv2 and FFHQ are folders of images: give --config.data.path. The paper reports FID with DDPM++ of 1.97
on CIFAR-10, 1.79 with classes, after 35 network evaluations, 1.96 on AFHQv2 and 2.39 on FFHQ after 79.
`imagenet64_adm`, with ADM's network and no augmentation, reaches 1.36 there after 511. `lsun256_adm` is the teacher of
the consistency models of LSUN in `consistency.py`.
"""

import functools
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace
from diffusion_jax.training.ema import decay_from_half_life

DDPMPP = dict(name="song_unet", embedding_type="positional")
NCSNPP = dict(
    name="song_unet",
    embedding_type="fourier",
    channel_mult_noise=2,
    encoder_type="residual",
    resample_filter=(1, 3, 3, 1),
)


def edm(*, steps: int, **sections: Any) -> ConfigDict:
    """The sections that all variants share. The final denoising is the algorithm's last step, from sigma_min to 0.

    `steps` is the paper's N, which counts it, and costs 2 N - 1 evaluations.
    """
    config = replace(
        defaults(),
        process=dict(name="edm", sigma_min=0.002, sigma_max=80.0),
        parameterization=dict(name="edm", sigma_data=0.5),
        weighting=dict(name="edm", sigma_data=0.5),
        times=dict(name="log_normal", mean=-1.2, std=1.2),
        solver=dict(name="heun"),
        sampling=dict(steps=steps, grid=dict(name="karras", rho=7.0, denoising=True), denoise=True),
    )
    return replace(config, **sections)


def digits() -> ConfigDict:
    return edm(
        steps=18,
        network=dict(name="mlp", hidden=512, num_layers=4),
        **presets.digits(8000),
        sampling=dict(batch_size=500),
    )


def stacked_digits() -> ConfigDict:
    return edm(
        steps=18,
        network=dict(name="mlp", hidden=256, num_layers=4),
        **presets.compared(6000, name="ode", t_min=1e-4),
        sampling=dict(batch_size=500),
    )


def paper(
    *,
    steps: int,
    augment: float,
    batch_size: int,
    learning_rate: float,
    network: dict[str, Any],
    data: dict[str, Any],
    images: int = 200_000_000,
    half_life: int = 500_000,
) -> ConfigDict:
    """The paper's setting (table 7): training lasts `images` images, with a warm-up over the first 10 million."""
    return edm(
        steps=steps,
        system=dict(name="diffusion", augment=augment),
        network=network | (dict(augment_dim=9) if augment else {}),
        data=dict(channels=3, flip=False, path="") | data,
        training=dict(
            num_steps=images // batch_size, batch_size=batch_size, checkpoint_every=5000, sample_every=10_000
        ),
        optimizer=dict(name="adam", learning_rate=learning_rate, warmup_steps=10_000_000 // batch_size, clip_norm=0.0),
        ema=dict(rates=(decay_from_half_life(half_life, batch_size),), warmup=False, rampup=0.05),
        evaluation=dict(metrics=(), after_training=False),
    )


def cifar10(architecture: dict[str, Any], **conditions: int) -> ConfigDict:
    return paper(
        steps=18,
        augment=0.12,
        batch_size=512,
        learning_rate=1e-3,
        network=dict(channel_mult=(2, 2, 2), dropout=0.13, **architecture, **conditions),
        data=dict(name="cifar10", split="train", eval_split="test", image_size=32),
    )


def faces_64(architecture: dict[str, Any], *, dropout: float) -> ConfigDict:
    """The variants of AFHQv2 and FFHQ at 64 x 64."""
    return paper(
        steps=40,
        augment=0.15,
        batch_size=256,
        learning_rate=2e-4,
        network=dict(channel_mult=(1, 2, 2, 2), dropout=dropout, **architecture),
        data=dict(name="folder", split="train", eval_split="train", image_size=64),
    )


def imagenet64_adm() -> ConfigDict:
    config = paper(
        steps=256,
        augment=0.0,
        batch_size=4096,
        learning_rate=1e-4,
        network=dict(name="dhariwal_unet", dropout=0.1, num_classes=1000),
        data=dict(name="folder", split="train", eval_split="train", image_size=64),
        images=2_500_000_000,
        half_life=50_000_000,
    )
    return replace(config, solver=dict(name="heun", churn=40.0, s_min=0.05, s_max=50.0, s_noise=1.003))


def lsun256_adm() -> ConfigDict:
    """The teacher of consistency models of LSUN (arXiv:2303.01469): ADM's network under EDM's loss."""
    return edm(
        steps=40,
        network=dict(
            name="adm",
            model_channels=256,
            channel_mult=(1, 1, 2, 2, 4, 4),
            num_res_blocks=2,
            use_scale_shift_norm=False,
            dropout=0.1,
        ),
        data=dict(name="folder", split="train", eval_split="train", image_size=256, channels=3, path=""),
        training=dict(num_steps=1_000_000, batch_size=256, checkpoint_every=5000, sample_every=10_000),
        optimizer=dict(name="radam", learning_rate=1e-4, warmup_steps=0, clip_norm=0.0),
        ema=dict(rates=(0.9999432189950708,), warmup=False),
        evaluation=dict(metrics=(), after_training=False),
    )


VARIANTS = {
    "digits": digits,
    "stacked_digits": stacked_digits,
    "cifar10_ddpmpp": functools.partial(cifar10, DDPMPP),
    "cifar10_ncsnpp": functools.partial(cifar10, NCSNPP),
    "cifar10_cond_ddpmpp": functools.partial(cifar10, DDPMPP, num_classes=10),
    "cifar10_cond_ncsnpp": functools.partial(cifar10, NCSNPP, num_classes=10),
    "afhqv2_64_ddpmpp": functools.partial(faces_64, DDPMPP, dropout=0.25),
    "afhqv2_64_ncsnpp": functools.partial(faces_64, NCSNPP, dropout=0.25),
    "ffhq_64_ddpmpp": functools.partial(faces_64, DDPMPP, dropout=0.05),
    "ffhq_64_ncsnpp": functools.partial(faces_64, NCSNPP, dropout=0.05),
    "imagenet64_adm": imagenet64_adm,
    "lsun256_adm": lsun256_adm,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
