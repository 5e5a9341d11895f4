"""TimeGrad: autoregressive forecasts of multivariate time series (arXiv:2101.12072).

    python -m diffusion_jax.main --config=configs/timegrad.py --workdir=runs/timegrad
    python -m diffusion_jax.main --config=configs/timegrad.py:etth1 --workdir=runs/timegrad_etth1 \\
        --config.data.path=ETTh1.csv

Without a variant it forecasts four channels of an electroencephalogram that ships with matplotlib, `etth1` 24 hours of
the seven channels of ETTh1 (https://github.com/zhouhaoyi/ETDataset). evaluation.json has the CRPS, of the sum over
channels too, next to that of simple forecasts (docs/time_series.md).

`electricity`, `solar`, `traffic` and `exchange` are the paper's settings; config.data.path is a .csv or .npz file of
the series, [steps, channels].
"""

import functools
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace

HOURLY, WEEKDAYS = (1, 24, 168), (1, 2)  # lags


def timegrad(data: dict[str, Any], *, horizon: int, lags: tuple[int, ...], **sections: Any) -> ConfigDict:
    """The sections that all variants share: 100 steps with linear betas from 1e-4 to 0.1, an LSTM of 40 cells."""
    config = replace(
        defaults(),
        **presets.ddpm("linear", 100, beta_start=1e-4, beta_end=0.1),
        system=dict(name="timegrad", horizon=horizon, lags=lags, cell="lstm", cells=40, num_layers=2, scaling="mean"),
        network=dict(name="timegrad", vector_dim=100),
        data=data,
        solver=dict(name="ancestral"),
        sampling=dict(steps=100, samples_per_condition=100, batch_size=100, grid=dict(name="discrete")),
    )
    return replace(config, **sections)


def small(data: dict[str, Any], *, horizon: int, lags: tuple[int, ...], num_steps: int) -> ConfigDict:
    """GRUs of 64 cells, and each step of a series in 16 steps of the sampler."""
    return timegrad(
        data,
        horizon=horizon,
        lags=lags,
        system=dict(name="timegrad", horizon=horizon, lags=lags, cell="gru", cells=64, num_layers=1, scaling="last"),
        network=dict(name="timegrad", vector_dim=64, channels=16, num_layers=4, cond_hidden=64),
        parameterization=dict(name="edm", sigma_data=1.0, label="index"),
        weighting=dict(name="edm", sigma_data=1.0),
        training=dict(num_steps=num_steps, batch_size=16, log_every=50, checkpoint_every=500, sample_every=0),
        optimizer=presets.adam(2e-3, warmup_steps=100),
        ema=dict(rates=(0.995,)),
        **presets.paths(batch_size=512),
    )


def eeg() -> ConfigDict:
    """The next 16 steps of an electroencephalogram."""
    data = presets.series(length=64, channels=4, horizon=16)
    return small(data, horizon=16, lags=(1, 2, 4, 8), num_steps=1000)


def etth1() -> ConfigDict:
    """A day of the transformer's load and temperature."""
    data = presets.series(length=120, channels=7, horizon=24, ends=(8640, 11520, 14400), season=24)
    config = small(data, horizon=24, lags=(1, 2, 3, 24, 25, 48), num_steps=1000)
    config.evaluation.update(num_samples=1920, after_training=False, metrics=())
    return config


def paper(channels: int, *, horizon: int, lags: tuple[int, ...], season: int) -> ConfigDict:
    """20 epochs of 100 batches of 64 windows, whose history is as long as the horizon, after the lags."""
    data = presets.series(
        length=max(lags) + 2 * horizon,
        channels=channels,
        horizon=horizon,
        season=season,
        standardize=False,
    )
    return timegrad(
        data,
        horizon=horizon,
        lags=lags,
        training=dict(num_steps=2000, batch_size=64, checkpoint_every=500, sample_every=0),
        optimizer=dict(name="adam", learning_rate=1e-3, weight_decay=1e-6, decay="all"),
        ema=dict(rates=(0.0,), warmup=False),
        evaluation=dict(num_samples=700, samples_per_condition=100, metrics=(), after_training=False),
    )


VARIANTS = {
    "eeg": eeg,
    "etth1": etth1,
    "electricity": functools.partial(paper, 370, horizon=24, lags=HOURLY, season=24),
    "solar": functools.partial(paper, 137, horizon=24, lags=HOURLY, season=24),
    "traffic": functools.partial(paper, 963, horizon=24, lags=HOURLY, season=24),
    "exchange": functools.partial(paper, 8, horizon=30, lags=WEEKDAYS, season=0),
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "eeg")()
