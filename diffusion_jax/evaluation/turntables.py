"""Pictures of point clouds: a row of views around the upright axis for each, nearer points darker and on top."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from diffusion_jax.evaluation.sheets import image_sheet

VIEWS = 4  # of each cloud, a quarter of a turn apart
_ELEVATION = 25.0  # degrees from which the clouds are seen, from above
_FIRST = 30.0  # degrees of the first view
_SIDE = 96  # pixels of one view
_NEAR, _FAR = np.array([18.0, 40.0, 90.0]), np.array([190.0, 205.0, 230.0])  # colours
_KNOWN_NEAR, _KNOWN_FAR = np.array([150.0, 60.0, 0.0]), np.array([245.0, 200.0, 150.0])  # of points that were given


def turntable(
    clouds: Float[np.ndarray, "n points 3"],
    *,
    known: Bool[np.ndarray, "n points"] | None = None,
    up: int = 1,
    views: int = VIEWS,
    labels: Sequence[str] | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """A sheet with `views` views of each cloud in a row, and of the same scale for all clouds.

    `up` is the axis that they turn about. Points that `known` marks are orange. Raises ValueError for what are no
    clouds, or not finite.
    """
    clouds = np.asarray(clouds, np.float64)
    if clouds.ndim != 3 or clouds.shape[-1] != 3 or not clouds.size or not np.isfinite(clouds).all():
        raise ValueError(f"clouds must be [n, points, 3] and finite, got shape {clouds.shape}")
    angles = _FIRST + 360 / views * np.arange(views)
    radius = np.linalg.norm(clouds, axis=-1).max() or 1.0
    marked = np.zeros(clouds.shape[:2], bool) if known is None else known
    images = [
        _view(cloud / radius, mark, up, angle) for cloud, mark in zip(clouds, marked, strict=True) for angle in angles
    ]
    words = None if labels is None else [text for label in labels for text in (label, *[""] * (views - 1))]
    return image_sheet(np.stack(images), columns=views * max(round(np.sqrt(len(clouds) / views)), 1), labels=words)


def _view(
    cloud: Float[np.ndarray, "points 3"], known: Bool[np.ndarray, "points"], up: int, degrees: float
) -> UInt8[np.ndarray, "side side 3"]:
    """One view of a cloud in the unit ball, without perspective."""
    first, second = ((1, 2), (2, 0), (0, 1))[up]
    turn, tilt = np.deg2rad(degrees), np.deg2rad(_ELEVATION)
    a, b, height = cloud[:, first], cloud[:, second], cloud[:, up]
    right = a * np.cos(turn) - b * np.sin(turn)
    away = a * np.sin(turn) + b * np.cos(turn)
    upward, depth = height * np.cos(tilt) + away * np.sin(tilt), away * np.cos(tilt) - height * np.sin(tilt)
    far = ((depth + 1) / 2)[:, None]
    colour = np.where(known[:, None], _KNOWN_NEAR + far * (_KNOWN_FAR - _KNOWN_NEAR), _NEAR + far * (_FAR - _NEAR))
    image = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
    columns, rows = (np.round((1 + s * x) / 2 * (_SIDE - 4) + 1).astype(int) for s, x in ((1, right), (-1, upward)))
    order = np.argsort(-depth)  # the nearest are drawn last
    for down, across in ((0, 0), (0, 1), (1, 0), (1, 1)):
        image[rows[order] + down, columns[order] + across] = colour[order]
    return image
