"""TSDiff: unconditional diffusion models of time series, guided by what is known when they are sampled.

arXiv:2307.11494.

    python -m diffusion_jax.main --config=configs/tsdiff.py --workdir=runs/tsdiff
    python -m diffusion_jax.main --config=configs/tsdiff.py:etth1 --workdir=runs/tsdiff_etth1 \\
        --config.data.path=ETTh1.csv
    python -m diffusion_jax.main --config=configs/tsdiff.py --workdir=runs/tsdiff --mode=sample \\
        --config.sampling.cond=prior

One model of windows forecasts and fills gaps without being trained for either: samples are drawn under known values
by observation self-guidance (docs/time_series.md). The last command draws unconditional samples. Without a variant it
is trained on the channels of an electroencephalogram that ships with matplotlib, `etth1` on those of ETTh1
(https://github.com/zhouhaoyi/ETDataset); each channel is a series of its own.

`electricity`, `solar`, `traffic` and `exchange` are the paper's settings; config.data.path is a .csv or .npz file of
the series, [steps, channels].
"""

import functools
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def tsdiff(data: dict[str, Any], horizon: int, scale: float = 4.0, **sections: Any) -> ConfigDict:
    """The sections that all variants share: 100 steps with linear betas from 1e-4 to 0.1, quantile self-guidance."""
    config = replace(
        defaults(),
        **presets.ddpm("linear", 100, beta_start=1e-4, beta_end=0.1),
        system=dict(name="series_diffusion", targets="forecast", horizon=horizon, missing=0.0, scaling="mean"),
        network=dict(name="tsdiff"),
        guidance=dict(name="observation", loss="quantile", scale=scale),
        data=data,
        solver=dict(name="ancestral"),
        sampling=dict(steps=100, samples_per_condition=100, batch_size=100, grid=dict(name="discrete")),
    )
    return replace(config, **sections)


def small(data: dict[str, Any], horizon: int, num_steps: int, scale: float = 4.0) -> ConfigDict:
    """A network of 0.04 M parameters."""
    config = tsdiff(
        data,
        horizon,
        scale,
        network=dict(name="tsdiff", hidden=32, num_layers=3, state_dim=32, step_dim=64),
        parameterization=dict(name="edm", sigma_data=1.0, label="index"),
        weighting=dict(name="edm", sigma_data=1.0),
        training=dict(num_steps=num_steps, batch_size=32, log_every=50, checkpoint_every=500, sample_every=0),
        optimizer=presets.adam(2e-3, warmup_steps=100),
        ema=dict(rates=(0.995,)),
        sampling=dict(steps=50, num_samples=96, samples_per_condition=16, batch_size=256),
        evaluation=dict(num_samples=512, samples_per_condition=16, metrics=("auto",)),
    )
    config.system.scaling = "standard"
    return config


def eeg() -> ConfigDict:
    """The channels of an electroencephalogram."""
    return small(presets.series(length=64, channels=4, horizon=16, univariate=True), 16, num_steps=1500)


def etth1() -> ConfigDict:
    """The loads and the temperature of a transformer, a day after four days."""
    ends = (8640, 11520, 14400)
    data = presets.series(length=120, channels=7, horizon=24, ends=ends, season=24, univariate=True)
    config = small(data, 24, num_steps=2000)
    config.evaluation.update(num_samples=6720, samples_per_condition=8, after_training=False, metrics=())
    return config


def paper(channels: int, horizon: int, season: int, scale: float, init_skip: bool) -> ConfigDict:
    """1000 epochs of 128 batches of 64 windows of 336 + 24 steps, or 360 + 30 days."""
    history = 336 if season else 360
    data = presets.series(
        length=history + horizon,
        channels=channels,
        horizon=horizon,
        season=season,
        univariate=True,
        standardize=False,
    )
    return tsdiff(
        data,
        horizon,
        scale,
        network=dict(name="tsdiff", hidden=64, num_layers=3, state_dim=128, step_dim=128, init_skip=init_skip),
        training=dict(num_steps=128_000, batch_size=64, checkpoint_every=6400, sample_every=0),
        optimizer=dict(name="adam", learning_rate=1e-3, clip_norm=0.5),
        ema=dict(rates=(0.0,), warmup=False),
        evaluation=dict(metrics=(), after_training=False),
    )


VARIANTS = {
    "eeg": eeg,
    "etth1": etth1,
    "electricity": functools.partial(paper, 370, 24, 24, 4.0, init_skip=False),
    "solar": functools.partial(paper, 137, 24, 24, 8.0, init_skip=False),
    "traffic": functools.partial(paper, 963, 24, 24, 4.0, init_skip=True),
    "exchange": functools.partial(paper, 8, 30, 0, 8.0, init_skip=True),
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "eeg")()
