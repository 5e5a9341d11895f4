"""A noisy classifier for classifier guidance of an unconditional model of the same process (arXiv:2105.05233).

    python -m diffusion_jax.main --config=configs/noisy_classifier.py --workdir=runs/classifier
    python -m diffusion_jax.main --config=configs/noisy_classifier.py:mnist --workdir=runs/classifier_mnist

Then, with a model of `ddpm.py` in runs/ddpm (`ddpm.py:mnist` for `mnist`):

    --config=configs/ddpm.py --workdir=runs/ddpm --mode=sample --config.guidance.name=classifier \\
        --config.guidance.path=runs/classifier --config.guidance.scale=3.0 --config.sampling.cond=3 \\
        --config.sampling.threshold.name=static

Without a variant, it learns the classes of scikit-learn's digits under the noise of `ddpm.py`, in minutes on two CPU
cores. The network is a small encoder of ADM with attention pooling. For another model set config.process, config.data
and config.times to those of that model; a classifier with another process is refused.

`imagenet64`, `imagenet128`, `imagenet256` and `imagenet512` are the authors' networks, for models with the linear noise
schedule (at 64 x 64 the cosine schedule). The authors publish how they train the one for 128 x 128, and all are trained
so here. config.data.path is ImageNet as folders of classes.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def classifier(*, betas: str = "linear", **sections: Any) -> ConfigDict:
    """The sections that all variants share: DDPM's process, and a network that is conditioned on the timestep."""
    config = replace(
        defaults(),
        system=dict(name="noisy_classifier"),
        **presets.ddpm(betas),
        training=dict(sample_every=0),
        ema=dict(rates=(0.999,)),
        evaluation=dict(metrics=()),
    )
    return replace(config, **sections)


def digits() -> ConfigDict:
    return classifier(
        betas="cosine",
        network=dict(
            name="encoder_unet",
            num_classes=10,
            model_channels=16,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(4,),
            num_head_channels=16,
            num_groups=8,
            dropout=0.1,
        ),
        training=dict(num_steps=3000, batch_size=64, log_every=100),
        optimizer=dict(name="adamw", learning_rate=1e-3, weight_decay=0.05, schedule="cosine", warmup_steps=200),
    )


def mnist() -> ConfigDict:
    return classifier(
        network=dict(
            name="encoder_unet",
            num_classes=10,
            model_channels=16,
            channel_mult=(1, 2, 4),
            num_res_blocks=1,
            attention_resolutions=(7,),
            num_head_channels=16,
            num_groups=8,
        ),
        data=presets.mnist_data(),
        training=dict(num_steps=3000, batch_size=64, checkpoint_every=500),
        optimizer=dict(name="adamw", learning_rate=1e-3, weight_decay=0.05, schedule="cosine", warmup_steps=200),
    )


def imagenet(size: int, *, betas: str = "linear", **network: Any) -> ConfigDict:
    """The variants of ImageNet, with the authors' training at 128 x 128."""
    return classifier(
        betas=betas,
        network=dict(name="encoder_unet", num_classes=1000, **network),
        data=dict(
            name="folder",
            split="train",
            eval_split="train",
            image_size=size,
            channels=3,
            flip=True,
            crop="random",
            resize=(size, size * 5 // 4),
            path="",
        ),
        training=dict(num_steps=300_000, batch_size=256, checkpoint_every=10_000),
        optimizer=dict(
            name="adamw", learning_rate=3e-4, weight_decay=0.05, decay="all", schedule="linear", clip_norm=0.0
        ),
        ema=dict(rates=()),
        evaluation=dict(after_training=False),
    )


VARIANTS = {
    "digits": digits,
    "mnist": mnist,
    "imagenet64": lambda: imagenet(64, betas="cosine", channel_mult=(1, 2, 3, 4), num_res_blocks=4),
    "imagenet128": lambda: imagenet(128, channel_mult=(1, 1, 2, 3, 4)),
    "imagenet256": lambda: imagenet(256, channel_mult=(1, 1, 2, 2, 4, 4)),
    "imagenet512": lambda: imagenet(512, channel_mult=(0.5, 1, 1, 2, 2, 4, 4)),
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
