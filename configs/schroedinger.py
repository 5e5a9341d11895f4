"""Schroedinger bridges between unpaired sets: diffusion Schroedinger bridge matching (DSBM, arXiv:2303.16852).

    python -m diffusion_jax.main --config=configs/schroedinger.py --workdir=runs/schroedinger
    python -m diffusion_jax.main --config=configs/schroedinger.py:digits_3_8 --workdir=runs/digits_3_8

Two networks learn the most likely way from one set to the other, given Brownian motion, and back; no pairs are needed.
Without a variant, two moons become eight Gaussians in the plane, in minutes on two CPU cores, by the online algorithm
(arXiv:2409.09347), whose first pairs are those of the bridge between Gaussians with the moments of the two sets.
`digits_3_8` makes threes of eights and, with --config.system.direction=forward, eights of threes.

`gaussian5`, `gaussian20` and `gaussian50` are the paper's benchmark, Gaussians in so many dimensions between which the
bridge is known, by iterations of IMF; `mnist_emnist` is its transfer between digits and the letters A to E.
"""

import functools
import math
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def dsbm(*, scale: float, steps: int, system: dict[str, Any], **sections: Any) -> ConfigDict:
    """The sections that all variants share: Brownian motion of standard deviation `scale`, in `steps` steps."""
    config = replace(
        defaults(),
        system=dict(name="schroedinger_bridge", inner_steps=steps, direction="backward", **system),
        process=dict(name="brownian_bridge", scale=scale),
        parameterization=dict(name="ddbm", label="time", sigma_data=1.0, sigma_end=1.0, covariance=0.0),
        times=dict(name="uniform", t_min=1e-3, t_max=0.999),
        solver=dict(name="bridge_posterior"),
        sampling=dict(steps=steps, grid=dict(name="uniform", t_min=0.0)),
    )
    return replace(config, **sections)


def toy() -> ConfigDict:
    """Two moons (x_1) and the mixture of eight Gaussians (x_0)."""
    plane = dict(name="toy", num_examples=65536)
    return dsbm(
        scale=0.5,
        steps=16,
        system=dict(coupling="gaussian", pretrain=800, refresh=0, rate=0.995),
        network=dict(name="mlp", hidden=64, num_layers=3),
        data=dict(
            name="unpaired",
            split="train",
            eval_split="test",
            x=dict(kind="gaussian_mixture", **plane),
            image=dict(kind="two_moons", **plane),
        ),
        training=dict(num_steps=2500, batch_size=256, log_every=100, sample_every=0),
        optimizer=presets.adam(2e-3, warmup_steps=100),
        ema=dict(rates=(0.999,)),
        sampling=dict(num_samples=2000, batch_size=2000),
        evaluation=dict(num_samples=2000, metrics=("transport",)),
    )


def digits_3_8() -> ConfigDict:
    one = dict(name="digits", image_size=8, channels=1)
    return dsbm(
        scale=0.5,
        steps=12,
        system=dict(coupling="independent", pretrain=1500, refresh=0, rate=0.995),
        parameterization=dict(name="ddbm", label="time", sigma_data=0.75, sigma_end=0.75, covariance=0.2),
        network=dict(name="mlp", hidden=128, num_layers=2),
        data=dict(
            name="unpaired", split="train", eval_split="test", x=dict(only=(3,), **one), image=dict(only=(8,), **one)
        ),
        **presets.digits(4000, batch_size=64, sample_every=0),
        sampling=dict(num_samples=50, batch_size=500),
        evaluation=dict(num_samples=50, metrics=("transport",)),
    )


def gaussian(dim: int) -> ConfigDict:
    """N(-0.1, I) and N(0.1, I) with the paper's numbers: 20 iterations of 10,000 steps for each direction."""
    return dsbm(
        scale=1.0,
        steps=20,
        system=dict(coupling="independent", pretrain=10_000, refresh=10_000, rate=0.0),
        network=dict(name="mlp", hidden=256, num_layers=2),
        data=dict(
            name="unpaired",
            split="train",
            eval_split="test",
            x=dict(name="gaussian", dim=dim, mean=-0.1),
            image=dict(name="gaussian", dim=dim, mean=0.1, seed=1),
        ),
        training=dict(num_steps=200_000, batch_size=128, checkpoint_every=10_000, sample_every=0),
        optimizer=dict(name="adam", learning_rate=1e-4, clip_norm=0.0),
        ema=dict(rates=(0.999,)),
        sampling=dict(num_samples=1000, batch_size=1000),
        evaluation=dict(metrics=(), after_training=False),
    )


def mnist_emnist() -> ConfigDict:
    """Digits and the letters A to E: Brownian motion of variance 30 x 0.034, 30 steps, 5000 steps per iteration."""
    one = dict(image_size=28, channels=1)
    return dsbm(
        scale=math.sqrt(30 * 0.034),
        steps=30,
        system=dict(coupling="independent", pretrain=100_000, refresh=5000, rate=0.999),
        network=dict(
            name="adm",
            model_channels=128,
            channel_mult=(0.5, 1, 1),
            num_res_blocks=2,
            attention_resolutions=(),
            num_heads=4,
            num_head_channels=None,
            resblock_updown=False,
            dropout=0.1,
        ),
        data=dict(
            name="unpaired",
            split="train",
            eval_split="test",
            x=dict(name="mnist", **one),
            image=dict(name="emnist/letters", only=(1, 2, 3, 4, 5), **one),
        ),
        training=dict(num_steps=350_000, batch_size=128, checkpoint_every=5000, sample_every=0),
        optimizer=dict(name="adam", learning_rate=1e-4, clip_norm=1.0),
        ema=dict(rates=(0.999,), warmup=False),
        sampling=dict(num_samples=100, batch_size=250),
        evaluation=dict(metrics=(), after_training=False),
    )


VARIANTS = {
    "moons": toy,
    "digits_3_8": digits_3_8,
    "gaussian5": functools.partial(gaussian, 5),
    "gaussian20": functools.partial(gaussian, 20),
    "gaussian50": functools.partial(gaussian, 50),
    "mnist_emnist": mnist_emnist,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "moons")()
