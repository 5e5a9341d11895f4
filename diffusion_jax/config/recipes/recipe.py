"""The contract of a recipe: how `config.system.name` becomes a system, and what else the command must know of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from diffusion_jax.config.parts import Parts
from diffusion_jax.config.sections import ConfigError, refusal
from diffusion_jax.data import Source, arrays, tokenization
from diffusion_jax.data.captions import texts_of
from diffusion_jax.data.derived import Derived, averaged
from diffusion_jax.likelihood.dequantization import check_levels
from diffusion_jax.types import Params, System

# Sections that name a point of the algebra. One that was changed and that a system does not read is refused.
CHOICES = (
    "process",
    "parameterization",
    "weighting",
    "times",
    "loss",
    "network",
    "solver",
    "guidance",
    "editing",
    "sampling.grid",
    "sampling.threshold",
    "evaluation.likelihood",
)
TRAINING = frozenset({"process", "parameterization", "weighting", "times", "loss", "network"})
SAMPLING = frozenset({"solver", "guidance", "editing", "sampling.grid", "sampling.threshold"})
_CHECKED_EXAMPLES = 256  # that are looked at to see whether data lies on grey levels


class Reading(NamedTuple):
    """How data and requests become what the system reads: captions as ids and back, and the derived condition "image".

    `tokenize` is None for captions that are read as the bytes of their text.
    """

    tokenize: Callable[[Sequence[str]], np.ndarray] | None = None
    describe: Callable[[np.ndarray], list[str]] = texts_of
    derive: Derived | None = None


def _nothing(parts: Parts) -> Mapping[str, Callable[[], Params]]:
    return {}


def no_check(parts: Parts, source: Source) -> None:
    """Any data of the right shapes will do."""


def reading(parts: Parts, system: System) -> Reading:
    """How a network with a vocabulary of its own reads captions, and the small image that an upsampler reads.

    Raises ConfigError: config.data.tokenizer is no folder of a tokenizer, or its ids are not those of the network.
    """
    path, low_res = parts.config.data.get("tokenizer", ""), parts.config.network.get("low_res", 0)
    derive = averaged(low_res) if low_res else None
    if not path:
        return Reading(derive=derive)
    field, tokens = f"config.data.tokenizer={path!r}", system.batch.get("tokens")
    if tokens is None or not tokens.values:
        raise ConfigError(f"{field} needs a network with config.network.vocabulary > 0, which learns to read captions")
    with refusal(field):
        tokenizer = tokenization.load_for_network(path, tokens.shape[0])
    if tokenizer.size > tokens.values:
        raise ConfigError(f"{field} has {tokenizer.size} tokens, but config.network.vocabulary={tokens.values}")
    return Reading(tokenizer, tokenizer.describe, derive)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is known of `config.system.name`.

    Attributes:
      build: builds and checks the system; it opens no data and allocates nothing. Raises ConfigError.
      reads: those of `CHOICES` that matter. Another one that was changed is refused.
      stands_on: path in the parameters, such as "frozen/first_stage" -> a function that loads what lies there in a
        fresh start, from another run or from public files.
      check: refuses data that the system cannot use, such as values off its grey levels. Raises ConfigError.
      reading: how captions and derived conditions are read.
      views: functions of the model that pictures of a modality show, by name: (system, params) -> such as the score.
      role: what other runs can use a trained run as: "denoiser", "classifier", "first_stage"; "" for nothing.
      trains_lora: whether low-rank updates of the network can be trained.
    """

    build: Callable[[Parts], System]
    reads: frozenset[str]
    stands_on: Callable[[Parts], Mapping[str, Callable[[], Params]]] = _nothing
    check: Callable[[Parts, Source], None] = no_check
    reading: Callable[[Parts, System], Reading] = reading
    views: Mapping[str, Callable[[System, Params], Callable]] = dataclasses.field(default_factory=dict)
    role: str = ""
    trains_lora: bool = True


def check_grey_levels(field: str, source: Source, levels: int) -> None:
    """Raises ConfigError, naming the `field` that asks for it, unless the values of images lie on `levels` levels."""
    with refusal(f"config.{field}"):
        check_levels(arrays(source, _CHECKED_EXAMPLES)["x"], levels)


def check_likelihood_levels(parts: Parts, source: Source) -> None:
    """Refuses data off its grey levels where a likelihood of grey levels is asked for."""
    name = parts.config.evaluation.likelihood.name
    if name != "none" and parts.likelihood_levels:
        check_grey_levels(f"evaluation.likelihood ({name})", source, parts.likelihood_levels)
