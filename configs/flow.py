"""Flow matching on straight paths (rectified flow), velocity prediction (arXiv:2209.03003, arXiv:2210.02747).

    python -m diffusion_jax.main --config=configs/flow.py --workdir=runs/flow
    python -m diffusion_jax.main --config=configs/flow.py:cifar10 --workdir=runs/flow_cifar10

Without a variant, a small network is trained on the 8 x 8 digits of scikit-learn, in minutes on two CPU cores; `plane`
learns eight Gaussians in the plane in a minute.

`cifar10` is the first rectified flow of arXiv:2209.03003 with DDPM++, as its authors configured it. The paper reports
FID 2.58 with an adaptive solver that took 127 evaluations on average, as many as 64 steps of Heun's method here.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


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
        **presets.digits(8000),
        sampling=dict(steps=50, batch_size=500),
    )


def plane() -> ConfigDict:
    return flow(
        network=dict(name="mlp", hidden=64, num_layers=3, embedding="positional"),
        data=dict(name="toy", split="train", eval_split="test", kind="gaussian_mixture"),
        training=dict(num_steps=3000, batch_size=256, sample_every=0, log_every=100),
        optimizer=presets.adam(2e-3, warmup_steps=100),
        ema=dict(rates=(0.999,)),
        sampling=dict(num_samples=2000, batch_size=2000, steps=50),
        evaluation=dict(num_samples=2000, metrics=("toy",)),
    )


def cifar10() -> ConfigDict:
    return flow(
        network=dict(name="ncsnpp", fir=False, progressive_input="none", embedding="positional", dropout=0.15),
        **presets.cifar10(1_300_000, ema_rate=0.999999, ema_warmup=True, sample_every=50_000),
    )


VARIANTS = {"digits": digits, "plane": plane, "cifar10": cifar10}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
