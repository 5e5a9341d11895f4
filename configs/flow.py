"""Flow matching on straight paths (rectified flow), velocity prediction (arXiv:2209.03003, arXiv:2210.02747).

    python -m diffusion_jax.main --config=configs/flow.py --workdir=runs/flow
    python -m diffusion_jax.main --config=configs/flow.py:cifar10 --workdir=runs/flow_cifar10

Without a variant, a small network is trained on the 8 x 8 digits of scikit-learn, in minutes on two CPU cores.

`cifar10` is the first rectified flow of arXiv:2209.03003 with DDPM++, as its authors configured it. The paper reports
FID 2.58 with an adaptive solver that took 127 evaluations on average, as many as 64 steps of Heun's method here.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, replace


def flow(**sections: Any) -> ConfigDict:
    """The sections that all variants share. Training times start above 0, where the velocity does not determine x_0."""
    config = replace(
        defaults(),
        process=dict(name="rectified_flow"),
        parameterization=dict(name="velocity", label="time"),
        weighting=dict(name="velocity_matching"),
        times=dict(name="uniform", t_min=1e-3),
        solver=dict(name="heun"),
        sampling=dict(steps=64, grid=dict(name="uniform", t_min=0.0)),
    )
    return replace(config, **sections)


def digits() -> ConfigDict:
    return flow(
        network=dict(name="mlp", hidden=512, num_layers=4, embedding="positional"),
        training=dict(num_steps=8000, batch_size=128, log_every=100),
        optimizer=dict(name="adam", learning_rate=1e-3, schedule="cosine", warmup_steps=200, clip_norm=1.0),
        ema=dict(rates=(0.999,)),
        sampling=dict(steps=50, batch_size=500),
    )


def cifar10() -> ConfigDict:
    return flow(
        network=dict(name="ncsnpp", fir=False, progressive_input="none", embedding="positional", dropout=0.15),
        data=dict(name="cifar10", split="train", eval_split="test", image_size=32, channels=3, flip=True, path=""),
        training=dict(num_steps=1_300_000, batch_size=128, checkpoint_every=10_000, sample_every=50_000),
        optimizer=dict(name="adam", learning_rate=2e-4, warmup_steps=5000, clip_norm=1.0),
        ema=dict(rates=(0.999999,)),
        evaluation=dict(metrics=(), after_training=False),
    )


VARIANTS = {"digits": digits, "cifar10": cifar10}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
