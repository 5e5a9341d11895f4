"""Diffusion-LM: Gaussian diffusion of learned embeddings of tokens (arXiv:2205.14217).

    python -m diffusion_jax.main --config=configs/diffusion_lm.py --workdir=runs/diffusion_lm
    python -m diffusion_jax.main --config=configs/diffusion_lm.py:e2e --workdir=runs/diffusion_lm_e2e \\
        --config.data.path=e2e --config.data.tokenizer_folder=e2e/tokenizer

`held_out_bits_per_token` in evaluation.json is the bound of the code length, the code lengths of n-gram models beside.

Without a variant, characters of English text that ships with Python. `shakespeare` is the same for Tiny Shakespeare.
`e2e` and `rocstories` are the paper's settings: a folder with train.txt and test.txt, for `rocstories` a story in each
line, and by config.data.tokenizer_folder that of a tokenizer of words with 821 and 11,043 ids.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def diffusion_lm(num_steps: int, embedding_size: int, **sections: Any) -> ConfigDict:
    """The sections that all variants share: x_0-prediction on the sqrt schedule, and ancestral sampling of all steps.

    The first of the `num_steps` steps gives sigma_0, the noise of embeddings.
    """
    config = replace(
        defaults(),
        system=dict(name="diffusion_lm", embedding_size=embedding_size, first=1 / num_steps),
        process=dict(name="discrete_vp", betas="sqrt", num_steps=num_steps),
        parameterization=dict(name="x0", label="timestep"),
        times=dict(name="discrete", num_steps=num_steps),
        solver=dict(name="ancestral"),
        sampling=dict(steps=num_steps, grid=dict(name="discrete")),
    )
    return replace(config, **sections)


def small(**data: Any) -> ConfigDict:
    """The network of configs/masked_text.py, on embeddings of width 16, in 200 steps."""
    return diffusion_lm(
        200,
        16,
        data=dict(name="text", split="train", eval_split="test", path="", **data),
        network=dict(name="sequence_dit", hidden_size=128, depth=4, num_heads=4, cond_dim=64),
        training=dict(num_steps=6000, batch_size=16, log_every=100, checkpoint_every=1000, sample_every=2000),
        optimizer=presets.adam(1e-3, warmup_steps=200),
        ema=dict(rates=(0.998,)),
        sampling=dict(num_samples=16, batch_size=32),
        evaluation=dict(num_samples=128, metrics=("auto",)),
    )


def python() -> ConfigDict:
    return small(length=64)


def shakespeare() -> ConfigDict:
    return replace(python(), data=presets.shakespeare_data(64))


def paper(embedding_size: int, num_steps: int, **data: Any) -> ConfigDict:
    """A transformer of 12 blocks of width 768 on 64 words, 2000 steps of noise."""
    return diffusion_lm(
        2000,
        embedding_size,
        data=dict(name="text", split="train", eval_split="test", path="", length=64, tokenizer_folder="", **data),
        network=dict(name="sequence_dit", hidden_size=768, depth=12, num_heads=12, cond_dim=128, dropout=0.1),
        training=dict(num_steps=num_steps, batch_size=64, checkpoint_every=10_000, sample_every=10_000),
        optimizer=dict(name="adam", learning_rate=1e-4, schedule="linear"),
        ema=dict(rates=(0.9999,), warmup=False),
        evaluation=dict(metrics=(), after_training=False),
    )


def e2e() -> ConfigDict:
    """Windows of the text, as the authors' padding_mode "block"."""
    return paper(16, 200_000, vocabulary=821)


def rocstories() -> ConfigDict:
    """A story in each line, filled up with the padding."""
    return paper(128, 400_000, vocabulary=11_043, lines=True)


VARIANTS = {"python": python, "shakespeare": shakespeare, "e2e": e2e, "rocstories": rocstories}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "python")()
