"""Crops of the objects in boxes, with their classes: examples for classifiers and class-conditional models."""

from __future__ import annotations

import pathlib

import numpy as np
from jaxtyping import Float, UInt8

from diffusion_jax.data import picture_sets
from diffusion_jax.training.faults import replacing


def write(path: pathlib.Path, target: pathlib.Path, *, size: int) -> pathlib.Path:
    """Write the objects in the boxes of `path` to `target`/train.npz and test.npz, `images` and `labels`.

    `path` is an .npz file with `images` uint8 [n, h, w, 3] and `boxes` [m, 6] of (image, class, left, top, right,
    bottom) as shares of the sides, and optionally `class_names` and `split` [n], 2 for the test split; see
    `picture_sets.read_file`. A crop has `size` pixels around the centre of its box, at the scale of the picture, so
    that large objects are larger; near the border it is moved inside. Labels are names of classes, or their numbers
    without names. Returns `target`. Raises ValueError for a file without boxes, boxes that do not fit, or pictures
    smaller than a crop.
    """
    arrays, splits = picture_sets.read_file(path, ("boxes", "class_names"))
    pictures, boxes = arrays["images"], arrays.get("boxes")
    num, height, width, _ = pictures.shape
    if boxes is None or boxes.shape[1:] != (6,) or not np.isin(boxes[:, 0], np.arange(num)).all():
        found = "none" if boxes is None else str(boxes.shape)
        raise ValueError(f"{path}: `boxes` must be [m, 6], the first number an image in 0..{num - 1}, not {found}")
    low, high = boxes[:, 2:4], boxes[:, 4:6]
    if not ((low >= 0) & (low < high) & (high <= 1)).all():
        raise ValueError(
            f"{path}: `boxes` must have left < right and top < bottom as shares of the sides, in [0, 1], got values in "
            f"{boxes[:, 2:].min():g}..{boxes[:, 2:].max():g}"
        )
    if not 1 <= size <= min(height, width):
        raise ValueError(
            f"--size={size} must be in 1..{min(height, width)}, the smaller side of the pictures in {path}"
        )
    numbers = boxes[:, 1].astype(np.int32)
    names = arrays.get("class_names")
    if names is not None and not np.isin(numbers, np.arange(len(names))).all():
        raise ValueError(f"{path}: the classes of boxes are in {numbers.min()}..{numbers.max()}, of {len(names)} names")
    target.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        chosen = np.isin(boxes[:, 0], rows)
        crops = [_crop(pictures[int(box[0])], box[2:], size) for box in boxes[chosen]]
        if not crops:
            raise ValueError(f"{path}: no box is in the {len(rows)} pictures of the split {split!r}")
        labels = numbers[chosen] if names is None else names[numbers[chosen]]
        with replacing(target / f"{split}.npz") as file:
            np.savez_compressed(file, images=np.stack(crops), labels=labels)
    return target


def _crop(
    picture: UInt8[np.ndarray, "h w 3"], box: Float[np.ndarray, "4"], size: int
) -> UInt8[np.ndarray, "size size 3"]:
    height, width, _ = picture.shape
    centre = (box[1] + box[3]) / 2 * height, (box[0] + box[2]) / 2 * width
    top, left = (
        int(np.clip(round(at - size / 2), 0, side - size)) for at, side in zip(centre, (height, width), strict=True)
    )
    return picture[top : top + size, left : left + size]
