"""Figures of time series: forecasts and imputations of held-out windows, next to simple ones.

    python -m benchmarks.forecasting runs/etth1 runs/timegrad_etth1 runs/tsdiff_etth1 --picture build/fans.png
    python -m benchmarks.forecasting runs/etth1_imputation --missing 0.1 --missing 0.5

Prints for each run the fair CRPS with its standard error over windows, the CRPS by 19 quantile levels and of the sum
over channels as GluonTS defines them, errors of median and mean, and the coverage of 90 % intervals; and first of all,
for the same windows, the CRPS of the seasonal naive forecast and of a ridge regression, with normal errors as wide as
on the training split, or of linear interpolation. Series are in units of the standard deviations of the training split.
Runs of several seeds are several folders, whose mean and standard deviation are printed last.
"""

import argparse
import ast
import pathlib

import jax
import numpy as np

import diffusion_jax
from diffusion_jax import data
from diffusion_jax.evaluation import fan_charts
from diffusion_jax.modalities import series
from diffusion_jax.run.pretrained import Pretrained

COLUMNS = ("crps", "crps_standard_error", "quantile_crps_19", "crps_sum_19", "mae_median", "rmse_mean", "coverage_90")
CHANNELS = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")  # of ETTh1


def drawn(model: Pretrained, windows: int, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(paths [samples, windows, length, channels], truth, known values) of held-out windows."""
    truth = data.shuffled(model.job.held_out, windows)["x"]
    known = model.system.conditions["known"].operator.measure(truth)
    rows = np.repeat(known, samples, axis=0)
    x = model.sample(jax.random.key(seed), len(rows), {"known": rows})
    return np.asarray(x, np.float64).reshape(len(truth), samples, *truth.shape[1:]).swapaxes(0, 1), truth, known


def baselines(model: Pretrained, truth: np.ndarray, known: np.ndarray) -> dict[str, float]:
    """CRPS and mean absolute error of simple forecasts or of linear interpolation."""
    horizon = model.system.conditions["known"].operator.horizon
    return series.of_horizon(model.job.source, truth, known, horizon) if horizon else series.of_gaps(truth, known)


def row(name: str, values: dict[str, float]) -> None:
    print(f"{name:34}" + "".join(f"{values.get(column, np.nan):10.4f}" for column in COLUMNS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", help="work directories")
    parser.add_argument("--missing", type=float, action="append", help="fraction that is hidden, for imputation")
    parser.add_argument("--windows", type=int, default=120)
    parser.add_argument("--samples", type=int, default=16, help="of each window")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--changes", nargs="*", default=[], help="such as guidance.scale=1.0")
    parser.add_argument("--picture", default="", help="a fan chart of the first run")
    options = parser.parse_args()
    split = [change.split("=", 1) for change in options.changes]
    changes = {key: ast.literal_eval(value) for key, value in split}
    for missing in options.missing or [None]:
        print(f"{'' if missing is None else f'{missing:.0%} missing':34}" + "".join(f"{c[-9:]:>10}" for c in COLUMNS))
        found = []
        for run in options.runs:
            hidden = {} if missing is None else {"system.missing": missing}
            model = diffusion_jax.load(run, changes={**changes, **hidden})
            paths, truth, known = drawn(model, options.windows, options.samples, options.seed)
            simple = baselines(model, truth, known)
            for name in dict.fromkeys(key.partition("_")[0] for key in simple):
                own = {key.removeprefix(f"{name}_"): value for key, value in simple.items() if key.startswith(name)}
                row(f"  {name}", {**own, "mae_median": own.get("mae", np.nan), "rmse_mean": own.get("rmse", np.nan)})
            operator = model.system.conditions["known"].operator
            season = model.job.source.facts["season"]
            found.append(series.scores(paths, truth, known, operator.horizon, season))
            row(f"{pathlib.Path(run).name} (step {model.step})", found[-1])
            if options.picture and len(found) == 1:
                last = np.s_[..., -3:]
                names = CHANNELS[last[1]] if truth.shape[2] == len(CHANNELS) else ()
                shown = range(min(4, len(truth)))
                picture = [
                    [part[last] for part in parts] for parts in ([paths[:, i] for i in shown], known[:4], truth[:4])
                ]
                fan_charts.fans(*picture, names=names, path=options.picture)
        if len(found) > 1:
            values = np.array([[scores.get(column, np.nan) for column in COLUMNS] for scores in found])
            row("mean of the runs", dict(zip(COLUMNS, values.mean(0), strict=True)))
            row("standard deviation", dict(zip(COLUMNS, values.std(0, ddof=1), strict=True)))


if __name__ == "__main__":
    main()
