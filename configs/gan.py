"""Generative adversarial networks: R3GAN, relativistic pairs with R1 and R2 penalties (arXiv:2501.05441).

    python -m diffusion_jax.main --config=configs/gan.py --workdir=runs/gan
    python -m diffusion_jax.main --config=configs/gan.py:digits --workdir=runs/gan_digits
    python -m diffusion_jax.main --config=configs/gan.py:stacked_digits --workdir=runs/gan_stacked

Without a variant, a generator learns eight Gaussians on a ring, in a minute on a CPU. `digits` and `stacked_digits`
are the 8 x 8 digits of scikit-learn, and three of them as the channels of an image, which makes 1,000 modes. Samples
take one evaluation of the generator.

`ring_vanilla` and `digits_vanilla` are the same networks with the non-saturating loss of the first GANs
(arXiv:1406.2661) and no penalty, the controls. `stacked_mnist` and `cifar10_r3gan` are the paper's settings; on
CIFAR-10 it reports FID 1.96.
"""

import functools
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace

R3GAN = dict(loss="relativistic", r1=0.1, r2=0.1)
VANILLA = dict(loss="non_saturating", r1=0.0, r2=0.0)


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
    sizes = dict(name="mlp", hidden=256, num_layers=3)
    config = gan(
        dict(latent_dim=64, discriminator=sizes, **method),
        network=sizes,
        training=dict(num_steps=8000, batch_size=128, log_every=100, sample_every=2000),
        optimizer=dict(learning_rate=5e-4, b2=0.99),
        ema=dict(rates=(0.999,)),
    )
    return replace(config, **sections)


VARIANTS = {
    "ring": functools.partial(ring, R3GAN),
    "ring_vanilla": functools.partial(ring, VANILLA),
    "digits": functools.partial(digits, R3GAN),
    "digits_vanilla": functools.partial(digits, VANILLA),
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "ring")()
