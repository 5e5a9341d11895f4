"""The 1,797 handwritten 8 x 8 digits inside scikit-learn (the test part of UCI's optical recognition set)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int64

from diffusion_jax.data import images
from diffusion_jax.data.derived import Derived
from diffusion_jax.data.source import NOTHING, Source, Tokenize
from diffusion_jax.data.sources import files
from diffusion_jax.data.sources import images as sources
from diffusion_jax.types import Spec

_TEST_PER_CLASS = 50


def digit_images(split: str) -> images.Images:
    """One split: "train", 1,297 digits, or "test", 50 of each class. Levels 0..16 are scaled to 0..255.

    Slices such as "train[:100]" are in order. The order is that of the shuffle of TensorFlow Datasets, by a hash of the
    index: the same on every machine.

    Raises:
        ValueError: another split, or an empty slice.
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    pixels = np.round(digits.images * 255 / 16).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(pixels))
    test = np.concatenate([order[digits.target[order] == label][:_TEST_PER_CLASS] for label in range(10)])
    splits = {"train": np.setdiff1d(order, test), "test": test}
    name = files.named(split)
    if name not in splits:
        raise ValueError(f"Unknown split {split!r} of 'digits': there are {' and '.join(splits)}.")
    chosen = _shuffled(name, splits[name])[files.bounds(split, len(splits[name]))]
    return images.Images(
        get=lambda i: (images.from_array(pixels[chosen[i]]), int(digits.target[chosen[i]])),
        size=len(chosen),
        num_classes=10,
        describe=lambda i: f"example {i} of 'digits' ({split})",
    )


def _shuffled(salt: str, indices: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
    hashes = {i: hashlib.md5(f"{salt}{i}".encode(), usedforsecurity=False).digest() for i in indices.tolist()}
    return np.array(sorted(hashes, key=hashes.get))


def open_source(
    *,
    split: str = "train",
    wanted: Mapping[str, Spec] = NOTHING,
    tokenize: Tokenize | None = None,
    derive: Derived | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    crop: int | None = None,
    flip: bool = False,
    dequantize: bool = False,
    levels: int = 256,
    num_workers: int = 1,
    cache_bytes: int = 2**30,
    captions: tuple[str, ...] = (),
) -> Source:
    """One split of the digits, see `digit_images`. Other arguments as in `data.load`."""
    sources.check(image_size=image_size, channels=channels, crop=crop, levels=levels)
    source = sources.decoded(
        digit_images(split),
        image_size=image_size,
        channels=channels,
        crop=crop,
        cache_bytes=cache_bytes,
        wanted=wanted,
        flip=flip,
        dequantize=dequantize,
        levels=levels,
        derive=derive,
        num_workers=num_workers,
    )
    return sources.with_conditions(source, {}, captions=captions, wanted=wanted, tokenize=tokenize)
