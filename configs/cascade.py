"""Cascades: small images, and super-resolution with conditioning augmentation upon them (CDM, arXiv:2106.15282).

    python -m diffusion_jax.main --config=configs/cascade.py:digits_base --workdir=runs/cascade_base
    python -m diffusion_jax.main --config=configs/cascade.py --workdir=runs/cascade
    python -m diffusion_jax.main --config=configs/cascade.py --workdir=runs/cascade --mode=evaluate \\
        --config.system.level=0.4

The first command trains a class-conditional model of 4 x 4 digits, the second one that enlarges them to 8 x 8 pixels,
and whose samples are those of both. In training the smaller image is made of the data, and noise of a random level s in
config.system.levels is added, of which the network knows the level; config.system.level is that of sampling.
config.system.base is the work directory of the smaller model; --config.system.base= samples from the small images in
config.sampling.cond=FILE instead. `mnist_base` and `mnist` go from 7 x 7 to 28 x 28 pixels (config.data.path=FOLDER).

`imagenet32_base`, `imagenet32_64`, `imagenet64_128` and `imagenet64_256` are stages of the sizes of the paper, with the
networks of ADM (adm.py) for these sizes, on ImageNet as folders of classes. Small images of 32 pixels have noise, and
those of 64 pixels are blurred instead.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace

CLASSES = dict(num_classes=10)


def stage(*, steps: int, **sections: Any) -> ConfigDict:
    """The sections that all stages share: v-prediction on the cosine schedule, in `steps` steps of DDIM."""
    config = replace(
        defaults(),
        process=dict(name="discrete_vp", betas="cosine", num_steps=1000),
        parameterization=dict(name="v", label="index"),
        times=dict(name="discrete", num_steps=1000),
        solver=dict(name="ddim"),
        sampling=dict(steps=steps, grid=dict(name="discrete", spacing="linspace")),
    )
    return replace(config, **sections)


def enlarging(
    base: str, config_file: str, *, highest: float = 0.0, level: float = 0.0, blur: float = 0.0
) -> dict[str, Any]:
    """The section `system` of a stage above `base`, for levels of noise up to `highest` or a blur."""
    return dict(
        name="super_resolution",
        levels=(0.0, highest),
        level=level,
        **(dict(blur=(blur, blur)) if blur else {}),
        base=base,
        base_config=f"configs/cascade.py:{config_file}",
    )


def digits_base() -> ConfigDict:
    return stage(
        steps=50,
        network=dict(name="mlp", hidden=256, num_layers=3, **CLASSES),
        **presets.digits(4000),
        data=dict(image_size=4),
        sampling=dict(batch_size=500),
    )


def digits() -> ConfigDict:
    return stage(
        steps=50,
        system=enlarging("runs/cascade_base", "digits_base", highest=0.5, level=0.2),
        network=small_adm(low_res=4, attention_resolutions=(4,), channel_mult=(1, 2)),
        **presets.digits(2000, batch_size=64),
        sampling=dict(batch_size=500),
    )


def small_adm(**sizes: Any) -> dict[str, Any]:
    """ADM's network with 32 channels, of a class, a smaller image and the level of its noise."""
    return dict(
        name="adm",
        model_channels=32,
        num_res_blocks=1,
        num_head_channels=16,
        num_groups=8,
        image_channels=1,
        vector_dim=1,
        **CLASSES,
        **sizes,
    )


def mnist_base() -> ConfigDict:
    return stage(
        steps=50,
        network=dict(name="mlp", hidden=512, num_layers=4, **CLASSES),
        **presets.mnist(4000, batch_size=128) | dict(data=presets.mnist_data() | dict(image_size=7)),
        sampling=dict(num_samples=100, batch_size=100),
    )


def mnist() -> ConfigDict:
    return stage(
        steps=50,
        system=enlarging("runs/cascade_mnist_base", "mnist_base", highest=0.5, level=0.1),
        network=small_adm(low_res=7, attention_resolutions=(7,), channel_mult=(1, 2, 2)),
        **presets.mnist(3000),
        sampling=dict(num_samples=100, batch_size=100),
    )


def imagenet(image_size: int, *, network: dict[str, Any], num_steps: int, **sections: Any) -> ConfigDict:
    """A stage of ImageNet, with the optimizer of ADM's models."""
    return stage(
        steps=256,
        network=dict(name="adm", num_classes=1000, **network),
        data=dict(
            name="folder", split="train", eval_split="train", image_size=image_size, channels=3, flip=True, path=""
        ),
        training=dict(num_steps=num_steps, batch_size=256, checkpoint_every=10_000, sample_every=50_000),
        optimizer=dict(name="adamw", learning_rate=1e-4, weight_decay=0.0, clip_norm=0.0),
        ema=dict(rates=(0.9999,), warmup=False),
        evaluation=dict(metrics=(), after_training=False),
        **sections,
    )


FEW = dict(num_samples=16, batch_size=16)
SMALL_IMAGES = dict(model_channels=192, num_res_blocks=3, use_new_attention_order=True, dropout=0.1)


def imagenet32_base() -> ConfigDict:
    network = dict(SMALL_IMAGES, channel_mult=(1, 2, 3), attention_resolutions=(16, 8))
    return imagenet(32, network=network, num_steps=540_000, sampling=FEW)


def imagenet32_64() -> ConfigDict:
    return imagenet(
        64,
        network=dict(SMALL_IMAGES, channel_mult=(1, 2, 3, 4), image_channels=3, low_res=32, vector_dim=1),
        num_steps=540_000,
        system=enlarging("runs/cascade_imagenet32", "imagenet32_base", highest=1.0, level=0.2),
        sampling=FEW,
    )


def imagenet64_large(image_size: int, **network: Any) -> ConfigDict:
    sizes = dict(model_channels=192, num_res_blocks=2, image_channels=3, low_res=64, num_head_channels=None)
    return imagenet(
        image_size,
        network=dict(sizes, num_heads=4, **network),
        num_steps=500_000,
        system=enlarging("runs/cascade_imagenet64", "imagenet32_64", blur=0.6),
        sampling=FEW,
    )


VARIANTS = {
    "digits": digits,
    "digits_base": digits_base,
    "mnist_base": mnist_base,
    "mnist": mnist,
    "imagenet32_base": imagenet32_base,
    "imagenet32_64": imagenet32_64,
    "imagenet64_128": lambda: imagenet64_large(128, channel_mult=(1, 1, 2, 3, 4)),
    "imagenet64_256": lambda: imagenet64_large(256, channel_mult=(1, 1, 2, 2, 4, 4)),
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
