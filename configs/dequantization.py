"""Variational dequantization of a trained likelihood model (arXiv:1902.00275, section 3.1; arXiv:2101.09258).

    python -m diffusion_jax.main --config=configs/score_sde.py:digits_vp_likelihood --workdir=runs/likelihood
    python -m diffusion_jax.main --config=configs/dequantization.py --workdir=runs/dequantization

The first command trains the diffusion model. The second freezes it and trains a flow q(u | x) that replaces the uniform
dequantization noise. `held_out_bits_per_dim` in evaluation.json is the bound with the flow, and
`held_out_uniform_bits_per_dim` is the bound with uniform noise, both on the same examples with the same probes. For
another model set --config.system.model=DIR, with the data section it was trained on except for `dequantize`.

`mnist` and `cifar10` are for the runs of `score_sde.py:mnist_vp_likelihood` and
`score_sde.py:cifar10_vp_ddpmpp_deep_likelihood`.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def dequantization(*, model: str, t_min: float, **sections: Any) -> ConfigDict:
    config = replace(
        defaults(),
        system=dict(
            name="variational_dequantization",
            model="runs/likelihood",
            model_config=f"configs/score_sde.py:{model}",
            num_layers=4,
            t_min=t_min,
        ),
        evaluation=dict(metrics=("density_baseline",), likelihood=dict(name="ode", t_min=t_min)),
    )
    return replace(config, **sections)


def digits() -> ConfigDict:
    return dequantization(
        model="digits_vp_likelihood",
        t_min=1e-4,  # the t_min of the model
        network=dict(name="mlp", hidden=256, num_layers=2),
        data=dict(levels=17),
        **presets.digits(3000, sample_every=0),
    )


def mnist() -> ConfigDict:
    return dequantization(
        model="mnist_vp_likelihood",
        t_min=1e-5,
        network=dict(
            name="unet", channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(), num_groups=4
        ),
        **presets.mnist(2000, sample_every=0),
    )


def cifar10() -> ConfigDict:
    return dequantization(
        model="cifar10_vp_ddpmpp_deep_likelihood",
        t_min=1e-5,
        network=dict(name="unet", channels=64, channel_mult=(1, 2), num_res_blocks=2, attention_resolutions=()),
        data=presets.cifar10_data(),
        training=dict(num_steps=100_000, batch_size=128, checkpoint_every=5000, sample_every=0),
        optimizer=dict(name="adam", learning_rate=2e-4, warmup_steps=5000, clip_norm=1.0),
        ema=dict(rates=(0.999,)),
        evaluation=dict(metrics=(), after_training=False),
    )


VARIANTS = {"digits": digits, "mnist": mnist, "cifar10": cifar10}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
