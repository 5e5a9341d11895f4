"""Textual inversion: the vectors of a new token, learned from a few images (arXiv:2208.01618).

    python -m diffusion_jax.main --config=configs/stable_diffusion.py --workdir=runs/words
    python -m diffusion_jax.main --config=configs/inversion.py --workdir=runs/inversion
    python -m diffusion_jax.main --config=configs/inversion.py --workdir=runs/inversion --mode=sample
    python -m diffusion_jax.weights --from runs/inversion --to token --format embeddings
    python -m diffusion_jax.main --config=configs/stable_diffusion.py --workdir=runs/words --mode=sample \\
        --config.system.embeddings='("token",)' --config.sampling.cond="<new>|three"

Without a variant, the run of `stable_diffusion.py` is shown four threes, without the word for them. Network, text
encoder and its table of token vectors are frozen; four vectors are trained, which stand in prompts as "<new>". The last
two commands write them as diffusers' learned_embeds, and use them in the run itself.

`sd15` and `sdxl` have the settings of diffusers' scripts. FOLDER is a pipeline of diffusers, SUBJECT has the images:

    python -m diffusion_jax.main --config=configs/inversion.py:sd15 --workdir=runs/toy \\
        --config.system.pipeline=FOLDER --config.data.instance.path=SUBJECT
"""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, from_file, replace

BASE = f"{pathlib.Path(__file__).parent}/stable_diffusion.py"
# Texts with an object in them, after those of ImageNet that CLIP was tested with.
TEMPLATES = (
    *(f"a {kind} of a {{}}" for kind in ("photo", "rendering", "cropped photo", "close-up photo", "good photo")),
    *(f"a {kind} of the {{}}" for kind in ("photo", "dark photo", "bright photo", "cropped photo", "rendition")),
    *(f"a photo of a {look} {{}}" for look in ("clean", "dirty", "nice", "cool", "small")),
    *(f"a photo of the {look} {{}}" for look in ("clean", "nice", "weird", "large", "small")),
)


def inverted(
    variant: str,
    instance: dict[str, Any],
    *,
    placeholder: str,
    templates: tuple[str, ...],
    system: dict[str, Any],
    **given: Any,
) -> ConfigDict:
    """A variant of `stable_diffusion.py` that learns the vectors of `placeholder`, in the `templates`, from images."""
    config = from_file(f"{BASE}:{variant}")
    section = config.system.to_dict() | dict(name="textual_inversion", placeholder=placeholder, cond_dropout=0.0)
    prompts = tuple(text.format(placeholder) for text in templates)
    size = dict(image_size=config.data.image_size, channels=config.data.channels)
    subject = dict(instance=dict(instance, prompts=prompts))
    return replace(
        config,
        system=section | system,
        data=dict(name="mixed", split="train", eval_split="train", **size, **subject),
        ema=dict(rates=()),
        evaluation=dict(metrics=(), after_training=False),
        **given,
    )


def digits() -> ConfigDict:
    return inverted(
        "digits",
        dict(name="digits", split="train[:60]", only=(3,)),
        placeholder="<new>",
        templates=("{}",),
        system=dict(
            model="runs/words", model_config="configs/stable_diffusion.py:digits", num_vectors=4, initializer=""
        ),
        training=dict(num_steps=1000, batch_size=32, sample_every=0, checkpoint_every=500),
        optimizer=dict(name="adamw", learning_rate=0.01, weight_decay=0.01, clip_norm=0.0),
        sampling=dict(cond="<new>", num_samples=64, batch_size=64),
    )


def public(variant: str, image_size: int, *, num_steps: int) -> ConfigDict:
    """The commands of diffusers' README files: one image in four accumulated steps, the rate times four (scale_lr)."""
    config = inverted(
        variant,
        dict(name="folder", path="", flip=True),
        placeholder="<cat-toy>",
        templates=TEMPLATES,
        system=dict(model="", model_config="", num_vectors=1, initializer="toy"),
        training=dict(num_steps=num_steps, batch_size=4, accumulate=4, checkpoint_every=500),
        optimizer=dict(name="adamw", learning_rate=4 * 5e-4, weight_decay=0.01, warmup_steps=0, clip_norm=0.0),
        sampling=dict(cond="a <cat-toy> backpack"),
    )
    config.data.image_size = image_size
    return config


def sd15() -> ConfigDict:
    return public("sd15", 512, num_steps=3000)


def sdxl() -> ConfigDict:
    return public("sdxl", 768, num_steps=500)


VARIANTS = {"digits": digits, "sd15": sd15, "sdxl": sdxl}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
