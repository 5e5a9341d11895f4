"""VQ-VAE and VQGAN: autoencoders with a codebook, also first stages of latent diffusion (arXiv:1711.00937, 2012.09841).

    python -m diffusion_jax.main --config=configs/vqgan.py --workdir=runs/vqgan
    python -m diffusion_jax.main --config=configs/vqgan.py:openimages_f4 --workdir=runs/vq_f4 \\
        --config.data.path=FOLDER \\
        --config.system.perceptual.vgg=vgg16-397923af.pth --config.system.perceptual.lin=vgg.pth

Without a variant, the 8 x 8 digits of scikit-learn are encoded as 4 x 4 entries of a codebook of 64, in minutes on two
CPU cores. The codebook is updated by EMA, and dead entries are re-initialised; `perplexity` and `usage` in
metrics.jsonl say how many entries are in use.

`mnist`, `cifar10_f4` and `crawl_tiles_f4` have small networks and the Laplacian pyramid instead of LPIPS.
`openimages_f4` and `_f8` are the first stages of latent diffusion (arXiv:2112.10752, table 8; the authors report a
Frechet distance of reconstructions of 0.58 and 1.14), `imagenet_f16` is VQGAN's with 16,384 entries (4.98 there). Their
codebooks are trained by the gradient.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, presets


def system(**adversarial: Any) -> dict[str, Any]:
    return dict(
        name="vqgan",
        codebook_weight=1.0,
        commitment_weight=0.25,
        decay=0.99,
        restart_below=0.05,
        **presets.adversarial(**adversarial),
    )


def system_by_gradient(**adversarial: Any) -> dict[str, Any]:
    """The codebook is trained by the gradient. The authors' code weighs the codebook's term by 0.25 and the commitment
    by 1, which is 0.25 times 4 here."""
    return system(**adversarial) | dict(codebook_weight=0.25, commitment_weight=4.0, decay=0.0, restart_below=0.0)


def small(*block_out_channels: int, latent_channels: int, codes: int, attention: bool = True) -> dict[str, Any]:
    return dict(
        name="vq_model",
        block_out_channels=block_out_channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        num_vq_embeddings=codes,
        norm_num_groups=8,
        mid_block_add_attention=attention,
    )


def digits() -> ConfigDict:
    return presets.first_stage(
        system=system(start=1000, channels=16, n_layers=1),
        network=small(16, 32, latent_channels=4, codes=64),
        **presets.first_stage_digits(),
    )


def mnist() -> ConfigDict:
    return presets.first_stage(
        system=system(start=2000, channels=32, n_layers=2),
        network=small(16, 32, 64, latent_channels=4, codes=256),
        **presets.first_stage_mnist(),
    )


def folder(**data: Any) -> ConfigDict:
    return presets.first_stage(
        system=system(start=10_000, n_layers=2),
        network=small(64, 128, 128, latent_channels=4, codes=1024),
        **presets.first_stage_folder(**data),
    )


def cifar10_f4() -> ConfigDict:
    return folder(split="train", eval_split="test", flip=True)


def crawl_tiles_f4() -> ConfigDict:
    return folder(split="train[:95%]", eval_split="train[95%:]", flip=False)


def paper(
    *block_out_channels: int,
    latent_channels: int,
    codes: int,
    num_steps: int,
    start: int,
    batch_size: int,
    weight: float,
    n_layers: int = 3,
    attention_levels: tuple[int, ...] = (),
    **data: Any,
) -> ConfigDict:
    """The variants of 256 x 256 pixels, with the numbers of steps of the authors' list of models and the batch of one
    of their devices."""
    return presets.first_stage(
        system=system_by_gradient(perceptual="lpips", start=start, weight=weight, n_layers=n_layers),
        network=dict(
            name="vq_model",
            block_out_channels=block_out_channels,
            layers_per_block=2,
            latent_channels=latent_channels,
            num_vq_embeddings=codes,
            attention_levels=attention_levels,
        ),
        **presets.first_stage_256(num_steps=num_steps, batch_size=batch_size, crop="random", **data),
    )


def openimages_f4() -> ConfigDict:
    ldm = dict(start=0, batch_size=8, weight=0.75, resize=(384, 384))
    return paper(128, 256, 512, latent_channels=3, codes=8192, num_steps=533_066, **ldm)


def openimages_f8() -> ConfigDict:
    ldm = dict(start=1, batch_size=10, weight=0.6, n_layers=2, resize=(384, 384))
    widths = (128, 256, 256, 512)
    return paper(*widths, latent_channels=4, codes=16384, num_steps=971_043, attention_levels=(3,), **ldm)


def imagenet_f16() -> ConfigDict:
    taming = dict(start=250_001, batch_size=12, weight=0.8)
    widths = (128, 128, 256, 256, 512)
    return paper(*widths, latent_channels=256, codes=16384, num_steps=1_000_000, attention_levels=(4,), **taming)


VARIANTS = {
    "digits": digits,
    "mnist": mnist,
    "cifar10_f4": cifar10_f4,
    "crawl_tiles_f4": crawl_tiles_f4,
    "openimages_f4": openimages_f4,
    "openimages_f8": openimages_f8,
    "imagenet_f16": imagenet_f16,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
