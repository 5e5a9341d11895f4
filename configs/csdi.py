"""CSDI: imputation and forecasting of time series (arXiv:2107.03502).

    python -m diffusion_jax.main --config=configs/csdi.py --workdir=runs/csdi
    python -m diffusion_jax.main --config=configs/csdi.py:etth1 --workdir=runs/etth1 --config.data.path=ETTh1.csv
    python -m diffusion_jax.main --config=configs/csdi.py:etth1_imputation --workdir=runs/etth1_imputation \\
        --config.data.path=ETTh1.csv

Without a variant it fills gaps in four channels of an electroencephalogram that ships with matplotlib. `etth1`
forecasts 24 hours of the seven channels of ETTh1 (https://github.com/zhouhaoyi/ETDataset), `etth1_imputation` fills
gaps in windows of 48 hours. Pictures of samples are fan charts, and evaluation.json has the CRPS next to that of simple
forecasts and of linear interpolation (docs/time_series.md).

`physionet` is the paper's setting of 35 measurements in 48 hours of intensive care, of which a tenth is hidden; for
half and nine tenths set --config.system.missing. config.data.path is an .npz file with x [patients, 48, 35], NaN where
nothing was measured. `electricity`, `solar`, `traffic` and `exchange` are its settings of forecasting; config.data.path
is a .csv or .npz file of the series, [steps, channels].
"""

import functools
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def csdi(num_steps: int = 50, **sections: Any) -> ConfigDict:
    """The sections that all variants share: the quadratic betas from 1e-4 to 0.5, and ancestral sampling."""
    betas = dict(betas="scaled_linear", num_steps=num_steps, beta_start=1e-4, beta_end=0.5)
    config = replace(
        defaults(),
        **presets.ddpm(**betas),
        network=dict(name="csdi"),
        solver=dict(name="ancestral"),
        sampling=dict(steps=num_steps, grid=dict(name="discrete")),
    )
    return replace(config, **sections)


def small(data: dict[str, Any], num_steps: int = 1800, sigma_data: float = 1.0, **sections: Any) -> ConfigDict:
    """A network of 0.05 M parameters, sampled in 16 steps.

    With EDM's preconditioning it learns faster than with the paper's eps-prediction, whose errors are divided by
    alpha = 0.006 at the noisiest step.
    """
    config = csdi(
        parameterization=dict(name="edm", sigma_data=sigma_data, label="index"),
        weighting=dict(name="edm", sigma_data=sigma_data),
        network=dict(name="csdi", channels=32, num_layers=2, num_heads=4, diffusion_dim=64, time_dim=64, dropout=0.0),
        data=data,
        training=dict(num_steps=num_steps, batch_size=16, log_every=50, checkpoint_every=500, sample_every=0),
        optimizer=presets.adam(2e-3, warmup_steps=100),
        ema=dict(rates=(0.995,)),
        **presets.paths(batch_size=128),
    )
    return replace(config, **sections)


def eeg() -> ConfigDict:
    """Imputation of a fifth of the values of an electroencephalogram."""
    return small(
        presets.series(length=48, channels=4, stride=16),
        num_steps=1000,
        system=dict(name="series_diffusion", targets="random", missing=0.2, horizon=0, scaling="none"),
    )


def etth1() -> ConfigDict:
    """A day of the transformer's load and temperature, from four days before it."""
    return small(
        presets.series(length=120, channels=7, horizon=24, ends=(8640, 11520, 14400), season=24),
        system=dict(name="series_diffusion", targets="forecast", horizon=24, missing=0.0, scaling="last"),
        evaluation=dict(num_samples=1920, after_training=False, metrics=()),
    )


def etth1_imputation() -> ConfigDict:
    """Gaps in two days: a tenth of the values, or as many as config.system.missing says.

    x_0 is what linear interpolation leaves, whose standard deviation is about 0.4.
    """
    return small(
        presets.series(length=48, channels=7, ends=(8640, 11520, 14400), season=24),
        sigma_data=0.4,
        system=dict(
            name="series_diffusion",
            targets="random",
            missing=0.1,
            horizon=0,
            scaling="none",
            reference="interpolation",
        ),
        evaluation=dict(num_samples=960, after_training=False, metrics=()),
    )


def paper(data: dict[str, Any], batch_size: int, num_steps: int, **system: Any) -> ConfigDict:
    """The authors' training: eps-prediction, Adam at 1e-3, at a tenth of it after three quarters of the steps and at a
    hundredth after nine tenths, 100 samples of each window."""
    stages = tuple(int(share * num_steps) for share in (0.75, 0.15, 0.1))
    schedule = dict(schedule="multistep", final_factor=0.1, stages=stages)
    return csdi(
        system=dict(name="series_diffusion", scaling="none", **system),
        data=data,
        training=dict(num_steps=num_steps, batch_size=batch_size, checkpoint_every=5000, sample_every=0),
        optimizer=dict(name="adam", learning_rate=1e-3, weight_decay=1e-6, decay="all", **schedule),
        ema=dict(rates=(0.0,), warmup=False),
        sampling=dict(samples_per_condition=100, batch_size=100),
        evaluation=dict(metrics=(), after_training=False),
    )


def physionet() -> ConfigDict:
    """200 epochs of 2,800 patients."""
    data = presets.series(length=48, channels=35, ends=(0.7, 0.8, 1.0))
    return paper(data, batch_size=16, num_steps=35_000, targets="random", missing=0.1, horizon=0)


def forecast(channels: int, history: int, horizon: int) -> ConfigDict:
    """100 samples of the last `horizon` steps, given the `history`."""
    data = presets.series(
        length=history + horizon,
        channels=channels,
        horizon=horizon,
        season=24 if horizon == 24 else 0,
    )
    config = paper(data, batch_size=8, num_steps=80_000, targets="forecast", missing=0.0, horizon=horizon)
    config.network.remat = True
    return config


VARIANTS = {
    "eeg": eeg,
    "etth1": etth1,
    "etth1_imputation": etth1_imputation,
    "physionet": physionet,
    "electricity": functools.partial(forecast, 370, 168, 24),
    "solar": functools.partial(forecast, 137, 168, 24),
    "traffic": functools.partial(forecast, 963, 168, 24),
    "exchange": functools.partial(forecast, 8, 90, 30),
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "eeg")()
