"""ADM (guided diffusion): U-Nets for classifier guidance, and their super-resolution stages (arXiv:2105.05233).

    python -m diffusion_jax.main --config=configs/adm.py --workdir=runs/adm
    python -m diffusion_jax.main --config=configs/adm.py:imagenet64 --workdir=runs/adm64 --config.data.path=FOLDER

Without a variant, a small network of this family is trained on the 8 x 8 digits of scikit-learn, class-conditional, in
minutes on two CPU cores. `digits_upsampler` is super-resolution from 4 x 4 to 8 x 8, `digits_upsampler_augmented` with
noise of a level that it reads, for small images that a model drew. Every model learns its variances with its means, by
the hybrid loss L_simple + 0.001 L_vlb. For classifier guidance train a classifier with `noisy_classifier.py` and set
--config.guidance.name=classifier.

The other variants are the paper's (tables 11 and 12): `imagenet{64,128,256,512}`, class-conditional;
`imagenet256_uncond`; `lsun_bedroom256`, whose settings are also those of cats and horses; and the upsamplers
`upsampler_{64_256,128_512}`. The small images that these are conditioned on are made from the data in training, and
read from --config.sampling.cond=FILE.npz in sampling. config.data.path is ImageNet as folders of classes. With
classifier guidance in 250 steps the paper reports FID 2.07, 2.97, 4.59 and 7.72 on ImageNet, and 3.94 and 3.85 with the
upsamplers; without guidance in 1000 steps it reports 1.90 on bedrooms.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def adm(*, betas: str = "linear", **sections: Any) -> ConfigDict:
    """The sections that all variants share. The second half of the network's output channels are the variances."""
    config = replace(
        defaults(),
        **presets.ddpm(betas),
        loss=dict(name="hybrid"),
        solver=dict(name="ancestral", variance="learned"),
        sampling=dict(steps=250, grid=dict(name="discrete", spacing="linspace"), threshold=dict(name="static")),
    )
    return replace(config, **sections)


def digits(**network: int) -> ConfigDict:
    return adm(
        betas="cosine",
        network=dict(
            name="adm",
            out_channels=2,
            model_channels=32,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(4,),
            num_head_channels=16,
            num_groups=8,
            dropout=0.1,
            num_classes=10,
            **network,
        ),
        data=dict(levels=17),
        **presets.digits(4000, batch_size=64),
        sampling=dict(steps=100, batch_size=500),
    )


def digits_upsampler() -> ConfigDict:
    return digits(image_channels=1, low_res=4)


def digits_upsampler_augmented() -> ConfigDict:
    """The upsampler for samples of another model: trained on small images with noise, whose level it reads."""
    augmented = dict(name="super_resolution", levels=(0.0, 0.5), level=0.0, base="", base_config="")
    return replace(digits(image_channels=1, low_res=4, vector_dim=1), system=augmented)


def paper(
    size: int,
    *,
    num_steps: int,
    data: dict[str, Any],
    betas: str = "linear",
    batch_size: int = 256,
    learning_rate: float = 1e-4,
    **network: Any,
) -> ConfigDict:
    return adm(
        betas=betas,
        network=dict(name="adm", out_channels=6, **network),
        data=dict(split="train", image_size=size, channels=3, flip=True, path="") | data,
        training=dict(num_steps=num_steps, batch_size=batch_size, checkpoint_every=10_000, sample_every=50_000),
        optimizer=dict(name="adamw", learning_rate=learning_rate, weight_decay=0.0, clip_norm=0.0),
        ema=dict(rates=(0.9999,), warmup=False),
        sampling=dict(num_samples=16, batch_size=16),
        evaluation=dict(metrics=(), after_training=False),
    )


MULTS = {64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4), 512: (0.5, 1, 1, 2, 2, 4, 4)}
IMAGENET = dict(name="folder", eval_split="train")
BEDROOM = dict(name="lsun/bedroom", eval_split="validation")


def imagenet64() -> ConfigDict:
    return paper(
        64,
        num_steps=540_000,
        data=IMAGENET,
        betas="cosine",
        batch_size=2048,
        learning_rate=3e-4,
        channel_mult=MULTS[64],
        num_classes=1000,
        use_new_attention_order=True,
        dropout=0.1,
    )


def large(size: int, *, num_steps: int, data: dict[str, Any], **network: Any) -> ConfigDict:
    """The models of 128 x 128 pixels and more, except for the upsamplers."""
    options = dict(model_channels=256, num_res_blocks=2, channel_mult=MULTS[size], **network)
    return paper(size, num_steps=num_steps, data=data, **options)


def upsampler(low_res: int, size: int, **network: Any) -> ConfigDict:
    options = dict(model_channels=192, num_res_blocks=2, channel_mult=MULTS[256], num_classes=1000, image_channels=3)
    return paper(size, num_steps=500_000, data=IMAGENET, low_res=low_res, **options, **network)


VARIANTS = {
    "digits": digits,
    "digits_upsampler": digits_upsampler,
    "digits_upsampler_augmented": digits_upsampler_augmented,
    "imagenet64": imagenet64,
    "imagenet128": lambda: large(
        128, num_steps=4_360_000, data=IMAGENET, num_classes=1000, num_heads=4, num_head_channels=None
    ),
    "imagenet256": lambda: large(256, num_steps=1_980_000, data=IMAGENET, num_classes=1000),
    "imagenet256_uncond": lambda: large(256, num_steps=1_980_000, data=IMAGENET),
    "imagenet512": lambda: large(512, num_steps=1_940_000, data=IMAGENET, num_classes=1000),
    "lsun_bedroom256": lambda: large(256, num_steps=500_000, data=BEDROOM, dropout=0.1),
    "upsampler_64_256": lambda: upsampler(64, 256, num_heads=4, num_head_channels=None),
    "upsampler_128_512": lambda: upsampler(128, 512, attention_resolutions=(32, 16)),
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
