"""From config.data to a source of examples that gives what a system reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.config.sections import ConfigError, check_type, construct, suggest
from diffusion_jax.data.derived import Derived
from diffusion_jax.data.load import COMMON, Opener, keys, opener
from diffusion_jax.data.source import Tokenize
from diffusion_jax.types import Spec


def spec(config: ConfigDict) -> Spec:
    """The shape and modality of one example, from config.data alone: the data is not opened. Raises ConfigError."""
    try:
        return _opener(config).spec(config.data)
    except ValueError as error:  # an error of a key begins with it, as in "data.image_size=None must be ..."
        raise ConfigError(f"config.{error}" if str(error).startswith("data.") else f"config.data: {error}") from error


def facts(config: ConfigDict) -> Mapping[str, Any]:
    """What is known about the data without opening it, see `Source.facts`. Raises ConfigError."""
    return _opener(config).facts(config.data)


def _opener(config: ConfigDict) -> Opener:
    check_type("data.name", config.data.get("name"), "str")
    return opener(config.data.name)


def source(
    config: ConfigDict,
    wanted: Mapping[str, Spec],
    *,
    tokenize: Tokenize | None = None,
    derive: Derived | None = None,
    evaluation: bool = False,
) -> data.Source:
    """The training split of the data set, or the split that evaluation compares with. Opens files; ConfigError.

    `wanted` is what each example must have, by name, see `types.System.batch`. `tokenize` makes ids of texts (None: of
    their bytes), `derive` the condition "image" of x where the data has none.
    """
    name, made = config.data.name, _opener(config)
    arguments = {key: value for key, value in config.data.items() if value != "" and key not in COMMON}
    taken = keys(name)
    for key, value in arguments.items():
        if key not in taken:
            raise ConfigError(
                f"config.data.{key}={value!r}: {name!r} takes no {key!r}{suggest(key, list(taken))}; it takes "
                f"{', '.join(taken)}"
            )
    key, usual = ("eval_split", "test") if evaluation else ("split", "train")
    split = config.data.get(key) or usual
    check_type(f"data.{key}", split, "str")
    given = {"name": name, "split": split, "wanted": wanted, "tokenize": tokenize, "derive": derive}
    loaded = construct({name: made.open}, "data", {"name": name, **arguments}, **given)
    _check(loaded, name, wanted)
    return loaded


def _check(loaded: data.Source, name: str, wanted: Mapping[str, Spec]) -> None:
    """Refuse a source that does not give the examples and conditions that are wanted."""
    if loaded.shape != wanted["x"].shape:
        raise ConfigError(f"config.data: {name} holds examples of {loaded.shape}, not {wanted['x'].shape}")
    for condition, entry in wanted.items():
        present = condition in loaded.entries
        if condition != "label" and not (present and loaded.entries[condition].shape == entry.shape):
            raise ConfigError(
                f"config.network needs the condition {condition!r} of shape {entry.shape}, which config.data.name="
                f"{name!r} {f'gives as {loaded.entries[condition].shape}' if present else 'does not give'}"
            )
    num_classes = wanted["label"].values if "label" in wanted else 0
    if num_classes and not 0 < loaded.num_classes <= num_classes:
        raise ConfigError(
            f"config.network.num_classes={num_classes} must be 0 or at least the {loaded.num_classes} classes of {name}"
        )


def drop_replaced(config: ConfigDict, original: ConfigDict) -> None:
    """Where a flag changed config.data.name, remove the arguments of the config file that the new data does not take.

    So that --config.data.name=latents works on a config whose data has options of images; arguments set by flags stay.
    """
    name = config.data.get("name")
    if name == original.data.get("name"):
        return
    for key, value in original.data.items():
        if key not in (*COMMON, *keys(name)) and config.data.get(key) == value:
            del config.data[key]
