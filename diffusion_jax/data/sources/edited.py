"""Triples of an image, an instruction and the edited image, from any set of images and edits that are computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_jax.data import image_edits
from diffusion_jax.data.derived import Derived
from diffusion_jax.data.source import NOTHING, Batch, Source, Tokenize, Uniform
from diffusion_jax.data.sources import composed
from diffusion_jax.types import Spec


def spec(section: Mapping[str, Any]) -> Spec:
    """An image of the set `examples`. Raises ValueError."""
    return composed.spec(composed.section(section, "examples", "edits"))


def open_source(
    *,
    split: str = "train",
    wanted: Mapping[str, Spec] = NOTHING,
    tokenize: Tokenize | None = None,
    derive: Derived | None = None,
    training: str = "",
    examples: Mapping[str, Any] = NOTHING,
    edits: tuple[str, ...] = (),
    instructions: tuple[str, ...] = (),
    image_size: int | None = None,
    channels: int | None = None,
) -> Source:
    """Every image of the section `examples` under every one of `edits`, see `data.image_edits.EDITS`.

    The edited image is "x", the image itself is the condition "image", and the instruction the condition "tokens".
    `instructions` are other texts than those of the edits, one for each. Random augmentation of the images comes before
    the edit. Raises ValueError for no or an unknown edit, or another number of instructions.
    """
    data = dict(examples=examples, image_size=image_size, channels=channels)
    channels = spec(data).shape[-1]
    if not edits:
        raise ValueError(f"data.edits must be names of edits; choose among {', '.join(image_edits.EDITS)}")
    try:
        chosen = [image_edits.named(name, channels) for name in edits]
    except ValueError as error:
        raise ValueError(f"data.edits: {error}") from error
    if instructions and len(instructions) != len(edits):
        raise ValueError(f"data.instructions has {len(instructions)} texts for the {len(edits)} of data.edits")
    source, rows = composed.opened(composed.section(data, "examples", "edits"), split, "examples")
    shape, count = source.shape, len(chosen)
    entries = {"x": Spec(shape, modality="image"), "image": Spec(shape, modality="image")}
    tokens = None
    if "tokens" in wanted:
        texts = instructions or tuple(edit.instruction for edit in chosen)
        tokens = composed.tokens("data.instructions", texts, wanted, tokenize)
        entries["tokens"] = Spec(tokens.shape[1:], "int32")

    def read(indices: np.ndarray) -> Batch:
        images, which = np.divmod(np.asarray(indices), count)
        return {"edit": which, **source.read(rows[images])}

    def ready(stored: Batch, uniform: Uniform | None) -> Batch:
        which = stored["edit"]
        own = {name: value for name, value in stored.items() if name != "edit"}
        image = np.asarray(source.ready(own, uniform)["x"], np.float32)
        x = np.empty_like(image)
        for i in np.unique(which):
            x[which == i] = chosen[i].apply(image[which == i])
        return {"x": x, "image": image} | ({} if tokens is None else {"tokens": tokens[which]})

    return Source(
        entries=entries,
        size=len(rows) * count,
        read=read,
        ready=ready,
        draws=source.draws,
        num_workers=source.num_workers,
        facts=source.facts,
    )
