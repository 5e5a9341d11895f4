"""config.data as a source of examples that gives what a system reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.config.sections import ConfigError, check_type, construct, refusal, suggest
from diffusion_jax.data import tokenization
from diffusion_jax.data.derived import Derived
from diffusion_jax.data.load import COMMON, keys, opener
from diffusion_jax.data.source import Tokenize
from diffusion_jax.likelihood import dequantization
from diffusion_jax.types import Spec

Section = Mapping[str, Any] | ConfigDict


def spec(section: Section) -> Spec:
    """The shape and modality of one example x, without opening the data. Raises ConfigError."""
    check_type("data.name", section.get("name"), "str")
    try:
        return opener(section.get("name")).spec(section)
    except ValueError as error:  # an error of a key begins with it, as in "data.image_size=None must be ..."
        raise ConfigError(f"config.{error}" if str(error).startswith("data.") else f"config.data: {error}") from error


def facts(section: Section) -> Mapping[str, Any]:
    """What is known about the data without opening it, see `Source.facts`."""
    return opener(section.get("name")).facts(section)


def source(
    section: Section,
    *,
    wanted: Mapping[str, Spec],
    tokenize: Tokenize | None = None,
    derive: Derived | None = None,
    evaluation: bool = False,
) -> data.Source:
    """The training split, or the split that evaluation compares with. Opens files.

    Args:
        section: config.data.
        wanted: the entries of a batch that the system reads. "tokens" have the length of texts as their shape and the
            size of the vocabulary as their `values`, "label" the number of classes of the network.
        tokenize: texts -> ids of a system that has a tokenizer of its own; None for that of config.data.tokenizer, or
            for bytes.
        derive: makes the condition "image" from x where the data has none.
        evaluation: whether to open config.data.eval_split instead of split.

    Raises:
        ConfigError: the data cannot be read, is not of the size that config.data says, or does not give what is wanted.
    """
    name = section.get("name")
    check_type("data.name", name, "str")
    if tokenize is None:
        tokenize = tokenizer(section, wanted)
    elif section.get("tokenizer", ""):
        raise _no_vocabulary(section)
    taken = keys(name)
    arguments = {key: value for key, value in section.items() if value != "" and key not in COMMON}
    for key, value in arguments.items():
        if key not in taken:
            raise ConfigError(
                f"config.data.{key}={value!r}: {name!r} takes no {key!r}{suggest(key, list(taken))}; it takes "
                f"{', '.join(taken)}"
            )
    key, usual = ("eval_split", "test") if evaluation else ("split", "train")
    split = section.get(key) or usual
    check_type(f"data.{key}", split, "str")
    loaded = construct(
        {name: opener(name).open},
        "data",
        {"name": name, **arguments},
        **{"name": name, "split": split, "wanted": wanted, "tokenize": tokenize, "derive": derive},
    )
    _check(loaded, section, wanted)
    return loaded


def _check(loaded: data.Source, section: Section, wanted: Mapping[str, Spec]) -> None:
    """Refuse a source that does not give the examples and conditions that are wanted."""
    name, shape = section["name"], spec(section).shape
    if loaded.shape != shape:
        raise ConfigError(f"config.data: {name} holds examples of {loaded.shape}, not {shape}")
    for condition, entry in wanted.items():
        present = condition in loaded.entries
        if condition not in ("x", "label") and not (present and loaded.entries[condition].shape == entry.shape):
            raise ConfigError(
                f"config.network needs the condition {condition!r} of shape {entry.shape}, which config.data.name="
                f"{name!r} {f'gives as {loaded.entries[condition].shape}' if present else 'does not give'}"
            )
    num_classes = wanted["label"].values if "label" in wanted else 0
    if num_classes and not 0 < loaded.num_classes <= num_classes:
        raise ConfigError(
            f"config.network.num_classes={num_classes} must be 0 or at least the {loaded.num_classes} classes of {name}"
        )


def tokenizer(section: Section, wanted: Mapping[str, Spec]) -> tokenization.Tokenizer | None:
    """The tokenizer in config.data.tokenizer, for a network with a vocabulary of its own; None for bytes.

    Raises ConfigError: there is none in that folder, or its ids are not those of the network.
    """
    path, tokens = section.get("tokenizer", ""), wanted.get("tokens")
    if not path:
        return None
    if tokens is None or not tokens.values:
        raise _no_vocabulary(section)
    with refusal(f"config.data.tokenizer={path!r}"):
        loaded = tokenization.load_for_network(path, tokens.shape[0])
    if loaded.size > tokens.values:
        raise ConfigError(
            f"config.data.tokenizer={path!r} has {loaded.size} tokens but config.network.vocabulary={tokens.values}"
        )
    return loaded


def _no_vocabulary(section: Section) -> ConfigError:
    return ConfigError(
        f"config.data.tokenizer={section['tokenizer']!r} is for networks with a vocabulary of their own; a "
        "text-to-image model has config.system.tokenizer"
    )


def check_levels(source: data.Source, levels: int) -> None:
    """Refuse data whose first examples are not on the grid of `levels` grey levels in [-1, 1], with a ValueError."""
    dequantization.check_levels(data.arrays(source, 256)["x"], levels)


def drop_replaced(config: ConfigDict, original: ConfigDict) -> None:
    """Where a flag changed config.data.name, remove the arguments of the config file that the new data does not take.

    So that --config.data.name=latents works on a config whose data has options of images; arguments set by flags stay.
    """
    if config.data.get("name") == original.data.get("name"):
        return
    for key, value in original.data.items():
        if key not in (*COMMON, *keys(config.data.get("name"))) and config.data.get(key) == value:
            del config.data[key]
