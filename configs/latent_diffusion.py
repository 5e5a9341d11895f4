"""Latent diffusion: a diffusion model of an autoencoder's latents (arXiv:2112.10752), U-Net or DiT (2212.09748).

    python -m diffusion_jax.main --config=configs/autoencoder_kl.py --workdir=runs/autoencoder_kl
    python -m diffusion_jax.main --config=configs/latent_diffusion.py --workdir=runs/latent_diffusion

The first command trains the first stage, a KL autoencoder. The second finds it by config.system.first_stage and keeps
it frozen in its own checkpoints. For another first stage, a VQGAN for example, set --config.system.first_stage=DIR.

Images are encoded in the training step. To encode them once:

    python -m diffusion_jax.main --config=configs/autoencoder_kl.py --workdir=runs/autoencoder_kl --mode=encode \\
        --to=runs/latents
    python -m diffusion_jax.main --config=configs/latent_diffusion.py --workdir=runs/latent_diffusion \\
        --config.data.name=latents --config.data.path=runs/latents --config.evaluation.metrics='()'

Without a variant, a small class-conditional U-Net is trained on 4 x 4 latents of the 8 x 8 digits of scikit-learn, in
minutes on two CPU cores. `digits_dit` has a transformer instead, `digits_captions` is conditioned on the digits in
words. `mnist`, `cifar10_f2`, `cifar10_f4` and `crawl_tiles_f4` use first stages of the variants of the same name of
autoencoder_kl.py. `semantic_f4` and `layout_f4` use crawl_tiles_f4 or a first stage of your own images. They are
conditioned on a semantic map [n, 32, 32, 8], or on boxes as tokens [n, 16, 8] with a mask [n, 16], from .npz files that
hold them next to `images` as `image`, or as `tokens` and `mask`. `emoji_f4` is text to image, pictures from their
names, with a vocabulary that is made first; docs/latent_diffusion.md has the three commands.

`celebahq_ldm4`, `ffhq_ldm4`, `lsun_bedroom_ldm4` (first stage vqgan.py:openimages_f4), `lsun_church_ldm8` (first stage
autoencoder_kl.py:openimages_f8) and `imagenet_ldm4`, class-conditional by cross-attention, follow the paper's settings
(tables 12 and 13). It reports FID 5.11, 4.98, 2.95, 4.02 and 10.56. `imagenet_dit_xl2` is DiT's model, see `dit.py`.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace

# The config of each first stage that the variants use.
FIRST_STAGES = {
    "runs/autoencoder_kl": "autoencoder_kl.py:digits",
    "runs/kl_mnist": "autoencoder_kl.py:mnist",
    "runs/kl_f2": "autoencoder_kl.py:cifar10_f2",
    "runs/kl_f4": "autoencoder_kl.py:cifar10_f4",
    "runs/kl_tiles": "autoencoder_kl.py:crawl_tiles_f4",
    "runs/kl_emoji": "autoencoder_kl.py:emoji_f4",
    "runs/kl_f8": "autoencoder_kl.py:openimages_f8",
    "runs/vq_f4": "vqgan.py:openimages_f4",
}


def latent_diffusion(*, first_stage: str, cond_dropout: float = 0.0, **sections: Any) -> ConfigDict:
    """The sections that all variants share: eps-prediction, the scaled linear noise schedule of 1000 steps, DDIM."""
    config = replace(
        defaults(),
        system=dict(
            name="latent_diffusion",
            first_stage=first_stage,
            first_stage_config=f"configs/{FIRST_STAGES[first_stage]}",
            cond_dropout=cond_dropout,
        ),
        **presets.ddpm("scaled_linear", beta_start=0.0015, beta_end=0.0195),
        solver=dict(name="ddim", eta=1.0),
        sampling=dict(steps=200, grid=dict(name="discrete", spacing="linspace")),
    )
    return replace(config, **sections)


def digits(network: dict[str, Any] | None = None) -> ConfigDict:
    unet = dict(
        name="unet",
        channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(2,),
        num_groups=8,
        num_classes=10,
    )
    return latent_diffusion(
        first_stage="runs/autoencoder_kl",
        cond_dropout=0.1,
        network=network or unet,
        # So few latents leave little to predict at the ends of the paper's noise schedule.
        **presets.preconditioned(sigma_data=1.0),
        **presets.digits(2000, batch_size=64, warmup_steps=100),
        solver=dict(name="ddim"),
        sampling=dict(steps=100, batch_size=500),
    )


def digits_dit() -> ConfigDict:
    return digits(dict(name="dit", patch_size=1, hidden_size=96, depth=4, num_heads=4, num_classes=10))


def digits_captions() -> ConfigDict:
    config = digits()
    with config.unlocked():
        del config.network.num_classes
        config.network.update(token_dim=64, vocabulary=257, max_tokens=8)
        config.data.captions = presets.WORDS
    return config


def mnist() -> ConfigDict:
    return latent_diffusion(
        first_stage="runs/kl_mnist",
        cond_dropout=0.1,
        network=dict(
            # Latents of 7 x 7 cannot be halved: there is no lower level.
            name="unet",
            channels=64,
            channel_mult=(1,),
            num_res_blocks=2,
            attention_resolutions=(7,),
            num_groups=8,
            num_classes=10,
        ),
        **presets.mnist(6000, batch_size=64),
        solver=dict(name="ddim"),
        sampling=dict(steps=100, batch_size=250),
    )


def small(
    *,
    first_stage: str,
    image_size: int,
    resolution: int,
    mult: tuple[int, ...],
    conditions: dict[str, int] | None = None,
    **data: Any,
) -> ConfigDict:
    """The variants of small colour images in a folder. Attention is at `resolution`, in latent pixels."""
    return latent_diffusion(
        first_stage=first_stage,
        network=dict(
            name="unet",
            channels=128,
            channel_mult=mult,
            num_res_blocks=2,
            attention_resolutions=(resolution,),
            dropout=0.1,
            **(conditions or {}),
        ),
        cond_dropout=0.1 if conditions else 0.0,
        data={"name": "folder", "image_size": image_size, "channels": 3, "path": "", **data},
        training=dict(num_steps=200_000, batch_size=128, checkpoint_every=5000, sample_every=10_000),
        optimizer=dict(name="adam", learning_rate=2e-4, warmup_steps=5000, clip_norm=1.0),
        ema=dict(rates=(0.9999,)),
        evaluation=dict(metrics=(), after_training=False),
    )


def cifar10_f2() -> ConfigDict:
    data = dict(split="train", eval_split="test", flip=True)
    return small(first_stage="runs/kl_f2", image_size=32, resolution=8, mult=(1, 2, 2), **data)


def cifar10_f4() -> ConfigDict:
    data = dict(split="train", eval_split="test", flip=True)
    return small(first_stage="runs/kl_f4", image_size=32, resolution=8, mult=(1, 2), **data)


def crawl_tiles_f4() -> ConfigDict:
    data = dict(split="train[:95%]", eval_split="train[95%:]", flip=False)
    return small(first_stage="runs/kl_tiles", image_size=32, resolution=8, mult=(1, 2), **data)


def conditional(**conditions: int) -> ConfigDict:
    data = dict(name="arrays", split="train[:95%]", eval_split="train[95%:]", flip=False)
    stage = dict(first_stage="runs/kl_tiles", image_size=32, resolution=8, mult=(1, 2))
    return small(conditions=conditions, **stage, **data)


def semantic_f4() -> ConfigDict:
    return conditional(image_channels=8)


def layout_f4() -> ConfigDict:
    return conditional(token_dim=8, max_tokens=16)


def emoji_f4() -> ConfigDict:
    return latent_diffusion(
        first_stage="runs/kl_emoji",
        cond_dropout=0.1,
        **presets.preconditioned(sigma_data=1.0),
        network=dict(
            name="dit",
            patch_size=2,
            hidden_size=256,
            depth=6,
            num_heads=4,
            token_dim=128,
            vocabulary=2048,
            max_tokens=16,
            pool_tokens=True,
        ),
        # Half of the pictures are people in all colours of skin, most others have names of their own.
        data=presets.emoji_data(tokenizer="runs/emoji_words", balance="caption"),
        training=dict(num_steps=12_000, batch_size=64, log_every=100, checkpoint_every=500),
        optimizer=presets.adam(warmup_steps=500),
        ema=dict(rates=(0.999,)),
        guidance=dict(name="classifier_free", scale=3.0),
        solver=dict(name="ddim"),
        sampling=dict(steps=50),
        evaluation=dict(metrics=("retrieval",), num_samples=180),
    )


def paper(
    *,
    first_stage: str,
    network: dict[str, Any],
    batch_size: int,
    num_steps: int,
    learning_rate: float,
    data: dict[str, Any],
    eta: float = 1.0,
    normalize: str = "none",
    cond_dropout: float = 0.0,
) -> ConfigDict:
    """The paper's settings at 256 x 256 pixels. The sampler takes the timesteps 996, 991, ..., 1 of 1000."""
    config = latent_diffusion(
        first_stage=first_stage,
        cond_dropout=cond_dropout,
        network=network,
        data=dict(image_size=256, channels=3, path="", **data),
        training=dict(num_steps=num_steps, batch_size=batch_size, checkpoint_every=10_000, sample_every=10_000),
        # Of all parameters, as torch.optim.AdamW does.
        optimizer=dict(name="adamw", learning_rate=learning_rate, weight_decay=0.01, decay="all", clip_norm=0.0),
        ema=dict(rates=(0.9999,)),
        solver=dict(name="ddim", eta=eta),
        sampling=dict(
            num_samples=16, batch_size=16, steps=200, grid=dict(name="discrete", spacing="leading", offset=1, end=1)
        ),
        evaluation=dict(metrics=(), after_training=False),
    )
    config.system.normalize = normalize
    return config


# Without ADM's adaptive normalisation and residual blocks between levels.
LDM = dict(name="adm", num_res_blocks=2, use_scale_shift_norm=False, resblock_updown=False)


def ldm4(*, batch_size: int, num_steps: int, data: dict[str, Any], eta: float = 1.0) -> ConfigDict:
    return paper(
        first_stage="runs/vq_f4",
        network=dict(model_channels=224, channel_mult=(1, 2, 3, 4), num_head_channels=32, **LDM),
        batch_size=batch_size,
        num_steps=num_steps,
        learning_rate=2e-6 * batch_size,
        data=data,
        eta=eta,
    )


def celebahq_ldm4() -> ConfigDict:
    # TFDS has no other split of this set.
    data = dict(name="celeb_a_hq/256", split="train", eval_split="train", flip=False)
    return ldm4(batch_size=48, num_steps=410_000, data=data, eta=0.0)


def ffhq_ldm4() -> ConfigDict:
    data = dict(name="folder", split="train[:60000]", eval_split="train[60000:]", flip=False)
    return ldm4(batch_size=42, num_steps=635_000, data=data)


def lsun_bedroom_ldm4() -> ConfigDict:
    data = dict(name="lsun/bedroom", split="train", eval_split="validation", flip=True)
    return ldm4(batch_size=48, num_steps=1_900_000, data=data)


def lsun_church_ldm8() -> ConfigDict:
    config = paper(
        first_stage="runs/kl_f8",
        network=dict(
            name="adm",
            model_channels=192,
            channel_mult=(1, 2, 2, 4, 4),
            num_res_blocks=2,
            attention_resolutions=(32, 16, 8, 4),
            num_heads=8,
            num_head_channels=None,
        ),
        batch_size=96,
        num_steps=500_000,
        learning_rate=5e-5,
        data=dict(name="lsun/church_outdoor", split="train", eval_split="validation", flip=True),
        eta=0.0,
        normalize="scale",
    )
    # Their 400 steps take every second of 1000 timesteps, which are 500.
    return replace(
        config,
        process=dict(beta_end=0.0155),
        loss=dict(name="denoising", norm="l1"),
        optimizer=dict(warmup_steps=10_000),
        sampling=dict(steps=500),
    )


def imagenet_ldm4() -> ConfigDict:
    heads = dict(num_heads=1, num_head_channels=None)
    return paper(
        first_stage="runs/vq_f4",
        cond_dropout=0.1,
        network=dict(
            model_channels=192, channel_mult=(1, 2, 3, 5), num_classes=1000, class_token_dim=512, **heads, **LDM
        ),
        batch_size=1200,
        num_steps=178_000,
        learning_rate=1e-4,
        data=dict(name="folder", split="train", eval_split="train", flip=False, crop="random"),
    )


def imagenet_dit_xl2() -> ConfigDict:
    config = paper(
        first_stage="runs/kl_f8",
        cond_dropout=0.1,
        network=dict(
            name="dit", patch_size=2, hidden_size=1152, depth=28, num_heads=16, num_classes=1000, learn_sigma=True
        ),
        batch_size=256,
        num_steps=7_000_000,
        learning_rate=1e-4,
        data=dict(name="folder", split="train", eval_split="train", flip=True),
    )
    del config.system.normalize
    return replace(
        config,
        system={**config.system.to_dict(), "latent_scale": 0.18215},
        process=dict(name="discrete_vp", betas="linear", num_steps=1000),
        loss=dict(name="hybrid"),
        optimizer=dict(name="adamw", learning_rate=1e-4, weight_decay=0.0, clip_norm=0.0),
        ema=dict(warmup=False),
        solver=dict(name="ancestral", variance="learned"),
        guidance=dict(name="classifier_free", scale=1.5, channels=3),
        sampling=dict(steps=250, grid=dict(name="discrete", spacing="linspace")),
    )


VARIANTS = {
    "digits": digits,
    "digits_dit": digits_dit,
    "digits_captions": digits_captions,
    "mnist": mnist,
    "cifar10_f2": cifar10_f2,
    "cifar10_f4": cifar10_f4,
    "crawl_tiles_f4": crawl_tiles_f4,
    "semantic_f4": semantic_f4,
    "layout_f4": layout_f4,
    "emoji_f4": emoji_f4,
    "celebahq_ldm4": celebahq_ldm4,
    "ffhq_ldm4": ffhq_ldm4,
    "lsun_bedroom_ldm4": lsun_bedroom_ldm4,
    "lsun_church_ldm8": lsun_church_ldm8,
    "imagenet_ldm4": imagenet_ldm4,
    "imagenet_dit_xl2": imagenet_dit_xl2,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
