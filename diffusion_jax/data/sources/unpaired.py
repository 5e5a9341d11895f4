"""Two data sets without pairs: "x" from one and "image" from the other, drawn independently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_jax.data.derived import Derived
from diffusion_jax.data.source import NOTHING, Batch, Source, Tokenize, Uniform
from diffusion_jax.data.sources import composed
from diffusion_jax.types import Spec

_SETS = ("x", "image")


def spec(section: Mapping[str, Any]) -> Spec:
    """An example of the set "x". Raises ValueError unless those of both sets are alike."""
    first, second = (composed.spec(composed.section(section, name, "unpaired")) for name in _SETS)
    if first != second:
        raise ValueError(
            f"data.x holds examples of {first.shape} ({first.modality}) and data.image of {second.shape} "
            f"({second.modality}); a bridge needs two sets of the same size and kind"
        )
    return first


def open_source(
    *,
    split: str = "train",
    wanted: Mapping[str, Spec] = NOTHING,
    tokenize: Tokenize | None = None,
    derive: Derived | None = None,
    training: str = "",
    x: Mapping[str, Any] = NOTHING,
    image: Mapping[str, Any] = NOTHING,
) -> Source:
    """The same split of the data sets in the sections `x` and `image`.

    A section has the keys of config.data, and optionally `only`: a class, or several, to which its set is limited. In
    training every x is joined by a random example of the other set; in evaluation example i by example i, modulo the
    size of the other set. Raises ValueError for sets of different sizes of examples, or an `only` that holds none.
    """
    spec({"x": x, "image": image})
    (first, rows), (second, others) = (
        composed.opened(section, split, name) for name, section in (("x", x), ("image", image))
    )

    def read(indices: np.ndarray) -> Batch:
        return {"index": indices, **{f"x_{name}": value for name, value in first.read(rows[indices]).items()}}

    def ready(stored: Batch, uniform: Uniform | None) -> Batch:
        own = {name.removeprefix("x_"): value for name, value in stored.items() if name != "index"}
        if uniform is None:
            chosen, of_first, of_second = stored["index"] % len(others), None, None
        else:
            # Two numbers, since one float32 distinguishes 2^24 examples.
            u = uniform[:, 0].astype(np.float64) + uniform[:, 1].astype(np.float64) / 2**24
            chosen = np.minimum((u * len(others)).astype(np.int64), len(others) - 1)
            of_first, of_second = np.split(uniform[:, 2:], [first.draws], axis=1)
        made = first.ready(own, of_first)
        return {**made, "image": second.ready(second.read(others[chosen]), of_second)["x"]}

    return Source(
        entries={**first.entries, "image": first.entries["x"]},
        size=len(rows),
        read=read,
        ready=ready,
        draws=2 + first.draws + second.draws,
        facts=first.facts,
    )
