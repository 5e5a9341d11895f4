"""D3PM: uniform and Gaussian noise of characters and grey levels in T steps (arXiv:2107.03006).

    python -m diffusion_jax.main --config=configs/d3pm.py --workdir=runs/d3pm
    python -m diffusion_jax.main --config=configs/d3pm.py:shakespeare --workdir=runs/d3pm_shakespeare \\
        --config.data.path=tinyshakespeare/input.txt
    python -m diffusion_jax.main --config=configs/d3pm.py:cifar10_gauss_logistic --workdir=runs/d3pm_cifar10

`held_out_bits_per_token` in evaluation.json is the bound of the code length, per character or per value of a pixel.

Without a variant, uniform noise of English text that ships with Python, the text of configs/masked_text.py.
`shakespeare` is the same for Tiny Shakespeare. `digits_uniform` and `digits_gauss` are grey levels of the digits of
scikit-learn. `text8_*`, `lm1b_*` and `cifar10_*` are the paper's settings; `lm1b_*` take the folder of a tokenizer of
8192 pieces by config.data.tokenizer_folder.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def d3pm(*, num_steps: int, ce: float = 0.0, **sections: Any) -> ConfigDict:
    """The sections that all variants share: a bound of T steps, of which sampling takes all."""
    config = replace(
        defaults(),
        system=dict(name="discrete_diffusion", num_times=64),
        parameterization=dict(name="joint", label="time"),
        loss=dict(name="discrete_nelbo", ce=ce),
        times=dict(name="low_discrepancy", t_min=0.0, t_max=1.0),
        solver=dict(name="ancestral"),
        sampling=dict(steps=num_steps, grid=dict(name="discrete")),
    )
    return replace(config, **sections)


def small(**data: Any) -> ConfigDict:
    """The network of configs/masked_text.py, which reads the time here."""
    return d3pm(
        num_steps=256,
        process=dict(name="uniform", schedule="cosine", num_steps=256),
        data=dict(name="text", split="train", eval_split="test", path="", **data),
        network=dict(name="token_dit", hidden_size=96, depth=4, num_heads=4, cond_dim=64, time_conditioned=True),
        training=dict(num_steps=4000, batch_size=8, log_every=100, checkpoint_every=1000, sample_every=2000),
        optimizer=presets.adam(3e-3, warmup_steps=200),
        ema=dict(rates=(0.998,)),
        evaluation=dict(num_samples=128, metrics=("auto",)),
    )


def python() -> ConfigDict:
    return replace(small(length=128), sampling=dict(num_samples=16, batch_size=32))


def shakespeare() -> ConfigDict:
    return replace(python(), data=presets.shakespeare_data())


def digits(head: str = "logits", **process: Any) -> ConfigDict:
    """The 17 grey levels of the digits, with a small U-Net."""
    return d3pm(
        num_steps=100,
        ce=0.001,
        system=dict(name="discrete_diffusion", head=head, num_times=50),
        process=dict(**process, num_steps=100),
        network=dict(
            name="unet", channels=32, channel_mult=(1, 2), attention_resolutions=(4,), num_res_blocks=1, num_groups=8
        ),
        data=dict(levels=17),
        **presets.digits(3000, 64),
    )


def digits_uniform() -> ConfigDict:
    return digits(name="uniform", schedule="shifted_cosine")


def digits_gauss() -> ConfigDict:
    return digits(head="logistic", name="discretized_gaussian", beta_start=1e-3, beta_end=0.2)


def text(ce: float, process: dict[str, Any], **data: Any) -> ConfigDict:
    """A transformer of 12 blocks of width 768, and 1000 steps."""
    return d3pm(
        num_steps=1000,
        ce=ce,
        process=dict(**process, num_steps=1000),
        data=dict(name="text", split="train", eval_split="test", path="", **data),
        network=dict(name="token_dit", hidden_size=768, depth=12, num_heads=12, cond_dim=128, time_conditioned=True),
        training=dict(num_steps=1_000_000, batch_size=512, checkpoint_every=10_000, sample_every=10_000),
        evaluation=dict(metrics=(), after_training=False),
    )


UNIFORM = dict(name="uniform", schedule="shifted_cosine")
ABSORBING = dict(name="absorbing", schedule="linear")
TEXT8 = dict(length=256, alphabet=presets.TEXT8)
LM1B = dict(length=128, tokenizer_folder="", vocabulary=8192)


def cifar10(head: str, ce: float, **process: Any) -> ConfigDict:
    """DDPM's network and training, with logits of 256 levels."""
    config = d3pm(
        num_steps=1000,
        ce=ce,
        system=dict(name="discrete_diffusion", head=head, num_times=64),
        process=dict(**process, num_steps=1000),
        network=presets.cifar10_unet(),
        **presets.cifar10(1_500_000),
    )
    return config


def cifar10_uniform() -> ConfigDict:
    return cifar10("logits", 0.0, name="uniform", schedule="shifted_cosine")


def cifar10_gauss() -> ConfigDict:
    return cifar10("logits", 0.001, name="discretized_gaussian", beta_start=1e-4, beta_end=0.02)


def cifar10_gauss_logistic() -> ConfigDict:
    return cifar10("logistic", 0.001, name="discretized_gaussian", beta_start=1e-4, beta_end=0.02)


VARIANTS = {
    "python": python,
    "shakespeare": shakespeare,
    "digits_uniform": digits_uniform,
    "digits_gauss": digits_gauss,
    "text8_uniform": lambda: text(0.0, UNIFORM, **TEXT8),
    "text8_absorbing": lambda: text(0.01, ABSORBING, **TEXT8),
    "lm1b_uniform": lambda: text(0.0, UNIFORM, **LM1B),
    "lm1b_absorbing": lambda: text(0.01, ABSORBING, **LM1B),
    "cifar10_uniform": cifar10_uniform,
    "cifar10_gauss": cifar10_gauss,
    "cifar10_gauss_logistic": cifar10_gauss_logistic,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "python")()
