"""Time series: drawn as fan charts, scored as forecasts or imputations of held-out windows."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from diffusion_jax import data
from diffusion_jax.evaluation import fan_charts, forecasts
from diffusion_jax.guidance.observation import interpolation
from diffusion_jax.modalities.base import Drawn, Evaluation, Metric, Modality, Views, Words, held_out, need

_SHOWN = 6  # windows in a picture


def picture(drawn: Drawn, words: Words, views: Views) -> UInt8[np.ndarray, "height width 3"] | None:
    """Fan charts of the first windows with their known values, and the true ones where these are given.

    Samples with the same known values are one fan; without any, all samples are drawn as lines. None for samples that
    are not finite.
    """
    samples = np.asarray(drawn["samples"])
    if not np.isfinite(samples).all():
        return None
    if "known" not in drawn:
        return fan_charts.lines(samples[:_SHOWN])
    known = np.asarray(drawn["known"])
    groups = _groups(known)[:_SHOWN]
    truth = np.asarray(drawn["original"]) if "original" in drawn else np.full(samples.shape, np.nan)
    return fan_charts.fans([samples[g] for g in groups], [known[g[0]] for g in groups], [truth[g[0]] for g in groups])


def _groups(known: Float[np.ndarray, "n length channels"]) -> list[np.ndarray]:
    """The rows with the same known values, in the order of their first."""
    rows: dict[bytes, list[int]] = {}
    for i, row in enumerate(known):
        rows.setdefault(row.tobytes(), []).append(i)
    return [np.array(group) for group in rows.values()]


def _forecast(evaluation: Evaluation) -> Metric:
    """Scores of samples of the hidden values of held-out windows, see `evaluation.forecasts`, in units of the model.

    With config.evaluation.samples_per_condition samples of each window. Baselines have the same names with a prefix:
    `naive_` is the seasonal naive forecast, `ridge_` a ridge regression on the history, both with normal errors of the
    width of the residuals of the training split, and `interpolation_` linear interpolation of gaps.
    """
    need(evaluation, "series", "series")
    condition = evaluation.conditions.get("known")
    if condition is None:
        raise ValueError("it needs samples under known values, such as those of config.network.name='csdi'")
    train = evaluation.train

    def metric(drawn: Drawn) -> dict[str, Any]:
        groups = _groups(np.asarray(drawn["known"]))
        known = np.stack([drawn["known"][group[0]] for group in groups])
        each = min(map(len, groups))
        paths = np.stack([drawn["samples"][group[:each]] for group in groups], axis=1).astype(np.float64)
        windows = data.shuffled(held_out(evaluation), len(groups))["x"]
        order = {row.tobytes(): i for i, row in enumerate(condition.operator.measure(windows))}
        places = [order.get(row.tobytes()) for row in known]
        if None in places:
            raise ValueError("the hidden values are not those of held-out windows: leave config.sampling.cond empty")
        truth, horizon = windows[places], condition.operator.horizon
        found = of_horizon(train, truth, known, horizon) if horizon else of_gaps(truth, known)
        return {**scores(paths, truth, known, horizon, train.facts["season"]), **found}

    return metric


def scores(
    paths: Float[np.ndarray, "m n length channels"],
    truth: Float[np.ndarray, "n length channels"],
    known: Float[np.ndarray, "n length channels"],
    horizon: int,
    season: int,
) -> dict[str, Any]:
    """Scores of m samples of the values of n windows that `known` hides."""
    where = np.isfinite(truth) & ~np.isfinite(known)
    y = np.where(where, truth, 0)
    each = forecasts.crps(paths, y)
    median, mean = np.median(paths, 0), paths.mean(0)
    rows = np.where(where, each, 0).sum((1, 2)) / np.maximum(where.sum((1, 2)), 1)
    values = {
        "num_windows": len(truth),
        "samples_per_window": len(paths),
        "crps": float(each[where].mean()),
        "crps_standard_error": float(rows.std(ddof=1) / np.sqrt(len(rows))) if len(rows) > 1 else 0.0,
        "mae_median": float(np.abs(median - y)[where].mean()),
        "rmse_mean": float(np.sqrt(np.square(mean - y)[where].mean())),
        "nd": forecasts.nd(median, truth, where),
        "nrmse": forecasts.nrmse(mean, truth, where),
        "quantile_crps_19": forecasts.quantile_crps(paths, truth, where, forecasts.NINETEEN),
        "quantile_crps_9": forecasts.quantile_crps(paths, truth, where, forecasts.NINE),
        "coverage_90": forecasts.coverage(paths, truth, where, 0.9),
        "coverage_50": forecasts.coverage(paths, truth, where, 0.5),
    }
    if horizon:
        future, past = np.s_[:, -horizon:], np.s_[:, :-horizon]
        whole = where[future].all((1, 2))
        values["mase"] = forecasts.mase(median[future], np.where(where, truth, np.nan)[future], truth[past], season)
        if truth.shape[2] > 1:
            values["crps_sum_19"] = forecasts.crps_sum(paths[:, :, -horizon:], truth[future], where[future])
        if whole.any():
            flat = lambda x: x.reshape(*x.shape[:-2], -1)  # noqa: E731
            energy = forecasts.energy_score(flat(paths[:, whole, -horizon:]), flat(truth[whole, -horizon:]))
            values["energy_score"] = float(energy.mean())
    return values


def of_horizon(
    train: data.Source, truth: Float[np.ndarray, "n length c"], known: Float[np.ndarray, "n length c"], horizon: int
) -> dict[str, float]:
    """CRPS of the seasonal naive and the ridge forecast; nothing for a history with gaps, or too short for them."""
    season, past = train.facts["season"], known[:, :-horizon]
    windows = data.arrays(train)["x"]
    if train.facts["channels_of_window"] > 1:  # one regression for all channels
        windows = windows[:: max(len(windows) // 20_000, 1)]
    values, where = {}, np.isfinite(truth[:, -horizon:])
    if not np.isfinite(past).all() or not np.isfinite(windows).all():
        return values
    y, target = truth[:, -horizon:], windows[:, -horizon:]

    def add(name: str, forecast: np.ndarray, residual: np.ndarray) -> None:
        width = np.broadcast_to(np.maximum(residual.std(0), 1e-6), y.shape)
        values[f"{name}_crps"] = float(forecasts.gaussian_crps(forecast, width, y)[where].mean())
        values[f"{name}_mae"] = float(np.abs(forecast - y)[where].mean())

    if season and past.shape[1] >= season:
        fitted = forecasts.seasonal_naive(windows[:, :-horizon], horizon, season)
        add("naive", forecasts.seasonal_naive(past, horizon, season), target - fitted)
    weights = forecasts.ridge(windows, horizon)
    add(
        "ridge",
        forecasts.ridge_forecast(weights, past),
        target - forecasts.ridge_forecast(weights, windows[:, :-horizon]),
    )
    return values


def of_gaps(truth: Float[np.ndarray, "n length c"], known: Float[np.ndarray, "n length c"]) -> dict[str, float]:
    """The mean absolute error, which is the CRPS of a point, of linear interpolation in time."""
    where = np.isfinite(truth) & ~np.isfinite(known)
    error = (np.asarray(interpolation(known)) - truth)[where]
    return {
        "interpolation_crps": float(np.abs(error).mean()),
        "interpolation_rmse": float(np.sqrt(np.square(error).mean())),
    }


SERIES = Modality(picture=picture, shown=0, metrics={"forecast": _forecast}, usual=("forecast",))
