"""Improved DDPM: learned variances, the cosine noise schedule, the variational bound (arXiv:2102.09672).

    python -m diffusion_jax.main --config=configs/iddpm.py --workdir=runs/iddpm
    python -m diffusion_jax.main --config=configs/iddpm.py:cifar10_hybrid --workdir=runs/iddpm_cifar10

Without a variant, a small network is trained on the 8 x 8 digits of scikit-learn, in minutes on two CPU cores.
Evaluation reports the bound in bits/dim with its rate and distortion. With --config.loss.name=vlb
--config.times.name=loss_second_moment the bound itself is minimised.

The other variants are the paper's, with the networks of its published weights: `hybrid` minimises L_simple + 0.001
L_vlb over uniform times, `vlb` the bound over importance-sampled times. The process has 4000 steps, of which the
sampler takes any number, --config.sampling.steps=100. The paper reports on CIFAR-10, linear 3.70 bits/dim and FID 2.90
(L_simple), cosine 3.17 and 3.19 (hybrid), 2.94 and 11.47 (vlb); on ImageNet 64 with cosine 3.57 and 19.2 (hybrid), 3.53
and 40.1 (vlb). `imagenet64_cond` is the class-conditional model of 270 M parameters, `upsampler_64_256`
super-resolution (small images as in `adm.py`), `lsun_bedroom256` and `lsun_bedroom256_lr2e5` are the models of
bedrooms.
"""

import functools
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def iddpm(*, loss: str, num_steps: int, **sections: Any) -> ConfigDict:
    """The sections that all variants share. The second half of the network's output channels are the variances."""
    config = replace(
        defaults(),
        **presets.ddpm("cosine", num_steps),
        weighting=dict(name="simple"),
        loss=dict(name=loss),
        solver=dict(name="ancestral", variance="learned"),
        sampling=dict(steps=num_steps, grid=dict(name="discrete", spacing="linspace"), threshold=dict(name="static")),
        evaluation=dict(likelihood=dict(name="bound", variance="learned")),
    )
    if loss == "vlb":
        config.times.name = "loss_second_moment"
    return replace(config, **sections)


def digits() -> ConfigDict:
    return iddpm(
        loss="hybrid",
        num_steps=200,
        # The noise of the first step is about one of the 17 grey levels here, as in the paper it is one of 256.
        process=dict(name="discrete_vp", betas="linear", num_steps=200, beta_start=0.01, beta_end=0.1),
        data=dict(levels=17),
        # A network without skip connections from input to output learns fastest with EDM's preconditioning.
        parameterization=dict(name="edm", sigma_data=0.5),
        weighting=dict(name="edm", sigma_data=0.5),
        network=dict(name="mlp", hidden=512, num_layers=4, out_channels=2, dropout=0.2),
        **presets.digits(6000),
        sampling=dict(batch_size=500),
    )


def mnist() -> ConfigDict:
    return iddpm(
        loss="hybrid",
        num_steps=1000,
        network=presets.mnist_unet(out_channels=2),
        **presets.mnist(3000),
        sampling=dict(steps=100, batch_size=100),
        evaluation=dict(num_samples=500),
    )


def full(
    loss: str,
    *,
    data: dict[str, Any],
    network: dict[str, Any],
    num_steps: int,
    diffusion_steps: int = 4000,
    batch_size: int = 128,
    learning_rate: float = 1e-4,
) -> ConfigDict:
    return iddpm(
        loss=loss,
        num_steps=diffusion_steps,
        parameterization=dict(name="eps", label="timestep"),
        network=dict(
            name="adm",
            num_head_channels=None,
            resblock_updown=False,
            out_channels=6,
            **dict(model_channels=128) | network,
        ),
        data=dict(split="train", channels=3, path="", flip=False) | data,
        training=dict(num_steps=num_steps, batch_size=batch_size, checkpoint_every=10_000, sample_every=50_000),
        optimizer=dict(name="adam", learning_rate=learning_rate, clip_norm=0.0),
        ema=dict(rates=(0.9999,), warmup=False),
        evaluation=dict(metrics=(), after_training=False),
        sampling=dict(steps=250),
    )


def cifar10(loss: str) -> ConfigDict:
    return full(
        loss,
        data=dict(name="cifar10", eval_split="test", image_size=32),
        network=dict(channel_mult=(1, 2, 2, 2), attention_resolutions=(16, 8), num_heads=4, dropout=0.3),
        num_steps=500_000,
    )


def imagenet64(loss: str) -> ConfigDict:
    return full(
        loss,
        data=dict(name="downsampled_imagenet/64x64", eval_split="validation", image_size=64),
        network=dict(channel_mult=(1, 2, 3, 4), attention_resolutions=(16, 8), num_heads=4),
        num_steps=1_500_000,
    )


def unscaled(config: ConfigDict) -> ConfigDict:
    """The network is conditioned on the timestep itself, and L_vlb is weighted by 1 / T, as the authors' code has it
    without `rescale_timesteps` and `rescale_learned_sigmas`."""
    weight = 1 / config.process.num_steps
    return replace(
        config, parameterization=dict(name="eps", label="index"), loss=dict(name="hybrid", vlb_weight=weight)
    )


def imagenet64_cond() -> ConfigDict:
    config = full(
        "hybrid",
        data=dict(name="folder", eval_split="train", image_size=64),
        network=dict(
            model_channels=192,
            channel_mult=(1, 2, 3, 4),
            attention_resolutions=(16, 8),
            num_heads=4,
            num_classes=1000,
        ),
        num_steps=250_000,
        batch_size=2048,
        learning_rate=3e-4,
    )
    return unscaled(config)


def upsampler_64_256() -> ConfigDict:
    config = full(
        "hybrid",
        data=dict(name="folder", eval_split="train", image_size=256),
        network=dict(
            model_channels=192,
            channel_mult=(1, 1, 2, 2, 4, 4),
            num_res_blocks=2,
            attention_resolutions=(16, 8),
            num_heads=4,
            num_classes=1000,
            image_channels=3,
        ),
        num_steps=500_000,
        batch_size=256,
        learning_rate=3e-4,
    )
    return unscaled(replace(config, process=dict(name="discrete_vp", betas="linear", num_steps=4000)))


def lsun_bedroom256(num_steps: int = 1_200_000, **training: Any) -> ConfigDict:
    config = full(
        "hybrid",
        data=dict(name="lsun/bedroom", eval_split="validation", image_size=256),
        network=dict(
            channel_mult=(1, 1, 2, 2, 4, 4),
            num_res_blocks=2,
            attention_resolutions=(16,),
            num_heads=1,
            use_scale_shift_norm=False,
        ),
        num_steps=num_steps,
        diffusion_steps=1000,
        **training,
    )
    return unscaled(replace(config, process=dict(name="discrete_vp", betas="linear", num_steps=1000)))


VARIANTS = {
    "digits": digits,
    "mnist": mnist,
    "cifar10_hybrid": functools.partial(cifar10, "hybrid"),
    "cifar10_vlb": functools.partial(cifar10, "vlb"),
    "imagenet64_hybrid": functools.partial(imagenet64, "hybrid"),
    "imagenet64_vlb": functools.partial(imagenet64, "vlb"),
    "imagenet64_cond": imagenet64_cond,
    "upsampler_64_256": upsampler_64_256,
    "lsun_bedroom256": lsun_bedroom256,
    "lsun_bedroom256_lr2e5": functools.partial(lsun_bedroom256, 2_400_000, learning_rate=2e-5),
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
