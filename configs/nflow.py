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
and its unconditional one with uniform noise, of which it reports 2.99 bits/dim. The authors' networks have 463 M
parameters.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def flow(*, noise_std: float = 0.0, cond_dropout: float = 0.0, **sections: Any) -> ConfigDict:
    """The sections that all variants share. Solver and steps are unused: samples are the inverse of the network."""
    system = dict(name="normalizing_flow", noise_std=noise_std, cond_dropout=cond_dropout)
    return replace(defaults(), system=system, sampling=dict(steps=1), **sections)


def small(num_steps: int, **sections: Any) -> ConfigDict:
    """A variant of the digits, dequantized, with the baseline of a Gaussian mixture."""
    training = presets.digits(num_steps, sample_every=0)
    config = flow(
        **training,
        data=dict(levels=17, dequantize=True),
        evaluation=dict(metrics=("classifier", "density_baseline"), likelihood=dict(name="exact")),
    )
    return replace(config, sampling=dict(batch_size=500), **sections)


def digits() -> ConfigDict:
    return small(
        2000,
        network=dict(
            name="tarflow", patch_size=2, channels=64, num_blocks=4, layers_per_block=2, head_dim=32, dropout=0.1
        ),
    )


def digits_real_nvp() -> ConfigDict:
    return small(3000, network=dict(name="real_nvp", num_couplings=8, hidden=128, num_layers=2, dropout=0.2))


VARIANTS = {
    "digits": digits,
    "digits_real_nvp": digits_real_nvp,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
