"""Published values of diffusion models of time series: CSDI, TimeGrad and TSDiff."""

from __future__ import annotations

from benchmarks.published.entry import Published

CSDI = "CSDI (arXiv:2107.03502)"
TIMEGRAD = "TimeGrad (arXiv:2101.12072)"
TSDIFF = "TSDiff (arXiv:2307.11494)"
_CSDI_NETWORK = {
    "network.channels": 64,
    "network.num_layers": 4,
    "network.num_heads": 8,
    "network.mlp_hidden": 64,
    "network.diffusion_dim": 128,
    "network.time_dim": 128,
    "network.feature_dim": 16,
    "process.betas": "scaled_linear",
    "process.beta_start": 1e-4,
    "process.beta_end": 0.5,
    "process.num_steps": 50,
    "sampling.steps": 50,
    "optimizer.learning_rate": 1e-3,
}
_FORECASTS = "Splits are fractions of the steps, not the seven rolling windows of GluonTS's copy of the data."
_DIMENSIONS = {"electricity": (370, 24), "solar": (137, 24), "traffic": (963, 24), "exchange": (8, 30)}

TABLE: tuple[Published, ...] = (
    Published(
        paper=CSDI,
        variants=("csdi:physionet",),
        values={
            "ermongroup/CSDI config/base.yaml": {
                **_CSDI_NETWORK,
                "training.batch_size": 16,
                "system.targets": "random",
                "system.missing": 0.1,
            },
            "arXiv:2107.03502": {"data.length": 48, "data.channels": 35, "sampling.samples_per_condition": 100},
        },
        differences=(
            "Mean and variance are those of the training patients, not of all of them.",
            "The learning rate is constant; the authors divide it by 10 after 75 % and 90 % of 200 epochs.",
        ),
    ),
    *(
        Published(
            paper=CSDI,
            variants=(f"csdi:{name}",),
            values={
                "ermongroup/CSDI config/base_forecasting.yaml": {
                    **_CSDI_NETWORK,
                    "training.batch_size": 8,
                    "data.length": 168 + horizon if horizon == 24 else 90 + horizon,
                    "data.channels": dim,
                    "data.horizon": horizon,
                    "system.horizon": horizon,
                    "sampling.samples_per_condition": 100,
                },
            },
            differences=(
                _FORECASTS,
                "Every feature is in every step of training, with exact attention; the authors take 64 at random and "
                "approximate the attention for electricity, solar and traffic.",
            ),
        )
        for name, (dim, horizon) in _DIMENSIONS.items()
    ),
    *(
        Published(
            paper=TIMEGRAD,
            variants=(f"timegrad:{name}",),
            values={
                "arXiv:2101.12072": {
                    "process.num_steps": 100,
                    "process.beta_start": 1e-4,
                    "process.beta_end": 0.1,
                    "sampling.steps": 100,
                    "training.batch_size": 64,
                    "training.num_steps": 2000,
                    "optimizer.learning_rate": 1e-3,
                    "sampling.samples_per_condition": 100,
                    "data.channels": dim,
                    "data.horizon": horizon,
                    "system.horizon": horizon,
                },
                "zalandoresearch/pytorch-ts pts/model/time_grad/time_grad_network.py": {
                    "network.channels": 8,
                    "network.num_layers": 8,
                    "network.dilation_cycle": 2,
                    "network.vector_dim": 100,
                    "system.cells": 40,
                    "system.num_layers": 2,
                    "system.scaling": "mean",
                },
            },
            differences=(
                _FORECASTS,
                "The encoder reads the lags alone, not the time of day and an embedding of the dimension, and the "
                "embedding of the step is a sinusoidal one of the usual frequencies.",
            ),
        )
        for name, (dim, horizon) in _DIMENSIONS.items()
    ),
    *(
        Published(
            paper=TSDIFF,
            variants=(f"tsdiff:{name}",),
            values={
                "arXiv:2307.11494": {
                    "process.num_steps": 100,
                    "process.beta_start": 1e-4,
                    "process.beta_end": 0.1,
                    "network.hidden": 64,
                    "network.num_layers": 3,
                    "training.batch_size": 64,
                    "training.num_steps": 128_000,
                    "optimizer.learning_rate": 1e-3,
                    "guidance.loss": "quantile",
                    "data.horizon": horizon,
                    "data.univariate": True,
                    "system.scaling": "mean",
                    **({"guidance.scale": 8.0} if name == "solar" else {}),
                },
            },
            differences=(
                _FORECASTS,
                "Lagged values are no channels of x, the state-space layers are diagonal, and the quantile level of a "
                "sample is uniform instead of evenly spaced.",
                "Scales of guidance other than that of solar were not confirmed.",
            ),
        )
        for name, (_, horizon) in _DIMENSIONS.items()
    ),
)
