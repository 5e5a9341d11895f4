"""DreamBooth: a text-to-image model learns a subject from a few images, and keeps its class (arXiv:2208.12242).

    python -m diffusion_jax.main --config=configs/stable_diffusion.py --workdir=runs/words
    python -m diffusion_jax.main --config=configs/stable_diffusion.py --workdir=runs/words --mode=sample \\
        --config.sampling.cond=three --config.sampling.num_samples=200 --config.sampling.file=class
    python -m diffusion_jax.main --config=configs/dreambooth.py --workdir=runs/dreambooth
    python -m diffusion_jax.main --config=configs/dreambooth.py --workdir=runs/dreambooth --mode=sample \\
        --config.sampling.cond="my three|three"

Without a variant, the run of `stable_diffusion.py` learns "my three" from four threes in inverted colours. Images of
the class, which the second command draws from the run itself, keep "three" what it was: prior preservation.
`digits_plain` is the same without them, the control that forgets its class. `digits_lora` trains low-rank updates of
the network and of the text encoder instead.

`sd15`, `sd15_plain`, `sd15_lora` and `sdxl_lora` have the settings of diffusers' scripts. FOLDER is a pipeline of
diffusers, SUBJECT a folder of three to five images, CLASS one of 200 samples of the class prompt (--mode=sample with
--config.sampling.format=png):

    python -m diffusion_jax.main --config=configs/dreambooth.py:sd15 --workdir=runs/dog --config.weights=FOLDER \\
        --config.data.instance.path=SUBJECT --config.data.prior.path=CLASS
"""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, from_file, replace

BASE = f"{pathlib.Path(__file__).parent}/stable_diffusion.py"
# Layers that diffusers' scripts update: the projections of attention, in the U-Net and in text encoders.
LORA = dict(modules=r"(to_[qkv]|to_out)$", text_modules=r"(q|k|v|out)_proj$")


def dreambooth(variant: str, instance: dict[str, Any], prior: dict[str, Any], **sections: Any) -> ConfigDict:
    """A variant of `stable_diffusion.py`, fine-tuned on images of a subject and of its class, without dropout of texts.

    The examples that training ends with are the ones that it began with: five images have no held-out split.
    """
    config = from_file(f"{BASE}:{variant}")
    config.system.weighted, config.system.cond_dropout = True, 0.0
    size = dict(image_size=config.data.image_size, channels=config.data.channels)
    sets = dict(instance=instance, prior=prior, prior_weight=1.0)
    unheld = dict(evaluation=dict(metrics=(), after_training=False), ema=dict(rates=()))
    data = dict(name="mixed", split="train", eval_split="train", **size, **sets)
    return replace(config, data=data, **unheld, **sections)


def digits(**sections: Any) -> ConfigDict:
    subject = dict(name="digits", split="train[:50]", only=(3,), edit="invert", prompts=("my three",))
    samples = dict(name="arrays", path="runs/words/samples/class.npz", prompts=("three",))
    given = dict(
        training=dict(num_steps=400, batch_size=32, sample_every=0, checkpoint_every=400),
        optimizer=dict(name="adamw", learning_rate=3e-4, weight_decay=0.01, clip_norm=1.0),
        sampling=dict(cond="my three|three", num_samples=64, batch_size=64),
        weights="runs/words",
    )
    return dreambooth("digits", subject, samples, **given | sections)


def digits_plain() -> ConfigDict:
    return without_prior(digits())


def digits_lora() -> ConfigDict:
    optimizer = dict(name="adamw", learning_rate=3e-3, weight_decay=0.0, clip_norm=1.0)
    return digits(lora=dict(rank=8, **LORA), optimizer=optimizer)


def without_prior(config: ConfigDict) -> ConfigDict:
    """The same without images of the class."""
    config.data.prior = ConfigDict(dict(name="none"))
    return config


def public(
    variant: str, *, num_steps: int, optimizer: dict[str, Any], accumulate: int = 1, **sections: Any
) -> ConfigDict:
    """The commands of diffusers' README files: batches of one image of the subject and one of the class."""
    folder = dict(name="folder", path="")
    subject, samples = (folder | dict(prompts=(text,)) for text in ("a photo of sks dog", "a photo of dog"))
    return dreambooth(
        variant,
        subject,
        samples,
        training=dict(
            num_steps=num_steps, batch_size=2 * accumulate, accumulate=accumulate, checkpoint_every=num_steps
        ),
        optimizer=dict(name="adamw", warmup_steps=0, clip_norm=1.0, **optimizer),
        sampling=dict(cond="a photo of sks dog in a bucket|a photo of a dog"),
        **sections,
    )


def sd15() -> ConfigDict:
    return public("sd15", num_steps=800, optimizer=dict(learning_rate=5e-6, weight_decay=0.01))


def sd15_plain() -> ConfigDict:
    config = without_prior(public("sd15", num_steps=400, optimizer=dict(learning_rate=5e-6, weight_decay=0.01)))
    config.training.batch_size = 1
    return config


def sd15_lora() -> ConfigDict:
    lora, optimizer = dict(rank=4, **LORA), dict(learning_rate=1e-4, weight_decay=0.01)
    return public("sd15", num_steps=500, optimizer=optimizer, lora=lora)


def sdxl_lora() -> ConfigDict:
    lora, optimizer = dict(rank=4, **LORA), dict(learning_rate=1e-4, weight_decay=1e-4)
    # Text encoders have a rate and a decay of their own in the script for SDXL.
    optimizer["groups"] = dict(text_lora=dict(learning_rate=5e-6, weight_decay=1e-3))
    return public("sdxl", num_steps=500, optimizer=optimizer, accumulate=4, lora=lora)


VARIANTS = {
    "digits": digits,
    "digits_plain": digits_plain,
    "digits_lora": digits_lora,
    "sd15": sd15,
    "sd15_plain": sd15_plain,
    "sd15_lora": sd15_lora,
    "sdxl_lora": sdxl_lora,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
