"""Published values of diffusion models of time series: CSDI, TimeGrad and TSDiff."""

from __future__ import annotations

from typing import Any

from benchmarks.published.entry import Published

CSDI = "CSDI (arXiv:2107.03502)"
TIMEGRAD = "TimeGrad (arXiv:2101.12072)"
TSDIFF = "TSDiff (arXiv:2307.11494)"
_CSDI_CODE = "ermongroup/CSDI"
_TIMEGRAD_CODE = "zalandoresearch/pytorch-ts"
_TSDIFF_CODE = "amazon-science/unconditional-time-series-diffusion"
_FORECASTS = "Splits are fractions of the steps, not the seven rolling windows of GluonTS's copy of the data."
_DIMENSIONS = {"electricity": (370, 24), "solar": (137, 24), "traffic": (963, 24), "exchange": (8, 30)}


def _csdi(batch_size: int) -> dict[str, Any]:
    """The values of config/base.yaml and config/base_forecasting.yaml, which differ in the batch size and the mask."""
    return {
        "network.channels": 64,
        "network.num_layers": 4,
        "network.num_heads": 8,
        "network.diffusion_dim": 128,
        "network.time_dim": 128,
        "network.feature_dim": 16,
        "process.betas": "scaled_linear",
        "process.beta_start": 1e-4,
        "process.beta_end": 0.5,
        "process.num_steps": 50,
        "sampling.steps": 50,
        "training.batch_size": batch_size,
        "optimizer.learning_rate": 1e-3,
    }


_CSDI_SHARED = {
    f"{_CSDI_CODE} diff_models.py:10": {"network.mlp_hidden": 64},
    f"{_CSDI_CODE} utils.py:16-24": {
        "optimizer.name": "adam",
        "optimizer.weight_decay": 1e-6,
        "optimizer.decay": "all",
        "optimizer.schedule": "multistep",
        "optimizer.final_factor": 0.1,
    },
}


def _csdi_forecast(name: str, dim: int, horizon: int) -> Published:
    history = 168 if horizon == 24 else 90
    sizes = {
        "data.length": history + horizon,
        "data.horizon": horizon,
        "system.horizon": horizon,
        "data.channels": dim,
    }
    published = name == "electricity"
    where = f"{_CSDI_CODE} dataset_forecasting.py:9-10 and exe_forecasting.py:29" if published else "arXiv:2107.03502"
    others = "Only the settings of electricity are in the authors' repository; the sizes are the paper's (appendix)."
    return Published(
        paper=CSDI,
        variants=(f"csdi:{name}",),
        values={
            f"{_CSDI_CODE} config/base_forecasting.yaml:5-25": _csdi(8),
            where: sizes,
            f"{_CSDI_CODE} exe_forecasting.py:19": {"sampling.samples_per_condition": 100},
            **_CSDI_SHARED,
        },
        differences=(
            _FORECASTS,
            "Every feature is in every step of training, with exact attention; the authors take 64 at random and "
            "approximate the attention for electricity, solar and traffic.",
            "The number of steps is rounded: the authors train for 100 epochs, 69,000 steps of electricity.",
            *(() if published else (others,)),
        ),
    )


def _timegrad(name: str, dim: int, horizon: int) -> Published:
    return Published(
        paper=TIMEGRAD,
        variants=(f"timegrad:{name}",),
        values={
            f"{_TIMEGRAD_CODE} pts/model/time_grad/time_grad_estimator.py:47-57": {
                "system.num_layers": 2,
                "system.cells": 40,
                "system.cell": "lstm",
                "system.scaling": "mean",
                "network.vector_dim": 100,
                "process.num_steps": 100,
                "process.beta_end": 0.1,
                "sampling.steps": 100,
                "sampling.samples_per_condition": 100,
            },
            f"{_TIMEGRAD_CODE} pts/modules/gaussian_diffusion.py:68": {
                "process.betas": "linear",
                "process.beta_start": 1e-4,
            },
            f"{_TIMEGRAD_CODE} pts/model/time_grad/epsilon_theta.py:88-92": {
                "network.time_dim": 16,
                "network.num_layers": 8,
                "network.channels": 8,
                "network.dilation_cycle": 2,
                "network.hidden": 64,
            },
            f"{_TIMEGRAD_CODE} pts/feature/lags.py:16-19": {"system.lags": (1, 24, 168) if horizon == 24 else (1, 2)},
            f"{_TIMEGRAD_CODE} examples/Time-Grad-Electricity.ipynb": {
                "training.batch_size": 64,
                "training.num_steps": 2000,
                "optimizer.learning_rate": 1e-3,
            },
            f"{_TIMEGRAD_CODE} pts/trainer.py:23-25": {
                "optimizer.name": "adam",
                "optimizer.weight_decay": 1e-6,
                "optimizer.decay": "all",
                "optimizer.clip_norm": 0.0,
            },
            "arXiv:2101.12072": {
                "data.channels": dim,
                "data.horizon": horizon,
                "system.horizon": horizon,
            },
        },
        differences=(
            _FORECASTS,
            "The encoder reads the lags alone, without dropout (the authors' is 0.1), not the time of day and an "
            "embedding of the dimension, and the embedding of the step is a sinusoidal one of the usual frequencies.",
            "The learning rate is constant, as in the paper; since January 2021 the authors' trainer ramps it up to "
            "0.01 and down again (OneCycleLR). Their notebook of electricity has GRUs.",
        ),
    )


def _tsdiff(name: str, horizon: int) -> Published:
    scale = {"electricity": 4.0, "solar": 8.0, "traffic": 4.0, "exchange": 8.0}[name]
    return Published(
        paper=TSDIFF,
        variants=(f"tsdiff:{name}",),
        values={
            f"{_TSDIFF_CODE} configs/train_tsdiff/train_{name}.yaml:3-15": {
                "system.scaling": "mean",
                "data.length": 360 if horizon == 24 else 390,
                "data.horizon": horizon,
                "optimizer.learning_rate": 1e-3,
                "optimizer.clip_norm": 0.5,
                "training.num_steps": 128_000,
                "training.batch_size": 64,
                "network.init_skip": name in ("traffic", "exchange"),
            },
            f"{_TSDIFF_CODE} configs/guidance/guidance_{name}.yaml:8-13": {
                "sampling.samples_per_condition": 100,
                "guidance.loss": "quantile",
                "guidance.scale": scale,
            },
            f"{_TSDIFF_CODE} src/uncond_ts_diff/configs.py:23-30 and 72-76": {
                "network.hidden": 64,
                "network.step_dim": 128,
                "network.num_layers": 3,
                "process.num_steps": 100,
            },
            f"{_TSDIFF_CODE} src/uncond_ts_diff/arch/backbones.py:37": {"network.state_dim": 128},
            f"{_TSDIFF_CODE} src/uncond_ts_diff/utils.py:71-74": {
                "process.betas": "linear",
                "process.beta_start": 1e-4,
                "process.beta_end": 0.1,
            },
            f"{_TSDIFF_CODE} src/uncond_ts_diff/model/diffusion/tsdiff.py:68": {"ema.rates": (0.0,)},
            "arXiv:2307.11494": {"data.univariate": True},
        },
        differences=(
            _FORECASTS,
            "Lagged values are no channels of x, the state-space layers are diagonal, and the quantile level of a "
            "sample is uniform instead of evenly spaced.",
            "The network does not read the logarithm of the scale.",
        ),
    )


TABLE: tuple[Published, ...] = (
    Published(
        paper=CSDI,
        variants=("csdi:physionet",),
        values={
            f"{_CSDI_CODE} config/base.yaml:5-26": {**_csdi(16), "system.targets": "random"},
            f"{_CSDI_CODE} exe_physio.py:16-22": {"system.missing": 0.1, "sampling.samples_per_condition": 100},
            f"{_CSDI_CODE} dataset_physio.py:74 and main_model.py:264": {"data.length": 48, "data.channels": 35},
            **_CSDI_SHARED,
        },
        differences=("Mean and variance are those of the training patients, not of all of them.",),
    ),
    *(_csdi_forecast(name, *sizes) for name, sizes in _DIMENSIONS.items()),
    *(_timegrad(name, *sizes) for name, sizes in _DIMENSIONS.items()),
    *(_tsdiff(name, horizon) for name, (_, horizon) in _DIMENSIONS.items()),
)
