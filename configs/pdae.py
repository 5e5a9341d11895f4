"""PDAE: a diffusion autoencoder whose decoder is a trained diffusion model, shifted (arXiv:2212.12990).

    python -m diffusion_jax.main --config=configs/diffae.py:digits_ddpm --workdir=runs/diffae_ddpm
    python -m diffusion_jax.main --config=configs/pdae.py --workdir=runs/pdae
    python -m diffusion_jax.main --config=configs/pdae.py --workdir=runs/pdae --mode=encode --to=runs/pdae_codes
    python -m diffusion_jax.main --config=configs/pdae.py:digits_latent --workdir=runs/pdae_latent

config.system.teacher is the work directory of an unconditional diffusion model, which stays as it is. What is trained
is an encoder and a gradient estimator G(x_t, t, z): D_z = D + (sigma^2 / alpha) G is the denoiser given the code z.

Without a variant, the run of `diffae.py:digits_ddpm` on the 8 x 8 digits of scikit-learn is the teacher, and training
takes half the steps of `diffae.py`. `emoji` is the same on emoji in five skin tones, see `diffae.py`.

`ffhq128` and `celeba64` have the authors' settings, `ffhq256` the same at 256 x 256; the gradient estimator is a middle
and a decoder of its own on the encoder path of the frozen U-Net. `ffhq128_latent`, `ffhq256_latent` and
`celeba64_latent` are the diffusion models of their codes.
"""

import functools
import pathlib
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, from_file, replace

FOLDER = pathlib.Path(__file__).parent
SHARED = ("time_embed", "input_blocks")  # what the estimator reads of the frozen U-Net


def pdae(variant: str, *, teacher: str, steps: int, encoder: dict[str, Any], network: dict[str, Any], **system: Any):
    """The sections of `diffae.py` with another decoder, trained for so many steps."""
    config = from_file(f"{FOLDER}/diffae.py:{variant}")
    run = dict(teacher=teacher, teacher_config=f"configs/diffae.py:{variant}_ddpm")
    attribute = config.system.get("attribute", (0, 1))
    return replace(
        config,
        system=dict(name="pdae", encoder=encoder, attribute=attribute, **run, **system),
        weighting=dict(name="pdae", gamma=0.1),
        network={**config.network.to_dict(), **network},
        training=dict(num_steps=steps),
    )


def digits() -> ConfigDict:
    encoder = dict(name="mlp", hidden=256, num_layers=2)
    return pdae("digits", teacher="runs/diffae_ddpm", steps=3000, encoder=encoder, network=dict(hidden=256))


def emoji() -> ConfigDict:
    encoder = dict(name="strided", channels=(16, 32, 32, 32), attention_after=1, num_groups=8)
    return pdae("emoji", teacher="runs/diffae_emoji_ddpm", steps=1000, encoder=encoder, **estimator())


def estimator() -> dict[str, Any]:
    """The gradient estimator on the encoder path of the teacher, which is a U-Net."""
    return dict(network=dict(code_in_encoder=False, code_shift=True), shared=SHARED)


# Channels of the authors' encoders, and after which of the convolutions there is attention.
ENCODERS: dict[str, dict[str, Any]] = {
    "ffhq128": dict(channels=(64, 128, 256, 256, 256), attention_after=2),
    "ffhq256": dict(channels=(64, 128, 256, 256, 256, 256), attention_after=3),
    "celeba64": dict(channels=(64, 128, 128, 128), attention_after=1),
}


def large(name: str) -> ConfigDict:
    encoder = dict(name="strided", num_heads=4, **ENCODERS[name])
    config = pdae(name, teacher=f"runs/diffae_{name}_ddpm", steps=500_000, encoder=encoder, **estimator())
    # 32 on each of four devices.
    return replace(
        config, training=dict(batch_size=128), optimizer=dict(name="adam", learning_rate=1e-4, clip_norm=0.0)
    )


def latent(name: str, run: str) -> ConfigDict:
    """The diffusion model of the codes, DiffAE's with another learning rate."""
    config_file = "configs/pdae.py" if name == "digits" else f"configs/pdae.py:{name}"
    config = from_file(f"{FOLDER}/diffae.py:{name}_latent")
    config = replace(config, system=dict(name="code_diffusion", autoencoder=run, autoencoder_config=config_file))
    if name == "digits":
        return config
    optimizer = dict(name="adamw", learning_rate=1e-3, weight_decay=0.01, clip_norm=0.0)
    return replace(config, training=dict(batch_size=128, num_steps=500_000), optimizer=optimizer)


VARIANTS = {
    "digits": digits,
    "digits_latent": functools.partial(latent, "digits", "runs/pdae"),
    "emoji": emoji,
    **{name: functools.partial(large, name) for name in ENCODERS},
    **{f"{name}_latent": functools.partial(latent, name, f"runs/pdae_{name}") for name in ENCODERS},
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
