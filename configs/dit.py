"""DiT: a class-conditional diffusion transformer (arXiv:2212.09748).

    python -m diffusion_jax.main --config=configs/dit.py --workdir=runs/dit
    python -m diffusion_jax.main --config=configs/dit.py:imagenet256_b4 --workdir=runs/dit_b4 \\
        --config.data.path=LATENTS

Without a variant, a small transformer is trained on the 8 x 8 digits of scikit-learn in 16 patches, in minutes on two
CPU cores. Samples cycle through the classes, so a sheet shows 0 to 9 in turn.

`imagenet256_xl2` and `imagenet256_b4` are the paper's models of latents of ImageNet at 256 x 256. LATENTS is an .npz
file, or a folder with train.npz, that holds `x`: float [n, 32, 32, 4], the latents of Stable Diffusion's autoencoder
times 0.18215, and `label`: integers [n] in 0..999. Give the latents of the mirrored images as well, as the authors flip
images at random before they encode them; `latent_diffusion.py:imagenet_dit_xl2` does so itself. The variance is
learned, a tenth of the labels is dropped, and samples are guided: three of the four channels, with the scale 1.5. The
paper reports FID 2.27 for XL/2 after 7 million steps, 9.62 without guidance (--config.guidance.name=none), and 68.38
for B/4 without guidance after 400,000.

The weights of the authors and of facebook/DiT-XL-2-256 fit `imagenet256_xl2`. Samples are latents:

    python -m diffusion_jax.main --config=configs/dit.py:imagenet256_xl2 --workdir=runs/dit_xl2 \\
        --mode=sample --config.weights=DiT-XL-2-256x256.pt --config.sampling.cond=207,360

`imagenet256_xl2_simple` is the same network without a learned variance, label dropout and guidance.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def dit(**sections: Any) -> ConfigDict:
    """The sections that all variants share: DDPM's process and loss, and its sampler on 250 of the 1000 steps."""
    config = replace(
        defaults(),
        **presets.ddpm(),
        weighting=dict(name="simple"),
        solver=dict(name="ancestral"),
        sampling=dict(steps=250, grid=dict(name="discrete", spacing="linspace")),
    )
    return replace(config, **sections)


def digits() -> ConfigDict:
    return dit(
        network=dict(name="dit", patch_size=2, hidden_size=128, depth=4, num_heads=4, num_classes=10),
        **presets.digits(4000, batch_size=64),
        sampling=dict(steps=100, batch_size=500, threshold=dict(name="static")),
    )


def imagenet256(*, num_steps: int, **network: Any) -> ConfigDict:
    """The paper's setting: L_simple with the variance learned by L_vlb, and classifier-free guidance."""
    return dit(
        system=dict(name="diffusion", cond_dropout=0.1),
        network=dict(name="dit", num_classes=1000, learn_sigma=True, **network),
        loss=dict(name="hybrid"),
        solver=dict(name="ancestral", variance="learned"),
        guidance=dict(name="classifier_free", scale=1.5, channels=3),
        data=dict(name="arrays", split="train", eval_split="train", image_size=32, channels=4, path=""),
        training=dict(num_steps=num_steps, batch_size=256, checkpoint_every=10_000, sample_every=0),
        optimizer=dict(name="adamw", learning_rate=1e-4, weight_decay=0.0, clip_norm=0.0),
        ema=dict(rates=(0.9999,), warmup=False),
        sampling=dict(batch_size=16, num_samples=16),
        evaluation=dict(metrics=(), after_training=False),
    )


XL2 = dict(patch_size=2, hidden_size=1152, depth=28, num_heads=16)


def imagenet256_xl2() -> ConfigDict:
    return imagenet256(num_steps=7_000_000, **XL2)


def imagenet256_b4() -> ConfigDict:
    return imagenet256(num_steps=400_000, patch_size=4, hidden_size=768, depth=12, num_heads=12)


def imagenet256_xl2_simple() -> ConfigDict:
    return replace(
        imagenet256_xl2(),
        system=dict(name="diffusion"),
        network=dict(name="dit", num_classes=1000, **XL2),
        loss=dict(name="denoising"),
        solver=dict(name="ancestral"),
        guidance=dict(name="none"),
    )


VARIANTS = {
    "digits": digits,
    "imagenet256_xl2": imagenet256_xl2,
    "imagenet256_b4": imagenet256_b4,
    "imagenet256_xl2_simple": imagenet256_xl2_simple,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
