"""NCSNv2: score matching with noise levels and step sizes chosen by rule (arXiv:2006.09011).

    python -m diffusion_jax.main --config=configs/ncsnv2.py --workdir=runs/ncsnv2
    python -m diffusion_jax.main --config=configs/ncsnv2.py:cifar10 --workdir=runs/ncsnv2_cifar10

Without a variant, a small unconditional RefineNet is trained on the 8 x 8 digits of scikit-learn. It is slower than
`ncsn.py`, whose network is a plain MLP. Expect readable digits.

`cifar10`, `celeba` (64 x 64) and `bedroom` (LSUN, 128 x 128) are the paper's settings. The largest sigma is about the
largest distance between two images, the number of levels keeps neighbouring levels overlapping, the network's output is
divided by sigma, samples end with a denoising step, and the weights are averaged: the paper's five techniques. It
reports FID 10.87 on CIFAR-10 and 10.23 on CelebA.
"""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace
from diffusion_jax.solvers import ncsnv2_step_size


def ncsnv2(*, sigma_min: float, sigma_max: float, num_levels: int, langevin_steps: int, **sections: Any) -> ConfigDict:
    """The sections that all variants share, with the step size that technique 4 gives for these noise levels."""
    step_size = ncsnv2_step_size(np.geomspace(sigma_min, sigma_max, num_levels), langevin_steps)
    config = replace(
        defaults(),
        process=dict(name="ve", sigma_min=sigma_min, sigma_max=sigma_max),
        # The network ignores the label: technique 3 divides its output by sigma instead.
        parameterization=dict(name="score", label="log_sigma", scale_by_sigma=True),
        weighting=dict(name="sigma_squared"),
        times=dict(name="levels", num_levels=num_levels),
        solver=dict(name="annealed_langevin", step_size=step_size, num_steps=langevin_steps),
        sampling=dict(steps=num_levels, grid=dict(name="levels"), denoise=True),
    )
    return replace(config, **sections)


def digits() -> ConfigDict:
    return ncsnv2(
        sigma_min=0.04,
        sigma_max=8.0,
        num_levels=20,
        langevin_steps=5,
        network=dict(name="ncsnv2", ngf=16, depth="shallow"),
        **presets.digits(3000, batch_size=64),
    )


def paper(
    *, sigma_max: float, num_levels: int, langevin_steps: int, depth: str, num_steps: int, data: dict
) -> ConfigDict:
    """The paper's setting (appendix B), stated for data in [0, 1]: on [-1, 1] every sigma is twice as large."""
    return ncsnv2(
        sigma_min=2 * 0.01,
        sigma_max=2 * sigma_max,
        num_levels=num_levels,
        langevin_steps=langevin_steps,
        network=dict(name="ncsnv2", ngf=128, depth=depth),
        data=dict(split="train", eval_split="test", channels=3, flip=True, path="") | data,
        training=dict(num_steps=num_steps, batch_size=128, checkpoint_every=5000, sample_every=5000),
        optimizer=dict(name="adam", learning_rate=1e-4, clip_norm=0.0),
        ema=dict(rates=(0.999,), warmup=False),
        evaluation=dict(metrics=(), after_training=False),
    )


def cifar10() -> ConfigDict:
    return paper(
        sigma_max=50.0,
        num_levels=232,
        langevin_steps=5,
        depth="standard",
        num_steps=300_000,
        data=dict(name="cifar10", image_size=32),
    )


def celeba() -> ConfigDict:
    return paper(
        sigma_max=90.0,
        num_levels=500,
        langevin_steps=5,
        depth="standard",
        num_steps=210_000,
        data=dict(name="celeb_a", image_size=64, crop=140),
    )


def bedroom() -> ConfigDict:
    return paper(
        sigma_max=190.0,
        num_levels=1086,
        langevin_steps=3,
        depth="deeper",
        num_steps=150_000,
        data=dict(name="lsun/bedroom", image_size=128, eval_split="validation"),
    )


VARIANTS = {"digits": digits, "cifar10": cifar10, "celeba": celeba, "bedroom": bedroom}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
