"""Diffusion autoencoders: a code of what an image shows, and the noise it is decoded from (DiffAE, arXiv:2111.15640).

    python -m diffusion_jax.main --config=configs/diffae.py --workdir=runs/diffae
    python -m diffusion_jax.main --config=configs/diffae.py --workdir=runs/diffae --mode=encode --to=runs/diffae_codes
    python -m diffusion_jax.main --config=configs/diffae.py:digits_latent --workdir=runs/diffae_latent

The second command writes the codes of the data, reconstructions, an interpolation and a walk between two classes. The
third trains the diffusion model of the codes, which draws images without one to start from.

Without a variant, the code is 16 numbers of each 8 x 8 digit of scikit-learn; `digits_ddpm` is the same decoder without
a code, the teacher of `pdae.py`. `emoji` is trained on emoji in five skin tones, whose classes are the tones: make them
by `python -m diffusion_jax.data.prepare emoji_five_tones --from FILE.npz --data_dir DIR` and give
--config.data.path=DIR; `emoji_ddpm` is the teacher there.

`ffhq128`, `ffhq256` and `celeba64` are the paper's settings on a folder of images, each with the diffusion model of its
codes, `ffhq128_latent`, `ffhq256_latent` and `celeba64_latent`; `ffhq128_ddpm`, `ffhq256_ddpm` and `celeba64_ddpm` are
models without a code. The paper's code reports FID 20.63 on FFHQ at 128 x 128 in 10 steps of the image and 10 of the
code.
"""

import functools
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace

NO_METRICS = dict(evaluation=dict(metrics=(), after_training=False))


def decoder(steps: int = 20, t_min: float = 1e-3, t_max: float = 1.0, **sections: Any) -> ConfigDict:
    """DDPM's process and loss, and DDIM between t_max and t_min > 0, which also runs backwards."""
    config = replace(
        defaults(),
        **presets.ddpm(),
        solver=dict(name="ddim"),
        sampling=dict(steps=steps, grid=dict(name="uniform", t_min=t_min, t_max=t_max)),
    )
    return replace(config, **sections)


# The autoencoder of a variant: what `pdae.py` has in common with it.
DIGITS = dict(
    **presets.preconditioned(0.75),
    network=dict(name="mlp", hidden=256, num_layers=3, vector_dim=16),
    sampling=dict(batch_size=500),
)
DIGITS_ENCODER = dict(name="mlp", hidden=256, num_layers=2)
EMOJI_NETWORK = dict(
    name="adm",
    model_channels=16,
    channel_mult=(1, 2, 2),
    num_res_blocks=1,
    attention_resolutions=(8,),
    num_head_channels=None,
    num_heads=1,
    num_groups=8,
)
EMOJI = dict(
    data=dict(name="arrays", split="train", eval_split="test", image_size=32, channels=3, path=""),
    training=dict(num_steps=2000, batch_size=16, log_every=50, checkpoint_every=500, sample_every=0),
    optimizer=presets.adam(2e-3, warmup_steps=100),
    ema=dict(rates=(0.995,)),
    sampling=dict(num_samples=60, batch_size=60),
    evaluation=dict(num_samples=60, metrics=(), after_training=False),
)
EMOJI_ENCODER = dict(
    name="unet",
    model_channels=16,
    channel_mult=(1, 2, 2, 2),
    num_res_blocks=1,
    attention_resolutions=(8,),
    num_groups=8,
    dropout=0.0,
)


def digits() -> ConfigDict:
    return decoder(
        50,
        t_max=0.98,
        system=dict(name="diffusion_autoencoder", encoder=DIGITS_ENCODER, attribute=(3, 8)),
        **presets.digits(6000, sample_every=0),
        **DIGITS,
    )


def digits_ddpm() -> ConfigDict:
    config = decoder(50, t_max=0.98, **presets.digits(3000, sample_every=0), **DIGITS)
    config.network.vector_dim = 0
    return config


def emoji() -> ConfigDict:
    return decoder(
        30,
        t_max=0.98,
        system=dict(name="diffusion_autoencoder", encoder=EMOJI_ENCODER, attribute=(0, 4)),
        **presets.preconditioned(0.6),
        network=dict(EMOJI_NETWORK, code_dim=64),
        **EMOJI,
    )


def emoji_ddpm() -> ConfigDict:
    return decoder(30, t_max=0.98, **presets.preconditioned(0.6), network=EMOJI_NETWORK, **EMOJI)


# The full-size settings: image size, widths of the decoder and of the encoder, and how long they are trained.
SIZES: dict[str, dict[str, Any]] = {
    "ffhq128": dict(image_size=128, model_channels=128, channel_mult=(1, 1, 2, 3, 4), more=(4,)),
    "ffhq256": dict(image_size=256, model_channels=128, channel_mult=(1, 1, 2, 2, 4, 4), more=(4,)),
    "celeba64": dict(image_size=64, model_channels=64, channel_mult=(1, 2, 4, 8), more=(8,)),
}
IMAGES = {"ffhq128": 130_000_000, "ffhq256": 200_000_000, "celeba64": 72_000_000}
BATCH = {"ffhq128": 128, "ffhq256": 64, "celeba64": 128}


def network(name: str, **options: Any) -> dict[str, Any]:
    """The U-Net of a full-size variant, ADM's with one head of attention."""
    size = SIZES[name]
    return dict(
        name="adm",
        model_channels=size["model_channels"],
        channel_mult=size["channel_mult"],
        num_res_blocks=2,
        attention_resolutions=(16,),
        num_heads=1,
        num_head_channels=None,
        dropout=0.1,
        **options,
    )


def encoder(name: str) -> dict[str, Any]:
    """The semantic encoder of a full-size variant, one level deeper than the decoder."""
    size = SIZES[name]
    return dict(
        name="unet",
        model_channels=size["model_channels"],
        channel_mult=(*size["channel_mult"], *size["more"]),
        num_res_blocks=2,
        attention_resolutions=(16,),
        dropout=0.1,
    )


def images(name: str) -> dict[str, Any]:
    """The data of a full-size variant: a folder of images; of CelebA the 128 x 128 pixels in the middle."""
    crop = dict(crop=128) if name == "celeba64" else {}
    sizes = dict(image_size=SIZES[name]["image_size"], channels=3, flip=True, **crop)
    return dict(name="folder", split="train", eval_split="train", path="", **sizes)


def training(num_steps: int, batch_size: int) -> dict[str, Any]:
    """Training of full-size variants with Adam at a constant rate, and no metrics."""
    return dict(
        training=dict(num_steps=num_steps, batch_size=batch_size, checkpoint_every=10_000, sample_every=0),
        optimizer=dict(name="adam", learning_rate=1e-4, clip_norm=1.0),
        ema=dict(rates=(0.9999,), warmup=False),
        sampling=dict(num_samples=16, batch_size=16),
        **NO_METRICS,
    )


def large(name: str) -> ConfigDict:
    return decoder(
        system=dict(name="diffusion_autoencoder", encoder=encoder(name)),
        network=network(name, code_dim=512),
        data=images(name),
        **training(IMAGES[name] // BATCH[name], BATCH[name]),
    )


def large_ddpm(name: str) -> ConfigDict:
    return decoder(network=network(name), data=images(name), **training(IMAGES[name] // BATCH[name], BATCH[name]))


def latent(run: str, config_file: str, **sections: Any) -> ConfigDict:
    """The diffusion model of the codes of `run`, the latent DDIM of arXiv:2111.15640: constant betas and an L1 loss."""
    config = replace(
        defaults(),
        **presets.ddpm(beta_start=0.008, beta_end=0.008),
        system=dict(name="code_diffusion", autoencoder=run, autoencoder_config=config_file),
        loss=dict(name="denoising", norm="l1"),
        network=dict(name="mlp_skip"),
        solver=dict(name="ddim"),
        sampling=dict(steps=20, grid=dict(name="discrete", spacing="linspace")),
    )
    return replace(config, **sections)


def digits_latent(run: str = "runs/diffae", config_file: str = "configs/diffae.py") -> ConfigDict:
    config = latent(
        run,
        config_file,
        **presets.digits(12_000, sample_every=0),
        network=dict(name="mlp_skip", hidden=256, num_layers=5),
    )
    return replace(config, sampling=dict(steps=50, batch_size=500))


def large_latent(name: str, run: str, config_file: str, **optimizer: Any) -> ConfigDict:
    batch_size, codes = {"celeba64": (512, 301_000_000)}.get(name, (256, 101_000_000))
    config = latent(run, config_file, data=images(name), **training(codes // batch_size, batch_size))
    return replace(
        config, optimizer=dict(name="adamw", learning_rate=1e-4, weight_decay=0.01, clip_norm=1.0, **optimizer)
    )


VARIANTS = {
    "digits": digits,
    "digits_latent": digits_latent,
    "digits_ddpm": digits_ddpm,
    "emoji": emoji,
    "emoji_ddpm": emoji_ddpm,
    **{name: functools.partial(large, name) for name in SIZES},
    **{
        f"{name}_latent": functools.partial(large_latent, name, f"runs/diffae_{name}", f"configs/diffae.py:{name}")
        for name in SIZES
    },
    **{f"{name}_ddpm": functools.partial(large_ddpm, name) for name in SIZES},
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
