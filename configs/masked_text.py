"""Masked diffusion of text: MDLM and MD4 (arXiv:2406.07524, arXiv:2406.04329).

    python -m diffusion_jax.main --config=configs/masked_text.py --workdir=runs/masked_text
    python -m diffusion_jax.main --config=configs/masked_text.py:shakespeare --workdir=runs/shakespeare \\
        --config.data.path=tinyshakespeare/input.txt
    python -m diffusion_jax.main --config=configs/masked_text.py:infill --workdir=runs/masked_text --mode=sample

`held_out_bits_per_token` in evaluation.json is the bound of the code length in bits per character, next to its standard
error and the code lengths of n-gram models on the same windows (docs/text_generation.md).

Without a variant, a small transformer is trained on English text that ships with Python, the language reference of
`help`. `shakespeare` is the same with the characters of Tiny Shakespeare, `smiles` with molecules of ZINC, one in a
line: give a folder with train.txt and test.txt by config.data.path. `infill` draws 16 hidden characters of held-out
windows with the model of the default variant.

`text8_mdlm`, `text8_md4`, `lm1b` and `owt` are the papers' settings. Give a folder with train.txt and test.txt, or
token ids in train.npy and test.npy, by config.data.path, and for `lm1b` and `owt` the folder of the tokenizer, BERT's
and GPT-2's, by config.data.tokenizer_folder.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def masked(**sections: Any) -> ConfigDict:
    """The sections that all variants share: a masked process in continuous time and a network that does not read t."""
    config = replace(
        defaults(),
        system=dict(name="discrete_diffusion", num_times=64),
        process=dict(name="absorbing", schedule="linear"),
        parameterization=dict(name="x0_logits", label="time"),
        loss=dict(name="nelbo"),
        times=dict(name="low_discrepancy", t_min=1e-3, t_max=1.0),
        solver=dict(name="ancestral"),
        sampling=dict(steps=128, grid=dict(name="uniform", t_min=0.0)),
    )
    return replace(config, **sections)


def small(num_steps: int = 6000, **sections: Any) -> ConfigDict:
    """A transformer of 0.6 M parameters on windows of 128 characters, 1024 of them in a step."""
    return masked(
        network=dict(name="token_dit", hidden_size=96, depth=4, num_heads=4, cond_dim=64),
        training=dict(num_steps=num_steps, batch_size=8, log_every=100, checkpoint_every=1000, sample_every=2000),
        optimizer=presets.adam(3e-3, warmup_steps=200),
        ema=dict(rates=(0.998,)),
        sampling=dict(num_samples=16, steps=128, batch_size=32),
        evaluation=dict(num_samples=128, metrics=("auto",)),
        **sections,
    )


def python() -> ConfigDict:
    return small(data=dict(name="text", split="train", eval_split="test", path="", length=128))


def shakespeare() -> ConfigDict:
    """Tiny Shakespeare: its 65 characters, of which the last tenth is held out."""
    return small(12_000, data=presets.shakespeare_data())


def smiles() -> ConfigDict:
    """Molecules of ZINC as SMILES, one in a line; give a folder with train.txt and test.txt."""
    data = dict(name="text", split="train", eval_split="test", path="", length=108, lines=True, alphabet=presets.SMILES)
    return replace(small(6000, data=data), evaluation=dict(metrics=("ngrams", "smiles")))


def infill() -> ConfigDict:
    """Infilling with the model of `python`."""
    return replace(python(), editing=dict(name="infilling", first=-1, length=16), sampling=dict(file="infilling"))


def paper(*, num_steps: int, batch_size: int, learning_rate: float, dropout: float, **sections: Any) -> ConfigDict:
    """A transformer of 12 blocks of width 768."""
    network = dict(name="token_dit", hidden_size=768, depth=12, num_heads=12, cond_dim=128, dropout=dropout)
    optimizer = dict(name="adam", learning_rate=learning_rate, warmup_steps=2500, clip_norm=1.0)
    return masked(
        network=network,
        training=dict(num_steps=num_steps, batch_size=batch_size, checkpoint_every=10_000, sample_every=10_000),
        optimizer=optimizer,
        ema=dict(rates=(0.9999,), warmup=False),
        evaluation=dict(metrics=(), after_training=False),
        **sections,
    )


def mdlm(**data: Any) -> ConfigDict:
    """The authors' training: alpha from 1 to 1e-3, a million steps of 512 sequences."""
    config = paper(num_steps=1_000_000, batch_size=512, learning_rate=3e-4, dropout=0.1, data=dict(name="text", **data))
    config.process = ConfigDict(dict(name="absorbing", schedule="linear", start=1.0, end=1e-3))
    config.solver = ConfigDict(dict(name="ancestral", cache=True))
    config.sampling.denoise = True
    config.training.dtype = "bfloat16"
    return config


def text8_mdlm() -> ConfigDict:
    return mdlm(split="train", eval_split="test", path="", length=256, alphabet=presets.TEXT8)


def text8_md4() -> ConfigDict:
    """MD4: alpha from 1 - 1e-4 to 1e-4, a cosine schedule of the learning rate, and a cosine grid of 1000 steps."""
    data = dict(name="text", split="train", eval_split="test", path="", length=256, alphabet=presets.TEXT8)
    config = paper(num_steps=1_000_000, batch_size=512, learning_rate=5e-4, dropout=0.05, data=data)
    config.process = ConfigDict(dict(name="absorbing", schedule="linear", start=1 - 1e-4, end=1e-4))
    config.optimizer.update(name="adamw", schedule="cosine", weight_decay=0.03)
    config.sampling.update(steps=1000, denoise=True, grid=ConfigDict(dict(name="cosine", t_min=0.0)))
    return config


def lm1b() -> ConfigDict:
    return mdlm(split="train", eval_split="test", path="", length=128, tokenizer_folder="", vocabulary=30_522)


def owt() -> ConfigDict:
    config = mdlm(split="train", eval_split="test", path="", length=1024, tokenizer_folder="", vocabulary=50_257)
    config.network.remat = True
    return config


VARIANTS = {
    "python": python,
    "shakespeare": shakespeare,
    "smiles": smiles,
    "infill": infill,
    "text8_mdlm": text8_mdlm,
    "text8_md4": text8_md4,
    "lm1b": lm1b,
    "owt": owt,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "python")()
