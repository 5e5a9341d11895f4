"""Palette: colorization, inpainting, uncropping and JPEG restoration by one diffusion model (arXiv:2111.05826).

    python -m diffusion_jax.main --config=configs/palette.py --workdir=runs/palette
    python -m diffusion_jax.main --config=configs/palette.py --workdir=runs/palette --mode=sample
    python -m diffusion_jax.main --config=configs/palette.py:emoji --workdir=runs/emoji --config.data.path=FILE.npz

Without a variant, digits of 8 x 8 pixels, which have no colours, are inpainted, uncropped and restored from JPEG files,
in minutes on two CPU cores; `emoji` has all four tasks on 16 x 16 pictures in the array `images` of an .npz file, with
their groups in `groups` for the metrics. The degraded images are made of the data; config.system.tasks are the tasks
and config.system.quality is the range of JPEG qualities. `digits_regression` and `emoji_regression` train the same
networks to predict x in one step, for comparison.

`inpainting256` and `uncropping256` (Places2) and `colorization224` are the settings of a public reimplementation, on a
folder of pictures; `imagenet256` is one model of all tasks with ADM's network, as in the paper.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace

ALL = ("colorization", "inpainting", "uncropping", "jpeg")


def palette(tasks: tuple[str, ...], *, network: dict[str, Any], channels: int = 3, **sections: Any) -> ConfigDict:
    """The sections that all variants share. The network reads the degraded image, and one of several tasks."""
    classes = dict(num_classes=len(tasks)) if len(tasks) > 1 else {}
    config = replace(
        defaults(),
        system=dict(name="palette", tasks=tasks, quality=(5, 30)),
        network=dict(image_channels=channels, **classes, **network),
        sampling=dict(threshold=dict(name="static")),
    )
    return replace(config, **sections)


def small(tasks: tuple[str, ...], *, channels: int, network: dict[str, Any], **sections: Any) -> ConfigDict:
    """v-prediction on the cosine schedule in 50 steps of DDIM.

    Errors of v at high noise are not divided by alpha in D, and the weights, max(SNR, 1), train D there as well.
    """
    config = palette(
        tasks,
        channels=channels,
        network=network,
        process=dict(name="discrete_vp", betas="cosine", num_steps=1000),
        parameterization=dict(name="v", label="index"),
        weighting=dict(name="truncated_snr"),
        times=dict(name="discrete", num_steps=1000),
        solver=dict(name="ddim"),
    )
    config.sampling.update(steps=50, grid=ConfigDict(dict(name="discrete", spacing="linspace")))
    return replace(config, **sections)


def regression(config: ConfigDict) -> ConfigDict:
    """The network of `config`, trained at t = 1 alone and evaluated once: the mean of x given the degraded image."""
    return replace(config, times=dict(name="uniform", t_min=1.0, t_max=1.0), sampling=dict(steps=1))


def digits() -> ConfigDict:
    return small(
        ("inpainting", "uncropping", "jpeg"),
        channels=1,
        network=dict(name="mlp", hidden=256, num_layers=3),
        **presets.digits(4000),
        sampling=dict(num_samples=99, batch_size=500),
    )


def emoji() -> ConfigDict:
    return small(
        ALL,
        channels=3,
        network=dict(
            name="adm",
            model_channels=32,
            channel_mult=(1, 2, 2),
            num_res_blocks=1,
            attention_resolutions=(4,),
            num_head_channels=16,
            num_groups=8,
        ),
        data=presets.emoji_data(flip=True) | dict(image_size=16),
        training=dict(num_steps=4000, batch_size=32, log_every=100, checkpoint_every=1000, sample_every=0),
        optimizer=presets.adam(),
        ema=dict(rates=(0.999,)),
        sampling=dict(num_samples=64, batch_size=180),
        evaluation=dict(num_samples=180, metrics=(), after_training=False),
    )


def published(tasks: tuple[str, ...], image_size: int, batch_size: int = 3) -> ConfigDict:
    """eps-prediction between 2000 betas, sampled with larger ones, on a folder of pictures.

    The reimplementation samples with 1000 betas. From the 469th on they make more noise than there is in training, all
    of which is t = 1 here, so that steps between those would change nothing and are left out.

    The authors of the reimplementation ask for attention where a side is 1/16 of the picture's, which their network of
    four levels does not have: it attends in the middle alone.
    """
    network = dict(model_channels=64, channel_mult=(1, 2, 4, 8), num_res_blocks=2, num_head_channels=32, dropout=0.2)
    betas = tuple(1e-4 + (0.09 - 1e-4) * i / 999 for i in range(469))
    config = palette(
        tasks,
        network=dict(name="adm", attention_resolutions=(), **network),
        process=dict(name="discrete_vp", betas="linear", num_steps=2000, beta_start=1e-6, beta_end=1e-2),
        parameterization=dict(name="eps", label="time"),
        times=dict(name="uniform", t_min=0.0005),
        solver=dict(name="ancestral"),
        data=dict(name="folder", split="train", eval_split="train", image_size=image_size, channels=3, path=""),
        training=dict(num_steps=1_000_000, batch_size=batch_size, checkpoint_every=10_000, sample_every=10_000),
        optimizer=dict(name="adam", learning_rate=5e-5, warmup_steps=0, clip_norm=0.0),
        ema=dict(rates=(0.9999,), warmup=False),
        evaluation=dict(metrics=(), after_training=False),
    )
    grid = ConfigDict(dict(name="betas", values=betas))
    config.sampling.update(steps=len(betas), num_samples=16, batch_size=16, grid=grid)
    return config


def imagenet256() -> ConfigDict:
    config = published(ALL, 256)
    sizes = dict(model_channels=256, channel_mult=(1, 1, 2, 2, 4, 4), num_res_blocks=2)
    config.network = ConfigDict(dict(name="adm", image_channels=3, num_classes=len(ALL), **sizes))
    return config


VARIANTS = {
    "digits": digits,
    "digits_regression": lambda: regression(digits()),
    "emoji": emoji,
    "emoji_regression": lambda: regression(emoji()),
    "inpainting256": lambda: published(("inpainting",), 256),
    "uncropping256": lambda: published(("uncropping",), 256),
    "colorization224": lambda: published(("colorization",), 224, batch_size=4),
    "imagenet256": imagenet256,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
