"""Masks of images: drawn next to their images, compared with the true masks of held-out images."""

from __future__ import annotations

import colorsys
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from diffusion_jax import data
from diffusion_jax.evaluation import segmentation, sheets
from diffusion_jax.modalities.base import Drawn, Evaluation, Metric, Modality, Views, Words, held_out, need

_SHOWN, _PER_IMAGE = 16, 8  # images in a picture, and samples of each


def picture(drawn: Drawn, words: Words, views: Views) -> UInt8[np.ndarray, "height width 3"] | None:
    """One row per image: the image, its true mask if it is known, samples, and of several their mean.

    The classes of masks of several channels have colours. None if a value is not finite.
    """
    samples = np.asarray(drawn["samples"])
    if not np.isfinite(samples).all():
        return None
    image = np.asarray(drawn["image"]) if "image" in drawn else None
    each = 1 if image is None else _length(image)
    truth = np.asarray(drawn["original"]) if "original" in drawn else None
    tiles, columns = [], 0
    for first in range(0, len(samples) - each + 1, each)[: _SHOWN if image is not None else 256]:
        group = samples[first : first + each]
        row = [] if image is None else [_coloured(image[first])]
        row += [] if truth is None else [_coloured(truth[first])]
        row += [_coloured(one) for one in group[:_PER_IMAGE]]
        row += [_coloured(group.mean(0))] if each > 1 else []
        tiles, columns = tiles + row, len(row)
    if len({tile.shape for tile in tiles}) > 1:
        return None
    return sheets.image_sheet(np.stack(tiles), columns=None if image is None else columns)


def _length(conditions: np.ndarray) -> int:
    """The number of samples at the beginning that have the same condition."""
    same = (conditions == conditions[0]).reshape(len(conditions), -1).all(1).tolist()
    return same.index(False) if False in same else len(same)


def _coloured(mask: Float[np.ndarray, "h w k"]) -> Float[np.ndarray, "h w 3"]:
    """A mask in grey; an image of 3 channels as it is; the classes of others in colours of equal distances."""
    if mask.shape[-1] == 1:
        return np.repeat(mask, 3, -1)
    if mask.shape[-1] == 3 and not np.allclose(((mask + 1) / 2).sum(-1), 1, atol=1e-3):
        return mask
    hues = np.arange(mask.shape[-1]) / mask.shape[-1]
    colours = 2 * np.array([colorsys.hsv_to_rgb(hue, 0.8, 0.3 + 0.7 * (hue > 0)) for hue in hues]) - 1
    return colours[np.argmax(mask, -1)]


def files(path: pathlib.Path, drawn: Drawn, words: Words, views: Views) -> list[pathlib.Path]:
    """With the format "png" every mask as a file of its own in the folder `path`, of several classes their numbers."""
    if views.get("format") != "png":
        return []
    path.mkdir(parents=True, exist_ok=True)
    masks = sheets.to_uint8(drawn["samples"])
    masks = masks[..., 0] if masks.shape[-1] == 1 else np.argmax(masks, -1).astype(np.uint8)
    for i, mask in enumerate(masks):
        sheets.write_png(mask, path / f"{i:05}.png")
    return [path]


def _segmentation(evaluation: Evaluation) -> Metric:
    need(evaluation, "mask", "masks")
    if "image" not in evaluation.conditions:
        raise ValueError("it needs a model that reads the condition 'image', whose masks are compared with its own")
    num, each = (evaluation.options.get(name, 1) for name in ("num_samples", "samples_per_condition"))
    if each < 1 or num % each:
        raise ValueError(f"evaluation.samples_per_condition={each} must divide evaluation.num_samples={num}")

    def metric(drawn: Drawn) -> dict[str, Any]:
        pairs = data.shuffled(held_out(evaluation), max(len(drawn["samples"]) // each, 1))
        if not np.allclose(pairs["image"], drawn["image"][: len(pairs["x"])], atol=1e-4):
            raise ValueError(
                "the masks are not those of held-out images in their order: leave config.sampling.cond empty and "
                "config.sampling.samples_per_condition at 1"
            )
        samples = np.asarray(drawn["samples"])
        rows = len(samples) // len(pairs["x"]) * len(pairs["x"])  # there may be fewer held-out images
        return segmentation.segmentation(samples[:rows], pairs["x"])

    return metric


MASK = Modality(
    stored=sheets.to_uint8,
    compares=True,
    picture=picture,
    files=files,
    formats=("png",),
    metrics={"segmentation": _segmentation},
    usual=("segmentation",),
)
