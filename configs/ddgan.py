"""Denoising diffusion GANs: sampling in four large denoising steps, each a conditional GAN (arXiv:2112.07804).

    python -m diffusion_jax.main --config=configs/ddgan.py --workdir=runs/ddgan
    python -m diffusion_jax.main --config=configs/ddgan.py:stacked_digits --workdir=runs/ddgan_stacked

Without a variant, small networks are trained on the 8 x 8 digits of scikit-learn, in minutes on two CPU cores.
`stacked_digits` has three of them as the channels of an image, which makes 1,000 modes. The number of steps is that of
the process, `--config.process.num_steps=2 --config.sampling.steps=2`, and belongs to the trained model.

`cifar10`, `celebahq256` and `lsun_church256` have the paper's process, losses, optimizers and sizes; the networks are
ADM's, which reads z where the authors' NCSN++ does, and R3GAN's discriminator without statistics of the batch. The
paper reports FID 3.75 on CIFAR-10, 7.64 on CelebA-HQ and 5.25 on LSUN church.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def ddgan(*, steps: int, system: dict[str, Any], **sections: Any) -> ConfigDict:
    """The sections that all variants share: the non-saturating loss with R1, on `steps` steps of the VP SDE."""
    config = replace(
        defaults(),
        system=dict(name="ddgan", loss="non_saturating", r2=0.0, tanh=True, **system),
        process=dict(name="discrete_vp", betas="vp", num_steps=steps),
        parameterization=dict(name="x0", label="index"),
        optimizer=dict(name="adam", learning_rate=1.6e-4, schedule="cosine", b1=0.5, b2=0.9, clip_norm=0.0),
        sampling=dict(steps=steps, batch_size=500),
    )
    return replace(config, **sections)


def digits(hidden: int = 256, **sections: Any) -> ConfigDict:
    sizes = dict(name="mlp", hidden=hidden, num_layers=2)
    config = ddgan(
        steps=4,
        system=dict(r1=0.5, every=1, discriminator=sizes),
        parameterization=dict(name="x0", label="unit_time"),
        network=dict(vector_dim=32, **sizes),
        training=dict(num_steps=10_000, batch_size=64, log_every=100, sample_every=2000),
        optimizer=dict(learning_rate=5e-4),
        ema=dict(rates=(0.999,)),
    )
    return replace(config, **sections)


def stacked_digits() -> ConfigDict:
    return digits(hidden=512, data=presets.stacked_digits(), evaluation=dict(metrics=(), after_training=False))


def paper(
    *,
    steps: int,
    r1: float,
    every: int,
    num_steps: int,
    batch_size: int,
    rates: tuple[float, float],
    ema: float,
    widths: tuple[int, ...],
    network: dict[str, Any],
    data: dict[str, Any],
) -> ConfigDict:
    """A setting of the paper. `rates` are the learning rates of generator and discriminator, which fall to 1e-5."""
    generator, critic = rates
    groups = dict(discriminator=dict(learning_rate=critic, final_factor=1e-5 / critic))
    return ddgan(
        steps=steps,
        system=dict(r1=r1, every=every, discriminator=dict(name="r3gan", channels=widths, num_res_blocks=1)),
        network=dict(
            name="adm",
            num_res_blocks=2,
            attention_resolutions=(16,),
            num_heads=1,
            num_head_channels=None,
            dropout=0.0,
            vector_dim=100,
            **network,
        ),
        data=dict(split="train", channels=3, path="", flip=True, **data),
        training=dict(num_steps=num_steps, batch_size=batch_size, checkpoint_every=10_000, sample_every=10_000),
        optimizer=dict(learning_rate=generator, final_factor=1e-5 / generator, groups=groups),
        ema=dict(rates=(ema,), warmup=False),
        sampling=dict(num_samples=16, batch_size=16),
        evaluation=dict(metrics=(), after_training=False),
    )


def cifar10() -> ConfigDict:
    return paper(
        steps=4,
        r1=0.02,
        every=15,
        num_steps=1800 * (50_000 // 256),
        batch_size=256,
        rates=(1.6e-4, 1.25e-4),
        ema=0.9999,
        widths=(128, 256, 512, 512),
        network=dict(model_channels=128, channel_mult=(1, 2, 2, 2)),
        data=dict(name="cifar10", eval_split="test", image_size=32),
    )


def celebahq256() -> ConfigDict:
    # TFDS has no other split of this set.
    return paper(
        steps=2,
        r1=2.0,
        every=10,
        num_steps=800 * (30_000 // 32),
        batch_size=32,
        rates=(2e-4, 1e-4),
        ema=0.9999,
        widths=(128, 256, 512, 512, 512, 512, 512),
        network=dict(model_channels=64, channel_mult=(1, 1, 2, 2, 4, 4)),
        data=dict(name="celeb_a_hq/256", eval_split="train", image_size=256),
    )


def lsun_church256() -> ConfigDict:
    return paper(
        steps=4,
        r1=1.0,
        every=10,
        num_steps=500 * (120_000 // 64),
        batch_size=64,
        rates=(1.6e-4, 1e-4),
        ema=0.999,
        widths=(128, 256, 512, 512, 512, 512, 512),
        network=dict(model_channels=64, channel_mult=(1, 1, 2, 2, 4, 4)),
        data=dict(name="lsun/church_outdoor", eval_split="validation", image_size=256),
    )


VARIANTS = {
    "digits": digits,
    "stacked_digits": stacked_digits,
    "cifar10": cifar10,
    "celebahq256": celebahq256,
    "lsun_church256": lsun_church256,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
