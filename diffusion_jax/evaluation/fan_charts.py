"""Fan charts: quantiles of samples of a series over time, with known and true values."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from diffusion_jax.evaluation import sheets

_CHANNELS = 3  # of a window that are drawn, at most
_BANDS = ((0.05, 0.95), (0.25, 0.75))
_SIZE = (3.6, 2.1)  # of one chart in inches
Series = Float[np.ndarray, "length channels"]


def fans(
    samples: Sequence[Float[np.ndarray, "m length channels"]],
    known: Sequence[Series],
    truth: Sequence[Series],
    *,
    names: Sequence[str] = (),
    path: str | os.PathLike | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """A chart for each window (columns) and each of the first channels (rows): median, 50 % and 90 % of its samples.

    Known values are black, true ones that were hidden are orange; NaN is not drawn. Bands are drawn where a value was
    hidden. `names` are those of the channels.
    """
    channels = min(samples[0].shape[2], _CHANNELS)
    figure, axes = _figure(channels, len(samples))
    for column, (paths, given, real) in enumerate(zip(samples, known, truth, strict=True)):
        steps = np.arange(paths.shape[1])
        for row in range(channels):
            ax, hidden = axes[row, column], ~np.isfinite(given[:, row])
            # A band reaches to the known value before and after a gap.
            near = hidden | np.append(hidden[1:], False) | np.append(False, hidden[:-1])
            for i, band in enumerate(_BANDS):
                low, high = np.quantile(paths[:, :, row], band, axis=0)
                ax.fill_between(steps, low, high, where=near, color="tab:blue", alpha=0.2 + 0.2 * i, linewidth=0)
            median = np.where(near, np.median(paths[:, :, row], axis=0), np.nan)
            ax.plot(steps, median, color="tab:blue", linewidth=1.2, label="median, 50 %, 90 %")
            ax.plot(steps, np.where(near, real[:, row], np.nan), color="tab:orange", linewidth=1.0, label="true")
            ax.plot(steps, given[:, row], color="black", linewidth=1.0, marker=".", markersize=2, label="known")
            if column == 0:
                ax.set_ylabel(names[row] if names else f"channel {row}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside upper center", ncols=3)
    return _drawn(figure, path)


def lines(
    samples: Float[np.ndarray, "n length channels"], path: str | os.PathLike | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """One chart for each sample, with a line for each channel."""
    figure, axes = _figure(1, len(samples))
    for ax, sample in zip(axes[0], samples, strict=True):
        ax.plot(sample, linewidth=1)
    return _drawn(figure, path)


def _figure(rows: int, columns: int):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_SIZE[0] * columns, _SIZE[1] * rows), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for ax in axes.ravel():
        ax.tick_params(labelsize=7)
        ax.margins(x=0.01)
    return figure, axes


def _drawn(figure, path: str | os.PathLike | None) -> UInt8[np.ndarray, "height width 3"]:
    figure.canvas.draw()
    sheet = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    if path is not None:
        sheets.write_png(sheet, path)
    return sheet
