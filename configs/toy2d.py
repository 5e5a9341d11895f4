"""Points in the plane: a mixture of eight Gaussians whose density and score are known, and other toy data.

    python -m diffusion_jax.main --config=configs/toy2d.py --workdir=runs/toy2d
    python -m diffusion_jax.main --config=configs/toy2d.py:two_moons --workdir=runs/two_moons

Training takes seconds. The pictures show the samples, the learned score at a small noise level and, for `mixture`, the
exact density. `two_moons`, `swiss_roll`, `checkerboard` and `rings` are other data. `ssm` trains on the mixture by
sliced score matching (arXiv:1905.07088) and `ism` by implicit score matching with the exact trace (Hyvarinen 2005);
neither uses the noise that was added.
"""

import functools

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def toy(kind: str) -> ConfigDict:
    return replace(
        defaults(),
        process=dict(name="vp"),
        # The toy data has about unit variance.
        parameterization=dict(name="edm", sigma_data=1.0),
        weighting=dict(name="edm", sigma_data=1.0),
        times=dict(name="low_discrepancy", t_min=1e-3),
        network=dict(name="mlp", hidden=128, num_layers=3),
        solver=dict(name="ddim"),
        data=dict(name="toy", split="train", eval_split="test", kind=kind),
        training=dict(num_steps=2000, batch_size=256, sample_every=0, log_every=100),
        optimizer=presets.adam(2e-3, warmup_steps=100),
        ema=dict(rates=(0.999,)),
        sampling=dict(num_samples=2000, batch_size=2000, steps=100, grid=dict(name="quadratic")),
        evaluation=dict(num_samples=2000, metrics=("toy",)),
    )


def score_matching(projections: int) -> ConfigDict:
    """Score matching of the noisy mixture. Its variance grows as the noise falls, so sigma ends at 0.05."""
    return replace(
        toy("gaussian_mixture"),
        process=dict(name="ve", sigma_min=0.05, sigma_max=5.0),
        times=dict(name="low_discrepancy", t_min=0.0),
        loss=dict(name="score_matching", projections=projections),
        sampling=dict(grid=dict(name="uniform", t_min=0.0), denoise=True),
    )


VARIANTS = {
    "mixture": functools.partial(toy, "gaussian_mixture"),
    "two_moons": functools.partial(toy, "two_moons"),
    "swiss_roll": functools.partial(toy, "swiss_roll"),
    "checkerboard": functools.partial(toy, "checkerboard"),
    "rings": functools.partial(toy, "rings"),
    "ssm": functools.partial(score_matching, projections=1),
    "ism": functools.partial(score_matching, projections=0),
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "mixture")()
