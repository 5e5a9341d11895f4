"""The contract of a recipe: how `config.system.name` becomes a system, and what the command knows about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from diffusion_jax.config.data import facts
from diffusion_jax.config.parts import Parts
from diffusion_jax.config.sections import ConfigError, refusal
from diffusion_jax.data import Source, arrays, tokenization
from diffusion_jax.data.captions import texts_of
from diffusion_jax.data.derived import Derived, averaged
from diffusion_jax.likelihood.dequantization import check_levels
from diffusion_jax.types import Params, System

# Sections that name a part. If the system does not read one, it must not be changed from the defaults.
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
_CHECKED_EXAMPLES = 256  # number of examples whose values are compared with the grey levels


class Reading(NamedTuple):
    """How conditions are read: a tokenizer of captions, its inverse, and the derived conditions.

    `tokenize` is None for captions whose ids are the bytes of the text.
    """

    tokenize: Callable[[Sequence[str]], np.ndarray] | None = None
    describe: Callable[[np.ndarray], list[str]] = texts_of
    derive: Derived | None = None


def _nothing(parts: Parts) -> Mapping[str, Callable[[], Params]]:
    return {}


def the_split(parts: Parts, source: Source) -> Source:
    """The training split itself."""
    return source


def no_check(parts: Parts, source: Source) -> None:
    """Accepts all data of the right shapes."""


def reading(parts: Parts, system: System) -> Reading:
    """The tokenizer config.data.tokenizer for a network with a vocabulary; the low-resolution image of an upsampler.

    Raises ConfigError if config.data.tokenizer is not a folder of a tokenizer, or has more tokens than the network.
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
    """How a config with one `config.system.name` becomes a system.

    Attributes:
      build: builds and checks the system, without opening data or allocating arrays. Raises ConfigError.
      reads: the sections among `CHOICES` that the system reads. Others must have their defaults.
      stands_on: path in the parameters, such as "frozen/first_stage" -> function that loads these parameters for a
        fresh start, from another run or from public files.
      check: raises ConfigError for data that the system cannot use, such as values that are not grey levels.
      examples: (parts, training split) -> the examples that training reads, if they are others than the training split,
        which evaluation still compares with. Raises ConfigError.
      supplies: the entries of a batch that only `examples` have.
      reading: returns the tokenizer and the derived conditions of the data.
      views: functions of the model for pictures of samples, by name, such as the score: (system, params) -> function.
      role: the use of a trained run for other runs: "denoiser", "classifier", "first_stage"; "" for none.
      trains_lora: whether low-rank updates of the network can be trained.
    """

    build: Callable[[Parts], System]
    reads: frozenset[str]
    stands_on: Callable[[Parts], Mapping[str, Callable[[], Params]]] = _nothing
    check: Callable[[Parts, Source], None] = no_check
    examples: Callable[[Parts, Source], Source] = the_split
    supplies: frozenset[str] = frozenset()
    reading: Callable[[Parts, System], Reading] = reading
    views: Mapping[str, Callable[[System, Params], Callable]] = dataclasses.field(default_factory=dict)
    role: str = ""
    trains_lora: bool = True


def check_grey_levels(field: str, source: Source, levels: int) -> None:
    """Raises ConfigError, which begins with `field`, unless the values of images are on `levels` grey levels."""
    with refusal(f"config.{field}"):
        check_levels(arrays(source, _CHECKED_EXAMPLES)["x"], levels)


def check_dequantized(parts: Parts) -> None:
    """Raises ConfigError if a density is trained on the grey levels themselves, where it would grow without bound."""
    data = parts.config.data
    key = "examples.dequantize" if "examples" in data else "dequantize"
    noisy = data.get("dequantize", False) or data.get("examples", {}).get("dequantize", False)
    if "levels" in facts(parts.config) and not noisy:
        raise ConfigError(
            f"config.data.{key}=False must be true for config.system.name={parts.config.system.name!r}: the "
            "density of data on grey levels would grow without bound"
        )


def check_likelihood_levels(parts: Parts, source: Source) -> None:
    """Raises ConfigError if a likelihood of grey levels is configured and the data is not on them."""
    name = parts.config.evaluation.likelihood.name
    if name != "none" and parts.likelihood_levels:
        check_grey_levels(f"evaluation.likelihood ({name})", source, parts.likelihood_levels)
