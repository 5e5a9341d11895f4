"""Normalizing flows: TarFlow (arXiv:2412.06329) and RealNVP (arXiv:1605.08803), trained by their exact likelihood.

    python -m diffusion_jax.main --config=configs/nflow.py --workdir=runs/nflow
    python -m diffusion_jax.main --config=configs/nflow.py:digits_real_nvp --workdir=runs/real_nvp
    python -m diffusion_jax.main --config=configs/nflow.py:imagenet64 --workdir=runs/tarflow --config.data.path=FOLDER

`held_out_bits_per_dim` in evaluation.json is the code length of held-out images; density_baseline_bits_per_dim is the
value of a Gaussian mixture on the same examples. (Flow matching, whose flow is an ODE, is configs/flow.py.)

Without a variant, a small TarFlow is trained on the 8 x 8 digits of scikit-learn, in minutes on two CPU cores.
`stacked_digits` is the data of the comparison of families in docs/trilemma.md. `mnist` has the sizes of the authors'
notebook; prepare the data with `python -m diffusion_jax.data.prepare mnist --from DIR`.

`imagenet64` and `imagenet64_bpd` are the paper's class-conditional model with Gaussian noise, whose samples are guided,
and its unconditional one with uniform noise, of which it reports 2.99 bits/dim. The authors' networks have 466 M
and 460 M parameters.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def flow(*, noise_std: float = 0.0, cond_dropout: float = 0.0, **sections: Any) -> ConfigDict:
    """The sections that all variants share. Solver and steps are unused: samples are the inverse of the network."""
    system = dict(name="normalizing_flow", noise_std=noise_std, cond_dropout=cond_dropout)
    return replace(replace(defaults(), system=system, sampling=dict(steps=1)), **sections)


def small(network: dict[str, Any], num_steps: int) -> ConfigDict:
    """A variant of the digits, dequantized, with the baseline of a Gaussian mixture."""
    training = presets.digits(num_steps, 64, sample_every=0)
    training["optimizer"] = presets.adam(2e-3)
    return flow(
        network=network,
        data=dict(levels=17, dequantize=True),
        **training,
        sampling=dict(batch_size=500),
        evaluation=dict(metrics=("classifier", "density_baseline"), likelihood=dict(name="exact")),
    )


def digits() -> ConfigDict:
    sizes = dict(patch_size=2, channels=64, num_blocks=4, layers_per_block=1, head_dim=32)
    return small(dict(name="tarflow", **sizes, dropout=0.1), 3000)


def digits_real_nvp() -> ConfigDict:
    return small(dict(name="real_nvp", num_couplings=8, hidden=128, num_layers=1, dropout=0.2), 3000)


def stacked_digits() -> ConfigDict:
    sizes = dict(patch_size=2, channels=64, num_blocks=4, layers_per_block=2, head_dim=32)
    return flow(
        network=dict(name="tarflow", **sizes),
        **presets.compared(2000, 64, name="exact"),
        sampling=dict(batch_size=500),
    )


def mnist() -> ConfigDict:
    return flow(
        noise_std=0.1,
        cond_dropout=0.1,
        network=dict(
            name="tarflow", patch_size=4, channels=128, num_blocks=4, layers_per_block=4, head_dim=64, num_classes=10
        ),
        data=presets.mnist_data(),
        training=dict(num_steps=23_400, batch_size=256, checkpoint_every=1000, sample_every=2000),
        optimizer=authors(2e-3, warmup_steps=234),
        ema=dict(rates=()),
        sampling=dict(batch_size=100),
    )


def authors(learning_rate: float, *, warmup_steps: int) -> dict[str, Any]:
    """The authors' optimizer, AdamW with a warm-up of one epoch. Its rate falls to 1e-6."""
    return dict(
        name="adamw",
        learning_rate=learning_rate,
        schedule="cosine",
        final_factor=1e-6 / learning_rate,
        warmup_steps=warmup_steps,
        b1=0.9,
        b2=0.95,
        weight_decay=1e-4,
        decay="all",
        clip_norm=0.0,
    )


def imagenet64_of(epochs: int, data: dict[str, Any], *, num_classes: int = 0, **sections: Any) -> ConfigDict:
    """The authors' network for 64 x 64 images, in epochs of 1,281,167 images."""
    sizes = dict(patch_size=2, channels=768, num_blocks=8, layers_per_block=8, head_dim=64)
    return flow(
        network=dict(name="tarflow", **sizes, num_classes=num_classes),
        data=dict(image_size=64, channels=3, path="", **data),
        training=dict(num_steps=5004 * epochs, batch_size=256, checkpoint_every=5000, sample_every=0),
        optimizer=authors(1e-4, warmup_steps=5004),
        ema=dict(rates=()),
        **sections,
    )


def imagenet64() -> ConfigDict:
    config = imagenet64_of(
        200,
        dict(name="folder", split="train", eval_split="train"),
        num_classes=1000,
        noise_std=0.05,
        cond_dropout=0.1,
        guidance=dict(name="classifier_free", scale=3.3),
        evaluation=dict(metrics=(), after_training=False),
    )
    return replace(config, sampling=dict(num_samples=16, batch_size=16))


def imagenet64_bpd() -> ConfigDict:
    config = imagenet64_of(
        100,
        dict(name="downsampled_imagenet/64x64", split="train", eval_split="validation", dequantize=True),
        evaluation=dict(metrics=(), after_training=False, likelihood=dict(name="exact")),
    )
    return replace(config, sampling=dict(num_samples=16, batch_size=16))


VARIANTS = {
    "digits": digits,
    "digits_real_nvp": digits_real_nvp,
    "stacked_digits": stacked_digits,
    "mnist": mnist,
    "imagenet64": imagenet64,
    "imagenet64_bpd": imagenet64_bpd,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
