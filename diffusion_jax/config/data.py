"""The data of a config: the spec of an example, and sources with the entries that a system reads."""

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
    """Spec of one example, from config.data without opening the data. Raises ConfigError."""
    try:
        return _opener(config).spec(config.data.to_dict())
    except ValueError as error:  # may begin with a key, as in "data.image_size=None must be ..."
        raise ConfigError(f"config.{error}" if str(error).startswith("data.") else f"config.data: {error}") from error


def facts(config: ConfigDict) -> Mapping[str, Any]:
    """Facts about the data, from config.data without opening the data, see `Source.facts`. Raises ConfigError."""
    return _opener(config).facts(config.data.to_dict())


def _opener(config: ConfigDict) -> Opener:
    check_type("data.name", config.data.get("name"), "str")
    return opener(config.data.name)


def source(
    config: ConfigDict,
    specs: Mapping[str, Spec],
    *,
    tokenize: Tokenize | None = None,
    derive: Derived | None = None,
    evaluation: bool = False,
    training: str | None = None,
) -> data.Source:
    """Opens the training split of the data set, or with `evaluation` the held-out split.

    Names of classes have the numbers of the split `training`, by default config.data.split.
    `specs` are the entries that each example must have, see `types.System.batch`. `tokenize` maps texts to ids (None:
    their bytes), `derive` computes conditions such as "image" from x if the data has none. Raises ConfigError.
    """
    name, kind = config.data.name, _opener(config)
    arguments = {key: value for key, value in config.data.items() if value != "" and key not in COMMON}
    allowed = keys(name)
    for key, value in arguments.items():
        if key not in allowed:
            raise ConfigError(
                f"config.data.{key}={value!r}: {name!r} takes no {key!r}{suggest(key, list(allowed))}; it takes "
                f"{', '.join(allowed)}"
            )
    key, usual = ("eval_split", "test") if evaluation else ("split", "train")
    split = config.data.get(key) or usual
    check_type(f"data.{key}", split, "str")
    context = {"name": name, "split": split, "wanted": specs, "tokenize": tokenize, "derive": derive}
    context["training"] = config.data.get("split") or "train" if training is None else training
    try:
        opened = construct({name: kind.open}, "data", {"name": name, **arguments}, **context)
    except ConfigError as error:
        held_out = f" (the held-out split, config.data.eval_split={split!r})" if evaluation else ""
        raise ConfigError(f"{error}{held_out}") from error
    _check(opened, name, specs)
    return opened


def _check(opened: data.Source, name: str, specs: Mapping[str, Spec]) -> None:
    """Raises ConfigError unless a source has the entries `specs`."""
    if opened.shape != specs["x"].shape:
        raise ConfigError(f"config.data: {name} holds examples of {opened.shape}, not {specs['x'].shape}")
    for condition, entry in specs.items():
        present = condition in opened.entries
        if condition != "label" and not (present and opened.entries[condition].shape == entry.shape):
            raise ConfigError(
                f"config.network needs the condition {condition!r} of shape {entry.shape}, which config.data.name="
                f"{name!r} {f'gives as {opened.entries[condition].shape}' if present else 'does not give'}"
            )
    num_classes = specs["label"].values if "label" in specs else 0
    if num_classes and not 0 < opened.num_classes <= num_classes:
        raise ConfigError(
            f"config.network.num_classes={num_classes} must be 0 or at least the {opened.num_classes} classes of {name}"
            f"{': ' + opened.facts['unlabelled'] if 'unlabelled' in opened.facts else ''}"
        )


def drop_replaced(config: ConfigDict, original: ConfigDict) -> None:
    """If a flag changed config.data.name, remove the arguments of the config file that the new data set does not take.

    So --config.data.name=latents works on a config with options of images. Arguments that were set by flags stay.
    """
    name = config.data.get("name")
    if name == original.data.get("name"):
        return
    for key, value in original.data.items():
        if key not in (*COMMON, *keys(name)) and config.data.get(key) == value:
            del config.data[key]
