"""A config file that trains in a second: a small MLP on points in the plane."""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, replace


def toy(**sections: Any) -> ConfigDict:
    config = replace(
        defaults(),
        parameterization=dict(name="eps", label="log_sigma"),
        times=dict(name="low_discrepancy", t_min=1e-3),
        network=dict(name="mlp", hidden=16, num_layers=1),
        solver=dict(name="ddim"),
        data=dict(name="toy", split="train", eval_split="test", kind="gaussian_mixture", num_examples=256),
        training=dict(num_steps=4, batch_size=16, log_every=1, checkpoint_every=2, sample_every=0),
        optimizer=dict(name="adam", learning_rate=2e-3, schedule="cosine", warmup_steps=100, clip_norm=1.0),
        ema=dict(rates=(0.999,)),
        sampling=dict(num_samples=6, batch_size=6, steps=4, grid=dict(name="quadratic")),
        evaluation=dict(num_samples=32, metrics=("toy",), after_training=False),
    )
    return replace(config, **sections)


def get_config(variant: str | None = None) -> ConfigDict:
    variants = {"points": {}, "eta": dict(solver=dict(name="ddim", eta=0.5))}
    return toy(**choose(variant, variants, "points"))
