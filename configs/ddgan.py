"""x

    python -m diffusion_jax.main --config=configs/ddgan.py --workdir=runs/ddgan
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def ddgan(*, steps: int, system: dict[str, Any], **sections: Any) -> ConfigDict:
    config = replace(
        defaults(),
        system=dict(name="ddgan", loss="non_saturating", r2=0.0, **system),
        process=dict(name="discrete_vp", betas="vp", num_steps=steps),
        parameterization=dict(name="x0", label="index"),
        sampling=dict(steps=steps, batch_size=500),
    )
    return replace(config, **sections)


def digits() -> ConfigDict:
    return ddgan(
        steps=4,
        system=dict(r1=0.05, every=1, tanh=True, discriminator=dict(name="mlp", hidden=256, num_layers=3)),
        parameterization=dict(name="x0", label="unit_time"),
        network=dict(name="mlp", hidden=256, num_layers=3, vector_dim=32),
        training=dict(num_steps=10_000, batch_size=128, log_every=100, sample_every=2000),
        optimizer=dict(name="adam", learning_rate=2e-4, b1=0.5, b2=0.9, clip_norm=0.0),
        ema=dict(rates=(0.999,)),
    )


VARIANTS = {
    "digits": digits,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
