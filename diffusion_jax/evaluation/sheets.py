"""Pictures of samples: a grid of images, and scatter plots of two-dimensional points with their exact density."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Array, UInt8

from diffusion_jax.training.faults import replacing

_SHEET = 800  # pixels a sheet of small images aims at
_TILE_MAX = 240  # no image is enlarged beyond this
_CAPTION = 14  # pixels of a caption's line
_GAP = (96, 112, 128)  # a slate that neither black, grey nor white tiles blend into


def to_uint8(x: np.ndarray | Array) -> UInt8[np.ndarray, "..."]:
    """Map [-1, 1] to 0..255, rounded to nearest; values outside are clipped.

    Raises:
      ValueError: `x` holds NaN or infinity.
    """
    x = np.asarray(x, np.float32)
    if not np.isfinite(x).all():
        raise ValueError(f"images must be finite, got {np.count_nonzero(~np.isfinite(x))} NaN or infinite values")
    return np.clip(np.round((x + 1) * 127.5), 0, 255).astype(np.uint8)


def image_sheet(
    images: np.ndarray | Array,
    *,
    path: str | os.PathLike | None = None,
    columns: int | None = None,
    tile_min: int = 32,
    padding: int = 3,
    labels: Sequence | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """A grid of images, row by row, with a gap around every tile.

    Small images are enlarged by one integer factor with nearest neighbour, towards a sheet of about 800 pixels;
    images of more than 120 pixels keep their size.

    Args:
      images: `[n, h, w, c]` with c = 1 or 3; uint8, or floats in [-1, 1], clipped as in `to_uint8`.
      path: where to write the sheet as PNG; its folder is created.
      columns: tiles in a row; by default about sqrt(n), preferring a grid without empty places.
      tile_min: tiles are enlarged to at least this many pixels.
      padding: width of the gap, in pixels.
      labels: `[n]` captions, written below the tiles in up to two lines; what is longer is cut.

    Raises:
      ValueError: no images, another shape, values that are not finite, or captions of another number.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.size == 0:
        raise ValueError(f"images must be [n, h, w, 1 or 3] and not empty, got shape {images.shape}")
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"labels must have one entry per image, got {len(labels)} for {len(images)} images")
    if columns is not None and columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    images = images if images.dtype == np.uint8 else to_uint8(images)
    columns = columns or _columns(len(images))
    rows = math.ceil(len(images) / columns)
    side = max(images.shape[1:3])
    wanted = (_SHEET // max(columns, rows) - padding) // side
    scale = max(1, min(max(wanted, math.ceil(tile_min / side)), _TILE_MAX // side))
    tiles = images.repeat(scale, axis=1).repeat(scale, axis=2)

    height, width = tiles.shape[1:3]
    captions = [] if labels is None else _wrapped(labels, width)
    pitch_y = height + padding + _CAPTION * max(map(len, captions), default=0)
    pitch_x = width + padding
    sheet = np.empty((rows * pitch_y + padding, columns * pitch_x + padding, 3), np.uint8)
    sheet[:] = _GAP
    corners = [(padding + i // columns * pitch_y, padding + i % columns * pitch_x) for i in range(len(tiles))]
    for tile, (y, x) in zip(tiles, corners, strict=True):
        sheet[y : y + height, x : x + width] = tile
    if labels is not None:
        sheet = _captioned(sheet, [(x, y + height) for y, x in corners], captions)
    if path is not None:
        write_png(sheet, path)
    return sheet


def as_colours(x: np.ndarray | Array) -> np.ndarray:
    """Images [n, h, w, c] of any number of channels as ones of 1 or 3: of two the first is red and the second blue, of
    more than three the first three are shown."""
    x = np.asarray(x)
    if x.shape[-1] == 2:
        return np.stack([x[..., 0], np.full_like(x[..., 0], -1), x[..., 1]], -1)
    return x[..., :3]


def spectrogram_sheet(
    spectrograms: np.ndarray | Array,
    *,
    path: str | os.PathLike | None = None,
    columns: int | None = None,
    labels: Sequence | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """A sheet of spectrograms `[n, frames, frequencies]` in [-1, 1], in colours; time goes right, frequency up."""
    from matplotlib import colormaps

    values = (np.clip(np.asarray(spectrograms, np.float32), -1, 1) + 1) / 2
    upright = values.transpose(0, 2, 1)[:, ::-1]
    images = np.round(255 * colormaps["magma"](upright)[..., :3]).astype(np.uint8)
    return image_sheet(images, path=path, columns=columns, labels=labels)


def scatter_sheet(
    samples: np.ndarray | Array | Mapping[str, np.ndarray | Array],
    *,
    path: str | os.PathLike | None = None,
    log_density: Callable | None = None,
    score: Callable | None = None,
    limit: float | int | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Panels side by side: each set of points, then the exact density, then the score field.

    Args:
      samples: points `[n, 2]`, or several sets of them by title.
      path: where to write the picture as PNG; its folder is created.
      log_density: `[m, 2] -> [m]`, natural logarithm; drawn as contours over the points and as a heat map.
      score: `[m, 2] -> [m, 2]`, its gradient; drawn as arrows of the true direction, coloured by their length.
      limit: half the width of the square that is shown, around the origin; by default all points fit.

    Raises:
      ValueError: no points, another shape, or points, densities or scores that are not finite.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    samples = samples if isinstance(samples, Mapping) else {"samples": samples}
    sets = {title: _points(title, points) for title, points in samples.items()}
    if not sets:
        raise ValueError("samples must hold at least one set of points")
    limit = limit or 1.1 * max(float(np.abs(points).max()) for points in sets.values()) or 1.0
    axis = np.linspace(-limit, limit, 201)
    density = None
    if log_density is not None:
        log_p = np.asarray(log_density(_mesh(axis)), np.float64).reshape(len(axis), len(axis))
        if np.isnan(log_p).any() or np.isposinf(log_p).any():
            raise ValueError("log_density must not be NaN or +infinity on the square that is drawn")
        density = np.exp(log_p)

    panels = len(sets) + (density is not None) + (score is not None)
    figure = Figure(figsize=(4 * panels, 4.2), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for ax in axes:
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel="$x_1$")
    axes[0].set_ylabel("$x_2$")
    for ax, (title, points) in zip(axes, sets.items(), strict=False):
        if density is not None:
            levels = density.max() * np.array([0.05, 0.2, 0.4, 0.6, 0.8])
            ax.contour(axis, axis, density, levels=levels, colors="tab:orange", linewidths=1, zorder=3)
        size, opacity = np.clip([2000 / len(points), 50 / np.sqrt(len(points))], [2, 0.25], [12, 0.8])
        ax.scatter(*points.T, s=size, alpha=opacity, color="tab:blue", linewidths=0)
        ax.set_title(f"{title} (n = {len(points)})")
    if density is not None:
        ax = axes[len(sets)]
        figure.colorbar(ax.pcolormesh(axis, axis, density, cmap="magma"), ax=ax, shrink=0.8)
        ax.set_title("exact density")
    if score is not None:
        _draw_score(axes[-1], figure, score, limit)
    canvas.draw()
    sheet = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    if path is not None:
        write_png(sheet, path)
    return sheet


def _draw_score(ax, figure, score: Callable, limit: float) -> None:
    points = _mesh(np.linspace(-limit, limit, 21))
    vectors = _points("score", score(points))
    length = np.linalg.norm(vectors, axis=1)
    unit = vectors / np.maximum(length, 1e-12)[:, None]
    arrows = ax.quiver(*points.T, *unit.T, length, cmap="viridis", pivot="mid", scale=26, width=0.004)
    figure.colorbar(arrows, ax=ax, shrink=0.8, label="length")
    ax.set_title("score")


def _mesh(axis: np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype(np.float32)


def _points(name: str, points: np.ndarray | Array) -> np.ndarray:
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
        raise ValueError(f"{name} must be [n, 2] and not empty, got shape {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return points


def _columns(n: int) -> int:
    """The smallest divisor of n from sqrt(n) to 2 sqrt(n), or ceil(sqrt(n)) where there is none."""
    least = math.ceil(math.sqrt(n))
    return next((c for c in range(least, 2 * least) if n % c == 0), least)


def _wrapped(labels: Sequence, width: int) -> list[list[str]]:
    """Each label as one or two lines of at most `width` pixels."""
    from PIL import Image, ImageDraw

    length = ImageDraw.Draw(Image.new("L", (1, 1))).textlength

    def cut(text: str) -> str:
        if length(text) <= width:
            return text
        return next(text[:n] + "..." for n in range(len(text), -1, -1) if n == 0 or length(text[:n] + "...") <= width)

    def lines(label: str) -> list[str]:
        words = label.split()
        fitting = (n for n in range(len(words), 0, -1) if length(" ".join(words[:n])) <= width)
        n = next(fitting, 0)
        return [cut(" ".join(part)) for part in (words[:n], words[n:]) if part] or [""]

    return [lines(str(label)) for label in labels]


def _captioned(sheet: np.ndarray, corners: list[tuple[int, int]], captions: list[list[str]]) -> np.ndarray:
    from PIL import Image, ImageDraw

    image = Image.fromarray(sheet)
    draw = ImageDraw.Draw(image)
    for (x, y), lines in zip(corners, captions, strict=True):
        for i, line in enumerate(lines):
            draw.text((x, y + i * _CAPTION), line, fill=(255, 255, 255))
    return np.asarray(image)


def write_png(sheet: UInt8[np.ndarray, "height width *channels"], path: str | os.PathLike) -> None:
    """Write a picture, RGB or grey [height, width], as PNG, in one piece; its folder is created."""
    from PIL import Image

    with replacing(path) as file:
        Image.fromarray(sheet).save(file, format="PNG")
