"""Pairs of channels of colour pictures: a translation from one channel to the two others."""

from __future__ import annotations

import pathlib

import numpy as np
from jaxtyping import Float32, UInt8

from diffusion_jax.data import picture_sets
from diffusion_jax.training.faults import replacing

GREEN, OTHERS = 1, (0, 2)


def write(path: pathlib.Path, target: pathlib.Path, *, size: int = 0) -> pathlib.Path:
    """Write the pairs of green and (red, blue) of the pictures in `path` to `target`/train.npz and test.npz.

    In a file `images` float32 [n, size, size, 2] are red and blue and `image` [n, size, size, 1] is green, in [-1, 1].
    `path` is a folder or an .npz file, see `picture_sets.pictures`. With `size` pictures are cut into squares of so
    many pixels, see `picture_sets.squares`. Every square of "train" is followed by its mirror image. Returns `target`.
    Raises ValueError for pictures that cannot be read, or are no squares.
    """
    target.mkdir(parents=True, exist_ok=True)
    for split, pictures in picture_sets.pictures(path).items():
        squares = picture_sets.squares(pictures, size, path)
        if split == "train":
            squares = np.stack([squares, squares[:, :, ::-1]], 1).reshape(-1, *squares.shape[1:])
        with replacing(target / f"{split}.npz") as file:
            np.savez_compressed(file, images=_scaled(squares[..., OTHERS]), image=_scaled(squares[..., [GREEN]]))
    return target


def _scaled(x: UInt8[np.ndarray, "n s s c"]) -> Float32[np.ndarray, "n s s c"]:
    return x / np.float32(127.5) - np.float32(1)
