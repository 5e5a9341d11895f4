"""Bridges between paired images: I2SB (arXiv:2302.05872) and DDBM (arXiv:2309.16948).

    python -m diffusion_jax.main --config=configs/bridge.py --workdir=runs/bridge
    python -m diffusion_jax.main --config=configs/bridge.py:digits_ddbm --workdir=runs/bridge_ddbm

Sampling starts from an image x_1, not from noise. Without a variant, I2SB enlarges the 8 x 8 digits of scikit-learn
from 4 x 4 pixels, in minutes on two CPU cores; `digits_ddbm` is DDBM on the same pairs, whose network receives x_1 in
every call. `mnist_sr4` enlarges MNIST from 7 x 7 to 28 x 28 pixels.

`emoji` (I2SB) and `emoji_ddbm` change the skin tone of emoji, from exact pairs: make them from a file of emoji by
`python -m diffusion_jax.data.prepare emoji_tones --from FILE.npz --data_dir DIR` and give --config.data.path=DIR.

`digits_regression` and `emoji_regression` train the same networks to predict x_0 from x_1 in one step, for comparison.

`imagenet256_{sr4x_pool,sr4x_bicubic,jpeg5,jpeg10,deblur,inpaint}` are I2SB's restorations with its training settings,
on a folder of images, to start from ADM's weights (--config.weights=FILE): FID 2.7 and 2.8, 4.6 and 3.6, 3.9 and 4.9.
`e2h64_ve`, `e2h64_vp` and `diode256_vp` are DDBM's, on pairs in an array file with the keys images and image: FID 2.93
and 1.83 for edges to handbags, and 4.43 on DIODE.
"""

import functools
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace

NO_METRICS = dict(evaluation=dict(metrics=(), after_training=False))


def i2sb(*, beta_max: float = 0.3, noisy: bool = True, steps: int = 10, **sections: Any) -> ConfigDict:
    """I2SB: posterior sampling in a few steps, down to t = 0, where the last x_0 is the sample."""
    config = replace(
        defaults(),
        system=dict(name="bridge"),
        process=dict(name="i2sb", beta_max=beta_max, noisy=noisy),
        parameterization=dict(name="i2sb", label="time"),
        times=dict(name="uniform", t_min=1e-3),
        solver=dict(name="bridge_posterior"),
        sampling=dict(steps=steps, grid=dict(name="uniform", t_min=0.0)),
    )
    return replace(config, **sections)


def ddbm(kind: str = "ve", *, steps: int = 40, sigma_max: float = 80.0, sigma_min: float = 0.002, **sections: Any):
    """DDBM: preconditioned, sampled by Heun's method with a stochastic part of a third of each step."""
    ve = dict(
        process=dict(name="ve_bridge", sigma_min=sigma_min, sigma_max=sigma_max),
        parameterization=dict(name="ddbm", label="ddbm_sigma", sigma_data=0.5, sigma_end=0.5, covariance=0.0),
        times=dict(name="uniform", t_min=0.0),
    )
    vp = dict(
        process=dict(name="vp_bridge", beta_min=0.1, beta_max=2.1),
        parameterization=dict(name="ddbm", label="ddbm", sigma_data=0.5, sigma_end=0.5, covariance=0.0),
        times=dict(name="uniform", t_min=1e-4),
    )
    config = replace(
        defaults(),
        system=dict(name="bridge"),
        **{"ve": ve, "vp": vp}[kind],
        solver=dict(name="bridge_heun", churn=0.33),
        sampling=dict(
            steps=steps, grid=dict(name="karras", rho=7.0, t_min=0.0 if kind == "ve" else 1e-4), denoise=True
        ),
    )
    return replace(config, **sections)


def regression(config: ConfigDict) -> ConfigDict:
    """The network of `config`, I2SB, trained at t = 1 alone and sampled in one step: x_1 in, E[x_0 | x_1] out."""
    return replace(config, times=dict(name="uniform", t_min=1.0, t_max=1.0), sampling=dict(steps=1))


SR2 = dict(name="bridge", degradation=dict(name="average", factor=2))


def digits() -> ConfigDict:
    return i2sb(
        system=SR2,
        network=dict(name="mlp", hidden=256, num_layers=3),
        **presets.digits(3000),
        sampling=dict(batch_size=500),
    )


def digits_ddbm() -> ConfigDict:
    return ddbm(
        sigma_max=5.0,
        system=SR2,
        parameterization=dict(name="ddbm", label="ddbm_sigma", sigma_data=0.75, sigma_end=0.6, covariance=0.35),
        network=dict(name="mlp", hidden=256, num_layers=3, image_channels=1),
        **presets.digits(3000),
        solver=dict(name="bridge_ddim", eta=0.0),
        sampling=dict(steps=9, batch_size=500),
    )


def digits_regression() -> ConfigDict:
    return regression(digits())


def mnist_sr4() -> ConfigDict:
    return i2sb(
        system=dict(name="bridge", degradation=dict(name="average", factor=4)),
        network=presets.mnist_unet(),
        **presets.mnist(3000),
    )


EMOJI = dict(
    network=dict(
        name="unet",
        channels=16,
        channel_mult=(1, 2, 2),
        num_res_blocks=1,
        attention_resolutions=(8,),
        num_groups=8,
        dropout=0.05,
        image_channels=3,
    ),
    data=dict(name="arrays", split="train", eval_split="test", image_size=32, channels=3, path=""),
    training=dict(num_steps=1000, batch_size=8, log_every=50, checkpoint_every=500, sample_every=0),
    optimizer=presets.adam(2e-3, warmup_steps=100),
    ema=dict(rates=(0.995,)),
    sampling=dict(num_samples=60, batch_size=60),
    evaluation=dict(num_samples=60, metrics=(), after_training=False),
)


def emoji() -> ConfigDict:
    # Pairs determine each other: less noise than in restoration, sigma(1) = 0.19.
    return replace(i2sb(beta_max=0.1, **EMOJI), process=dict(beta_min=2e-5))


def emoji_ddbm() -> ConfigDict:
    config = ddbm(sigma_max=0.3, **EMOJI)
    return replace(
        config,
        parameterization=dict(name="ddbm", label="ddbm_sigma", sigma_data=0.69, sigma_end=0.57, covariance=0.33),
        solver=dict(name="bridge_ddim", eta=0.0),
        sampling=dict(steps=9),
    )


def emoji_regression() -> ConfigDict:
    return regression(emoji())


def imagenet256(beta_max: float = 0.3, noisy: bool = True, masked: bool = False, **degradation: Any) -> ConfigDict:
    """I2SB's restorations: ADM's network without learned variances, AdamW with a decay of 1 % per 1000 steps."""
    return i2sb(
        beta_max=beta_max,
        noisy=noisy,
        steps=999,
        system=dict(name="bridge", degradation=degradation, masked=masked),
        network=dict(name="adm", model_channels=256, num_res_blocks=2, channel_mult=(1, 1, 2, 2, 4, 4), out_channels=3),
        data=dict(name="folder", split="train", eval_split="train", image_size=256, channels=3, path=""),
        training=dict(num_steps=1_000_000, batch_size=256, checkpoint_every=5000, sample_every=0),
        optimizer=dict(name="adamw", learning_rate=5e-5, weight_decay=0.0, clip_norm=0.0),
        ema=dict(rates=(0.99,), warmup=False),
        sampling=dict(num_samples=16, batch_size=16),
        **NO_METRICS,
    )


def translation(kind: str, image_size: int, *, batch_size: int, **options: Any) -> ConfigDict:
    """DDBM's settings of image translation, with pairs in array files."""
    network = options.pop("network")
    return ddbm(
        kind,
        network=dict(name="adm", out_channels=3, image_channels=3, dropout=0.1, **network),
        data=dict(name="arrays", split="train", eval_split="test", image_size=image_size, channels=3, path=""),
        training=dict(num_steps=500_000, batch_size=batch_size, checkpoint_every=5000, sample_every=0),
        optimizer=dict(name="radam", learning_rate=1e-4, weight_decay=0.0, clip_norm=0.0),
        ema=dict(rates=(0.9999,), warmup=False),
        sampling=dict(num_samples=16, batch_size=16, threshold=dict(name="static")),
        **NO_METRICS,
        **options,
    )


def e2h64(kind: str) -> ConfigDict:
    network = dict(model_channels=192, num_res_blocks=3, channel_mult=(1, 2, 3, 4))
    return translation(kind, 64, batch_size=192, network=network)


def diode256() -> ConfigDict:
    network = dict(model_channels=256, num_res_blocks=2, channel_mult=(1, 1, 2, 2, 4, 4))
    return translation("vp", 256, batch_size=16, network=network)


VARIANTS = {
    "digits": digits,
    "digits_ddbm": digits_ddbm,
    "digits_regression": digits_regression,
    "mnist_sr4": mnist_sr4,
    "emoji": emoji,
    "emoji_ddbm": emoji_ddbm,
    "emoji_regression": emoji_regression,
    "imagenet256_sr4x_pool": functools.partial(imagenet256, name="average", factor=4),
    "imagenet256_sr4x_bicubic": functools.partial(imagenet256, name="bicubic", factor=4),
    "imagenet256_jpeg5": functools.partial(imagenet256, name="jpeg", quality=5),
    "imagenet256_jpeg10": functools.partial(imagenet256, name="jpeg", quality=10),
    "imagenet256_deblur": functools.partial(
        imagenet256, beta_max=1.0, noisy=False, name="gaussian_blur", size=3, std=1000.0
    ),
    "imagenet256_inpaint": functools.partial(imagenet256, beta_max=1.0, noisy=False, masked=True, name="box", size=128),
    "e2h64_ve": functools.partial(e2h64, "ve"),
    "e2h64_vp": functools.partial(e2h64, "vp"),
    "diode256_vp": diode256,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
