"""Generative adversarial networks: R3GAN, relativistic pairs with R1 and R2 penalties (arXiv:2501.05441).

    python -m diffusion_jax.main --config=configs/gan.py --workdir=runs/gan
    python -m diffusion_jax.main --config=configs/gan.py:digits --workdir=runs/gan_digits
    python -m diffusion_jax.main --config=configs/gan.py:stacked_digits --workdir=runs/gan_stacked

Without a variant, a generator learns eight Gaussians on a ring, in a minute on a CPU. `digits` and `stacked_digits`
are the 8 x 8 digits of scikit-learn, and three of them as the channels of an image, which makes 1,000 modes. Samples
take one evaluation of the generator.

`ring_vanilla` and `digits_vanilla` are the same networks with the non-saturating loss of the first GANs
(arXiv:1406.2661) and no penalty, the controls. `stacked_mnist` stacks MNIST's digits and has small convolutional
networks; prepare the data with `python -m diffusion_jax.data.prepare mnist --from DIR`. `cifar10_r3gan` is the paper's
setting, conditional on classes, with a generator of 20.8 M parameters and a discriminator of 21.3 M.
"""

import functools
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace

R3GAN = dict(loss="relativistic", r1=1.0, r2=1.0)
VANILLA = dict(loss="non_saturating", r1=0.0, r2=0.0)
CONVOLUTIONS = dict(num_res_blocks=2, expansion=2, group_width=16)


def gan(system: dict[str, Any], **sections: Any) -> ConfigDict:
    """The sections that all variants share. One step makes a sample; both networks take Adam without momentum."""
    config = replace(
        defaults(),
        system=dict(name="gan", every=1, **system),
        optimizer=dict(name="adam", learning_rate=1e-3, schedule="cosine", b1=0.0, b2=0.9, clip_norm=0.0),
        sampling=dict(steps=1, batch_size=500),
    )
    return replace(config, **sections)


def ring(method: dict[str, Any]) -> ConfigDict:
    """Eight Gaussians on a ring of radius 1.4, with a standard deviation of 0.02."""
    sizes = dict(name="mlp", hidden=128, num_layers=2)
    return gan(
        dict(latent_dim=2, discriminator=sizes, **method),
        network=sizes,
        data=dict(name="toy", split="train", eval_split="test", kind="narrow_mixture"),
        training=dict(num_steps=6000, batch_size=256, log_every=100, sample_every=0),
        ema=dict(rates=(0.999,)),
        sampling=dict(num_samples=2000, batch_size=2000),
        evaluation=dict(num_samples=2000, metrics=("toy",)),
    )


def digits(method: dict[str, Any], **sections: Any) -> ConfigDict:
    sizes = dict(name="mlp", hidden=256, num_layers=2)
    config = gan(
        dict(latent_dim=64, discriminator=sizes, **method),
        network=sizes,
        training=dict(num_steps=10_000, batch_size=64, log_every=100, sample_every=2000),
        optimizer=dict(learning_rate=5e-4, b2=0.99),
        ema=dict(rates=(0.999,)),
    )
    return replace(config, **sections)


def stacked_digits() -> ConfigDict:
    """Three digits as the channels of an image."""
    sizes = dict(name="mlp", hidden=512, num_layers=2)
    return digits(
        R3GAN,
        system=dict(name="gan", every=1, latent_dim=64, discriminator=sizes, **R3GAN),
        network=sizes,
        data=presets.stacked_digits(),
        evaluation=dict(metrics=(), after_training=False),
    )


def stacked_mnist() -> ConfigDict:
    return gan(
        dict(latent_dim=64, discriminator=dict(name="r3gan", channels=(64, 128, 256), **CONVOLUTIONS), **R3GAN),
        network=dict(name="r3gan", channels=(256, 128, 64), **CONVOLUTIONS),
        data=presets.stacked_mnist(),
        training=dict(num_steps=100_000, batch_size=64, checkpoint_every=5000, sample_every=5000),
        optimizer=dict(learning_rate=2e-4, b2=0.99, final_factor=0.25),
        ema=dict(rates=(0.999,)),
        evaluation=dict(metrics=(), after_training=False),
    )


def cifar10_r3gan() -> ConfigDict:
    """2e7 images, in which learning rate and penalty fall; the average forgets half of itself in 5e6 images."""
    sizes = dict(name="r3gan", channels=(768, 768, 768, 768), **CONVOLUTIONS)
    num_steps = 20_000_000 // 512
    return gan(
        dict(
            latent_dim=64,
            discriminator=sizes,
            loss="relativistic",
            r1=0.05,
            r2=0.05,
            final_factor=0.1,
            anneal_steps=num_steps,
        ),
        network=dict(num_classes=10, **sizes),
        data=presets.cifar10_data(flip=True),
        training=dict(num_steps=num_steps, batch_size=512, checkpoint_every=2000, sample_every=2000),
        optimizer=dict(learning_rate=2e-4, b2=0.99, final_factor=0.25),
        ema=dict(rates=(0.5 ** (512 / 5_000_000),)),
        evaluation=dict(metrics=(), after_training=False),
    )


VARIANTS = {
    "ring": functools.partial(ring, R3GAN),
    "ring_vanilla": functools.partial(ring, VANILLA),
    "digits": functools.partial(digits, R3GAN),
    "digits_vanilla": functools.partial(digits, VANILLA),
    "stacked_digits": stacked_digits,
    "stacked_mnist": stacked_mnist,
    "cifar10_r3gan": cifar10_r3gan,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "ring")()
