"""Classifier-free guidance: a conditional model trained with condition dropout (arXiv:2207.12598).

    python -m diffusion_jax.main --config=configs/classifier_free.py --workdir=runs/cfg
    python -m diffusion_jax.main --config=configs/classifier_free.py --workdir=runs/cfg --mode=sample \\
        --config.guidance.scale=3.0 --config.sampling.cond=3

Without a variant, the model is class-conditional on the 8 x 8 digits of scikit-learn, trained in minutes on two CPU
cores. `mnist` is the network of `ddpm.py:mnist` with classes. `digits_captions` is a DiT that is conditioned on the
digits in words; a small transformer, trained with it, encodes them: --config.sampling.cond="three|five". A guidance
scale of 0 samples the unconditional model, 1 the conditional model, and a larger one trades variety for agreement with
the condition; docs/guidance.md has the curves. A tenth of the examples get the null condition, as in the paper.

`emoji` is text to image: 32 x 32 pictures from their names. --config.data.path=FILE.npz has the arrays `images`, uint8
[n, 32, 32, 3 or 4] (transparent pixels become white), `names` and `groups`, strings. A twentieth of them, the end of
one fixed shuffle, is held out. --config.sampling.cond="red heart|dog face" is a pair of prompts, and evaluation.json
has the retrieval accuracy of docs/metrics.md for held-out names. For a folder of images set config.data.name=folder,
and config.data.caption_key=.txt for text files next to them, or the name of a field of metadata.jsonl.

`cifar10` is DDPM's setting for CIFAR-10 with classes. The paper's own models are for ImageNet at 64 x 64 and 128 x 128
and have ADM's network, as in `adm.py`; it reports FID 1.55 at 64 x 64 with w = 0.1, which is a scale of 1.1 here.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def classifier_free(*, scale: float, **sections: Any) -> ConfigDict:
    """The sections that all variants share: DDPM's process and loss, and DDIM in 50 steps as the sampler."""
    config = replace(
        defaults(),
        system=dict(name="diffusion", cond_dropout=0.1),
        **presets.ddpm(),
        solver=dict(name="ddim"),
        guidance=dict(name="classifier_free", scale=scale),
        sampling=dict(steps=50, grid=dict(name="discrete", spacing="trailing"), threshold=dict(name="static")),
        ema=dict(rates=(0.999,)),
    )
    return replace(config, **sections)


def digits() -> ConfigDict:
    return classifier_free(
        scale=1.5,
        **presets.preconditioned(),
        network=dict(name="mlp", hidden=512, num_layers=4, num_classes=10),
        **presets.digits(8000, sample_every=2000),
        sampling=dict(batch_size=500),
    )


def mnist() -> ConfigDict:
    return classifier_free(
        scale=2.0,
        **presets.preconditioned(),
        network=presets.mnist_unet(num_classes=10),
        **presets.mnist(6000, sample_every=2000),
        sampling=dict(batch_size=100),
    )


def cifar10() -> ConfigDict:
    return classifier_free(
        scale=1.1,
        network=presets.cifar10_unet(num_classes=10),
        **presets.cifar10(800_000),
    )


def digits_captions() -> ConfigDict:
    return classifier_free(
        scale=2.0,
        **presets.preconditioned(),
        network=dict(
            name="dit", patch_size=2, hidden_size=128, depth=4, num_heads=4, token_dim=64, vocabulary=257, max_tokens=8
        ),
        data=dict(captions=presets.WORDS),
        **presets.digits(4000, batch_size=64),
        sampling=dict(batch_size=500),
    )


def emoji() -> ConfigDict:
    return classifier_free(
        scale=3.0,
        **presets.preconditioned(),
        network=dict(
            name="dit",
            patch_size=4,
            hidden_size=256,
            depth=6,
            num_heads=4,
            token_dim=128,
            vocabulary=257,
            max_tokens=48,
        ),
        data=presets.emoji_data(),
        training=dict(num_steps=20_000, batch_size=64, log_every=100, checkpoint_every=500),
        optimizer=presets.adam(5e-4, warmup_steps=500),
        evaluation=dict(metrics=("retrieval",), num_samples=180),
    )


VARIANTS = {
    "digits": digits,
    "digits_captions": digits_captions,
    "mnist": mnist,
    "cifar10": cifar10,
    "emoji": emoji,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
