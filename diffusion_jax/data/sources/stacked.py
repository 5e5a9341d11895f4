"""Stacked digits: three independently drawn grey images as the channels of one, as in StackedMNIST (1611.02163).

With the ten classes of digits there are 1,000 modes, each with its own label, so the modes of a generative model can be
counted with a classifier of the digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_jax.data.derived import Derived
from diffusion_jax.data.source import NOTHING, Batch, Source, Tokenize, Uniform, even
from diffusion_jax.data.sources import composed
from diffusion_jax.types import Spec

CHANNELS = 3


def spec(section: Mapping[str, Any]) -> Spec:
    """An image of three channels of the size of those of the set `examples`. Raises ValueError."""
    if section.get("channels") != CHANNELS:
        raise ValueError(f"data.channels={section.get('channels')!r} must be {CHANNELS}: three grey images are stacked")
    height, width, _ = composed.spec(_examples(section)).shape
    return Spec((height, width, CHANNELS), modality="image")


def facts(section: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is known about the images of the set `examples`, such as their grey "levels"."""
    return composed.facts(_examples(section))


def _examples(section: Mapping[str, Any]) -> dict[str, Any]:
    part = composed.section(dict(section, channels=1), "examples", "stacked")
    if part["channels"] != 1:
        raise ValueError(f"data.examples.channels={part['channels']!r} must be 1: its images are channels of others")
    return part


def open_source(
    *,
    split: str = "train",
    wanted: Mapping[str, Spec] = NOTHING,
    tokenize: Tokenize | None = None,
    derive: Derived | None = None,
    training: str = "",
    examples: Mapping[str, Any] = NOTHING,
    num_examples: int = 50_000,
    seed: int = 0,
    image_size: int | None = None,
    channels: int | None = None,
) -> Source:
    """`num_examples` images, each of three of one split of the section `examples`, drawn independently by `seed`.

    With K classes (10 of digits) the label of an image is K^2 d_0 + K d_1 + d_2, where d_c is that of channel c. The
    triples of a split are of images of this split, so those for evaluation share none with those for training. Random
    augmentation, such as dequantization, is that of the section and independent for each channel.

    Raises:
        ValueError: no images of one channel with classes, or a number out of range.
    """
    if num_examples < 1 or seed < 0:
        raise ValueError(f"data.num_examples={num_examples} must be positive and data.seed={seed} not negative")
    data = dict(examples=examples, image_size=image_size, channels=channels)
    height, width, _ = spec(data).shape
    source, rows = composed.opened(_examples(data), split, "examples")
    if not source.num_classes:
        raise ValueError(f"data.examples.name={examples['name']!r} has no classes, of which the modes would be made")
    chosen = np.random.default_rng(seed).integers(len(rows), size=(num_examples, CHANNELS))
    place = source.num_classes ** np.arange(CHANNELS)[::-1]
    label = Spec((), "int32", values=source.num_classes**CHANNELS)
    drawn = CHANNELS * source.draws

    def read(indices: np.ndarray) -> Batch:
        stored = source.read(rows[chosen[indices].ravel()])
        return {name: value.reshape(-1, CHANNELS, *value.shape[1:]) for name, value in stored.items()}

    def ready(stored: Batch, uniform: Uniform | None) -> Batch:
        flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in stored.items()}
        if uniform is not None:  # not -1 rows, which are undefined where an image needs no draws
            uniform = uniform[:, :drawn].reshape(len(uniform) * CHANNELS, source.draws)
        made = source.ready(flat, uniform)
        x = np.moveaxis(made["x"].reshape(-1, CHANNELS, height, width), 1, -1)
        return {"x": x, "label": (made["label"].reshape(-1, CHANNELS) @ place).astype(np.int32)}

    return Source(
        entries={"x": Spec((height, width, CHANNELS), modality="image"), "label": label},
        size=num_examples,
        read=read,
        ready=ready,
        draws=even(drawn),
        num_workers=source.num_workers,
        facts={name: value for name, value in source.facts.items() if name != "classes"},
    )
