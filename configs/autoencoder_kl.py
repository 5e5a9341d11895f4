"""KL autoencoders (VAEs), the first stages of latent diffusion (arXiv:2112.10752).

    python -m diffusion_jax.main --config=configs/autoencoder_kl.py --workdir=runs/autoencoder_kl
    python -m diffusion_jax.main --config=configs/autoencoder_kl.py:cifar10_f4 --workdir=runs/kl_f4 \\
        --config.data.path=FOLDER
    python -m diffusion_jax.main --config=configs/autoencoder_kl.py:openimages_f8 --workdir=runs/kl_f8 \\
        --config.data.path=FOLDER \\
        --config.system.perceptual.vgg=vgg16-397923af.pth --config.system.perceptual.lin=vgg.pth

Without a variant, the 8 x 8 digits of scikit-learn are encoded as 4 x 4 latents of 2 channels. Training takes minutes
on two CPU cores, with a discriminator in the last third. Sheets and samples show reconstructions of held-out digits
next to the originals. configs/latent_diffusion.py trains a diffusion model on the latents.

`digits_vae` and `stacked_digits_vae` are VAEs, trained and evaluated by their bound on the likelihood (the ELBO) with a
decoder whose noise is learned (arXiv:1312.6114, arXiv:2006.13202). Their samples are decoded from the prior;
held_out_bits_per_dim in evaluation.json is the ELBO and held_out_bits_per_dim_iwae the importance-weighted bound of 64
latents (docs/flows_and_vaes.md).

`mnist`, `cifar10_f2`, `cifar10_f4`, `crawl_tiles_f4` (folders of images) and `emoji_f4` (an .npz file of images, a
twentieth of them held out) have small networks. Their perceptual loss is the Laplacian pyramid instead of LPIPS, which
needs weights and larger images. `openimages_f4`, `_f8`, `_f16` and `_f32` are the paper's networks (table 8) with
LPIPS, whose files are those of torchvision's VGG-16 and of the linear layers of LPIPS. The authors report a Frechet
distance of reconstructions of 0.27, 0.90, 0.87 and 2.04.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, presets

# The smaller side is resized to 384 pixels, and 256 x 256 are cut out at random.
CROP = dict(crop="random", resize=(384, 384))


def system(kl_weight: float = 1e-6, **adversarial: Any) -> dict[str, Any]:
    return dict(name="autoencoder_kl", kl_weight=kl_weight, **presets.adversarial(**adversarial))


def small(
    *block_out_channels: int, latent_channels: int, num_layers: int = 1, attention: bool = True
) -> dict[str, Any]:
    return dict(
        name="autoencoder_kl",
        block_out_channels=block_out_channels,
        layers_per_block=num_layers,
        latent_channels=latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=attention,
    )


def digits() -> ConfigDict:
    return presets.first_stage(
        system=system(1e-3, start=1000, channels=16, n_layers=1),
        network=small(16, 32, latent_channels=2),
        **presets.first_stage_digits(),
    )


def vae(*, network: dict[str, Any], **sections: Any) -> ConfigDict:
    """The sections of VAEs: the ELBO of dequantized images is the loss, and nothing else is trained."""
    return presets.first_stage(
        system=dict(name="autoencoder_kl", kl_weight=1.0),
        loss=dict(name="gaussian", log_sigma=-1.0),
        network=network,
        sampling=dict(cond="prior", batch_size=500),
        **sections,
    )


def digits_vae() -> ConfigDict:
    likelihood = dict(name="iwae", num_samples=64)
    return vae(
        network=small(16, 32, latent_channels=2),
        data=dict(levels=17, dequantize=True),
        **presets.digits(2000, 64, sample_every=0),
        evaluation=dict(metrics=("classifier", "density_baseline"), likelihood=likelihood),
    )


def stacked_digits_vae() -> ConfigDict:
    network = small(16, 32, latent_channels=6)
    return vae(network=network, **presets.compared(3000, 64, name="iwae", num_samples=64))


def mnist() -> ConfigDict:
    return presets.first_stage(
        system=system(1e-3, start=2000, channels=32, n_layers=2),
        network=small(16, 32, 64, latent_channels=3),
        **presets.first_stage_mnist(),
    )


def folder(*block_out_channels: int, latent_channels: int, **data: Any) -> ConfigDict:
    return presets.first_stage(
        system=system(1e-5, start=10_000, n_layers=2),
        network=small(*block_out_channels, latent_channels=latent_channels),
        **presets.first_stage_folder(**data),
    )


def cifar10_f2() -> ConfigDict:
    return folder(64, 128, latent_channels=3, split="train", eval_split="test", flip=True)


def cifar10_f4() -> ConfigDict:
    return folder(64, 128, 128, latent_channels=4, split="train", eval_split="test", flip=True)


def crawl_tiles_f4() -> ConfigDict:
    data = dict(split="train[:95%]", eval_split="train[95%:]", flip=False)
    return folder(64, 128, 128, latent_channels=4, **data)


def emoji_f4() -> ConfigDict:
    config = folder(16, 32, 64, latent_channels=4, split="train[:95%]", eval_split="train[95%:]")
    config.data.name = "arrays"
    # Training takes a quarter of an hour on one CPU core, too short for the discriminator.
    config.training.update(num_steps=3500, batch_size=16, checkpoint_every=500, sample_every=0)
    config.optimizer.learning_rate = 1e-3
    return config


def openimages(
    *block_out_channels: int, latent_channels: int, num_steps: int, batch_size: int, **network: Any
) -> ConfigDict:
    """The paper's autoencoders of 256 x 256 images (table 8), with the numbers of steps of the authors' list of models
    and the batch of one of their devices."""
    return presets.first_stage(
        system=system(perceptual="lpips", start=50_001),
        network=dict(
            name="autoencoder_kl",
            block_out_channels=block_out_channels,
            layers_per_block=2,
            latent_channels=latent_channels,
            **network,
        ),
        **presets.first_stage_256(num_steps=num_steps, batch_size=batch_size, **CROP),
    )


def openimages_f4() -> ConfigDict:
    return openimages(128, 256, 512, latent_channels=3, num_steps=176_991, batch_size=10)


def openimages_f8() -> ConfigDict:
    # This is also the network of Stable Diffusion's first stage.
    return openimages(128, 256, 512, 512, latent_channels=4, num_steps=246_803, batch_size=4)


def openimages_f16() -> ConfigDict:
    widths = (128, 128, 256, 256, 512)
    return openimages(*widths, latent_channels=16, num_steps=442_998, batch_size=6, attention_levels=(4,))


def openimages_f32() -> ConfigDict:
    widths = (128, 128, 256, 256, 512, 512)
    return openimages(*widths, latent_channels=64, num_steps=406_763, batch_size=6, attention_levels=(4, 5))


VARIANTS = {
    "digits": digits,
    "digits_vae": digits_vae,
    "stacked_digits_vae": stacked_digits_vae,
    "mnist": mnist,
    "cifar10_f2": cifar10_f2,
    "cifar10_f4": cifar10_f4,
    "crawl_tiles_f4": crawl_tiles_f4,
    "emoji_f4": emoji_f4,
    "openimages_f4": openimages_f4,
    "openimages_f8": openimages_f8,
    "openimages_f16": openimages_f16,
    "openimages_f32": openimages_f32,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
