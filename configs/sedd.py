"""SEDD: ratios of probabilities, the concrete score, learned by score entropy (arXiv:2310.16834).

    python -m diffusion_jax.main --config=configs/sedd.py --workdir=runs/sedd
    python -m diffusion_jax.main --config=configs/sedd.py:owt_small --workdir=runs/sedd_owt

Without a variant, masked ("absorb") noise of English text that ships with Python; `uniform` replaces characters by
uniformly drawn ones. `owt_small` and `owt_uniform` are the paper's settings of OpenWebText: give a folder with token
ids in train.npy and test.npy by config.data.path, and that of GPT-2's tokenizer by config.data.tokenizer_folder.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace

ABSORB = dict(name="absorbing", schedule="linear", start=1.0, end=1e-3)  # total noise -log(1 - (1 - 1e-3) t)
# Total noise 1e-4^(1 - t) 20^t: alpha runs from exp(-1e-4) to exp(-20).
UNIFORM = dict(name="uniform", schedule="geometric", start=0.9999000049998333, end=2.061153622438558e-09)


def sedd(process: dict[str, Any], **sections: Any) -> ConfigDict:
    """The sections that all variants share; the network reads the total noise."""
    config = replace(
        defaults(),
        system=dict(name="discrete_diffusion", num_times=64),
        process=dict(**process),
        parameterization=dict(name="log_score", label="total_noise"),
        loss=dict(name="score_entropy"),
        times=dict(name="low_discrepancy", t_min=1e-3, t_max=1.0),
        solver=dict(name="ancestral"),
        sampling=dict(steps=128, denoise=True, grid=dict(name="uniform", t_min=1e-5)),
    )
    return replace(config, **sections)


def small(process: dict[str, Any]) -> ConfigDict:
    return sedd(
        process,
        data=dict(name="text", split="train", eval_split="test", path="", length=64),
        network=dict(name="token_dit", hidden_size=128, depth=4, num_heads=4, cond_dim=32, time_conditioned=True),
        training=dict(num_steps=1500, batch_size=64, log_every=50, checkpoint_every=500, sample_every=500),
        optimizer=presets.adam(2e-3, warmup_steps=100),
        ema=dict(rates=(0.995,)),
        sampling=dict(num_samples=16, steps=64, batch_size=64),
        evaluation=dict(num_samples=256, metrics=("auto",)),
    )


def absorb() -> ConfigDict:
    return small(ABSORB)


def uniform() -> ConfigDict:
    return small(UNIFORM)


def owt(process: dict[str, Any]) -> ConfigDict:
    """The small model: 12 blocks of width 768 on 1024 tokens of GPT-2."""
    data = dict(length=1024, tokenizer_folder="", vocabulary=50_257)
    return sedd(
        process,
        data=dict(name="text", split="train", eval_split="test", path="", **data),
        network=dict(
            name="token_dit",
            hidden_size=768,
            depth=12,
            num_heads=12,
            cond_dim=128,
            dropout=0.1,
            time_conditioned=True,
            remat=True,
        ),
        training=dict(num_steps=1_300_001, batch_size=512, checkpoint_every=10_000, sample_every=10_000),
        optimizer=dict(name="adam", learning_rate=3e-4, warmup_steps=2500, clip_norm=1.0),
        ema=dict(rates=(0.9999,), warmup=False),
        solver=dict(name="euler"),
        evaluation=dict(metrics=(), after_training=False),
    )


VARIANTS = {
    "absorb": absorb,
    "uniform": uniform,
    "owt_small": lambda: owt(ABSORB),
    "owt_uniform": lambda: owt(UNIFORM),
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "absorb")()
