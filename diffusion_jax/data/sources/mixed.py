"""Images of a new subject mixed with images of its class, each with prompts and a weight (DreamBooth, 2208.12242)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from diffusion_jax.data import image_edits
from diffusion_jax.data.derived import Derived
from diffusion_jax.data.source import NOTHING, Batch, Source, Tokenize, Uniform, even
from diffusion_jax.data.sources import composed
from diffusion_jax.types import Spec

_OWN_DRAWS = 2  # uniform numbers for the choice of a prompt


def spec(section: Mapping[str, Any]) -> Spec:
    """An image of the subject. Raises ValueError unless images of the class are alike."""
    first = composed.spec(composed.section(section, "instance", "mixed"))
    if _has_prior(section.get("prior", NOTHING)):
        second = composed.spec(composed.section(section, "prior", "mixed"))
        if first != second:
            raise ValueError(
                f"data.instance holds images of {first.shape} and data.prior of {second.shape}; they are joined in a "
                "batch and need one size"
            )
    return first


def _has_prior(prior: Mapping[str, Any]) -> bool:
    return bool(prior) and prior.get("name") != "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
    """One of the sets: its examples, their prompts as ids (None: texts of their own), edit and weight."""

    source: Source
    rows: Int64[np.ndarray, "n"]
    prompts: np.ndarray | None
    edit: image_edits.Edit | None
    weight: float

    def batch(self, indices: np.ndarray, uniform: Uniform | None) -> Batch:
        own = None if uniform is None else uniform[:, _OWN_DRAWS : _OWN_DRAWS + self.source.draws]
        made = self.source.ready(self.source.read(self.rows[indices]), own)
        x = made["x"] if self.edit is None else self.edit.apply(made["x"])
        batch = {"x": np.asarray(x, np.float32), "weight": np.full(len(indices), self.weight, np.float32)}
        if self.prompts is not None:
            count = len(self.prompts)
            drawn = indices if uniform is None else (uniform[:, 0] * count).astype(np.int64)
            batch["tokens"] = self.prompts[drawn % count]
        elif "tokens" in made:
            batch["tokens"] = made["tokens"]
        return batch


def open_source(
    *,
    split: str = "train",
    wanted: Mapping[str, Spec] = NOTHING,
    tokenize: Tokenize | None = None,
    derive: Derived | None = None,
    training: str = "",
    instance: Mapping[str, Any] = NOTHING,
    prior: Mapping[str, Any] = NOTHING,
    prior_weight: float = 1.0,
    image_size: int | None = None,
    channels: int | None = None,
) -> Source:
    """Images of a subject, the section `instance`, and of its class, the section `prior`; name="none" for none.

    `image_size` and `channels` are those of both. A section has the keys of config.data, and optionally `split` (by
    default that of config.data), `only` (the classes it is limited to), `edit` (see `data.image_edits`) and `prompts`,
    texts of which every example gets one at random each time it is drawn; without them, the texts of the data set. The
    sets are drawn evenly, so that half of a batch of even size are images of the class. The weights are 2 and 2
    `prior_weight`: the mean of the weighted losses is the loss of the subject plus `prior_weight` times that of the
    class.

    Raises ValueError for images of different sizes, a set without texts where a model reads them, or a weight that is
    not positive.
    """
    data = dict(instance=instance, prior=prior, image_size=image_size, channels=channels)
    spec(data)
    if not 0 < prior_weight < math.inf:
        raise ValueError(f"data.prior_weight={prior_weight} must be positive; data.prior.name='none' is no prior")
    given = dict(split=split, wanted=wanted, tokenize=tokenize)
    preserved = _has_prior(prior)
    weights = {"instance": 2.0, "prior": 2.0 * prior_weight} if preserved else {"instance": 1.0}
    parts = [
        _part(composed.section(data, name, "mixed"), name, weight=weight, **given) for name, weight in weights.items()
    ]
    sizes = [len(part.rows) for part in parts]
    starts = np.cumsum([0, *sizes])
    shape = parts[0].source.shape

    def ready(stored: Batch, uniform: Uniform | None) -> Batch:
        index, made = stored["index"], {"x": np.empty((len(stored["index"]), *shape), np.float32)}
        for i, part in enumerate(parts):
            here = (index >= starts[i]) & (index < starts[i + 1])
            if here.any():
                found = part.batch(index[here] - starts[i], None if uniform is None else uniform[here])
                for name, value in found.items():
                    made.setdefault(name, np.empty((len(index), *value.shape[1:]), value.dtype))[here] = value
        return made

    entries = {"x": parts[0].source.entries["x"], "weight": Spec(())}
    if "tokens" in wanted:
        entries["tokens"] = Spec(wanted["tokens"].shape, "int32")
    return Source(
        entries=entries,
        size=sum(sizes),
        read=lambda indices: {"index": np.asarray(indices)},
        ready=ready,
        draws=_OWN_DRAWS + even(max(part.source.draws for part in parts)),
        groups=np.repeat(np.arange(len(parts)), sizes) if preserved else None,
        facts=parts[0].source.facts,
    )


def _part(
    section: Mapping[str, Any],
    name: str,
    *,
    split: str,
    wanted: Mapping[str, Spec],
    tokenize: Tokenize | None,
    weight: float,
) -> _Part:
    prompts, edit = section.pop("prompts", ()), section.pop("edit", "")
    texts = {entry: value for entry, value in wanted.items() if entry == "tokens" and not prompts}
    split = section.pop("split", "") or split
    source, rows = composed.opened(section, split, name, wanted=texts, tokenize=tokenize)
    if "tokens" in wanted and not prompts and "tokens" not in source.entries:
        raise ValueError(
            f"data.{name}.prompts={prompts!r} must be texts, such as ('a photo of sks dog',): its examples have none "
            "of their own (caption_key)"
        )
    try:
        found = image_edits.named(edit, source.shape[-1]) if edit else None
    except ValueError as error:
        raise ValueError(f"data.{name}.edit: {error}") from error
    return _Part(source=source, rows=rows, prompts=_ids(prompts, name, wanted, tokenize), edit=found, weight=weight)


def _ids(prompts: Sequence[str], name: str, wanted: Mapping[str, Spec], tokenize: Tokenize | None) -> np.ndarray | None:
    if not prompts or "tokens" not in wanted:
        return None
    return composed.tokens(f"data.{name}.prompts", prompts, wanted, tokenize)
