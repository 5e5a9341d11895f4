"""Building objects from sections of a config, with readable refusals of what does not fit."""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

# Python's types in the words of a message, with what is accepted for each.
TYPES = {
    "bool": ("true or false", bool),
    "int": ("an integer", int),
    "float": ("a number", (int, float)),
    "str": ("a string", str),
    "tuple": ("a tuple, such as (1, 2)", (tuple, list)),
}


class ConfigError(ValueError):
    """A config that cannot work; the message names the field, its value and what is allowed."""


def construct(
    table: Mapping[str, Callable[..., Any]], field: str, section: Mapping[str, Any] | ConfigDict, **given: Any
) -> Any:
    """table[section.name](**rest of section, **given), where of `given` only what the constructor takes is passed.

    Raises ConfigError for a name that is not in the table, for keywords that the constructor does not take and for
    values of another type than it declares.
    """
    arguments = {key: value for key, value in section.items() if key != "name"}
    constructor = lookup(table, f"{field}.name", section.get("name"))
    # The metaclass of NNX modules hides the signature of a class, not that of its __init__.
    signature = inspect.signature(constructor.__init__ if isinstance(constructor, type) else constructor)
    allowed = [name for name in signature.parameters if name != "self"]
    for key, value in arguments.items():
        if key not in allowed:
            choices = [name for name in allowed if name not in given]
            raise ConfigError(
                f"config.{field}.{key}={value!r}: {section['name']} takes no {key!r}"
                f"{suggest(key, choices)}; it takes {', '.join(choices) or 'nothing'}"
            )
        check_type(f"{field}.{key}", value, _declared_type(signature.parameters[key]))
    given = {key: value for key, value in given.items() if key in allowed}
    try:
        return constructor(**{**given, **{k: _plain(v) for k, v in arguments.items()}})
    except ConfigError:  # of a section within this one
        raise
    except (TypeError, ValueError, ArithmeticError, MemoryError) as error:
        raise ConfigError(f"config.{field} ({section['name']}): {str(error) or type(error).__name__}") from error


def lookup(table: Mapping[str, Any], field: str, name: Any) -> Any:
    """table[name], or a ConfigError that lists the names."""
    if name not in table:
        raise ConfigError(
            f"config.{field}={name!r} is unknown{suggest(str(name), list(table))}; choose one of {', '.join(table)}"
        )
    return table[name]


def check_type(field: str, value: Any, name: str) -> None:
    """Raises ConfigError unless `value` is of the type `name`, where that is one of `TYPES`."""
    words, types = TYPES.get(name, ("", object))
    if not isinstance(value, types) or (isinstance(value, bool) and name in ("int", "float")):
        raise ConfigError(f"config.{field}={value!r} must be {words}")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ConfigError(
            f"config.{field} must be {words or 'a number'} of at most 63 bits, not of {value.bit_length()}"
        )


def _declared_type(parameter: inspect.Parameter) -> str:
    """The name of the type that a parameter is annotated with, or has by default where it is annotated as Any."""
    annotation = parameter.annotation
    if annotation is Any and isinstance(parameter.default, float):
        return "float"
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")


def drop_replaced(config: ConfigDict, original: ConfigDict) -> None:
    """Where a flag changed a section's `name`, remove the arguments that the config file gave to the former name.

    So that --config.solver.name=heun works on a config whose solver is ddim with an eta; arguments set by flags stay.
    Data sets and optimizers all take the same arguments, and keep them.
    """
    for key, section in original.items():
        if not isinstance(section, ConfigDict) or not isinstance(config.get(key), ConfigDict):
            continue
        if key in ("data", "optimizer"):
            continue
        drop_replaced(config[key], section)
        if "name" in section and config[key].get("name") != section.name:
            for name, value in section.items():
                if name != "name" and config[key].get(name) == value:
                    del config[key][name]


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"section.key": value} of nested mappings."""
    if not isinstance(config, dict | ConfigDict):
        return {prefix: list(config) if isinstance(config, tuple) else config}
    return {k: v for key in config for k, v in flatten(config[key], f"{prefix}.{key}" if prefix else key).items()}


def changes(config: ConfigDict, saved: dict[str, Any]) -> list[str]:
    """Lines "config.key is A here and B there" for every key in which the two differ."""
    here, there = flatten(config), flatten(saved)
    return [
        f"config.{key} is {here.get(key)!r} now and was {there.get(key)!r}"
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key)
    ]


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ConfigDict) else value


def suggest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


@contextlib.contextmanager
def refusal(field: str) -> Iterator[None]:
    """Turn an error about the user's input into a ConfigError that says where the input came from."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise ConfigError(f"{field}: {error}") from error
