"""Construct objects from sections of a config; errors name the key, its value and what is allowed."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

# Types by name -> (description in an error message, accepted Python types).
TYPES = {
    "bool": ("true or false", bool),
    "int": ("an integer", int),
    "float": ("a number", (int, float)),
    "str": ("a string", str),
    "tuple": ("a tuple, such as (1, 2)", (tuple, list)),
}


class ConfigError(ValueError):
    """An invalid config. The message names the key, its value and what is allowed."""


def construct(
    table: Mapping[str, Callable[..., Any]], field: str, section: Mapping[str, Any] | ConfigDict, **context: Any
) -> Any:
    """Returns `table[section.name](**other keys of section, **context)`.

    Only those entries of `context` are passed that the constructor has parameters for. Raises ConfigError for an
    unknown name, for keys that are no parameters of the constructor, for values of a type that it does not declare, and
    for its own errors.
    """
    arguments = {key: value for key, value in section.items() if key != "name"}
    constructor = lookup(table, f"{field}.name", section.get("name"))
    # The metaclass of NNX modules hides the signature of a class, not that of its __init__.
    signature = inspect.signature(constructor.__init__ if isinstance(constructor, type) else constructor)
    allowed = [name for name in signature.parameters if name != "self"]
    for key, value in arguments.items():
        if key not in allowed:
            choices = [name for name in allowed if name not in context]
            raise ConfigError(
                f"config.{field}.{key}={value!r}: {section['name']} takes no {key!r}"
                f"{suggest(key, choices)}; it takes {', '.join(choices) or 'nothing'}"
            )
        check_type(f"{field}.{key}", value, _declared_type(signature.parameters[key]))
        if isinstance(value, float) and not math.isfinite(value) and value != signature.parameters[key].default:
            raise ConfigError(f"config.{field}.{key}={value!r} must be a finite number")
    context = {key: value for key, value in context.items() if key in allowed}
    try:
        return constructor(**{**context, **{k: _plain(v) for k, v in arguments.items()}})
    except ConfigError:  # of a section within this one
        raise
    except (TypeError, ValueError, ArithmeticError, MemoryError) as error:
        raise ConfigError(f"config.{field} ({section['name']}): {str(error) or type(error).__name__}") from error


def lookup(table: Mapping[str, Any], field: str, name: Any) -> Any:
    """Returns table[name]. Raises ConfigError, which lists the names, for an unknown one."""
    if name not in table:
        raise ConfigError(
            f"config.{field}={name!r} is unknown{suggest(str(name), list(table))}; choose one of {', '.join(table)}"
        )
    return table[name]


def check_type(field: str, value: Any, name: str) -> None:
    """Raises ConfigError unless `value` has the type `name`. Types that are not in `TYPES` are not checked."""
    words, types = TYPES.get(name, ("", object))
    if not isinstance(value, types) or (isinstance(value, bool) and name in ("int", "float")):
        raise ConfigError(f"config.{field}={value!r} must be {words}")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ConfigError(
            f"config.{field} must be {words or 'a number'} of at most 63 bits; it has {value.bit_length()}"
        )


def _declared_type(parameter: inspect.Parameter) -> str:
    """Name of the type that a parameter is annotated with; for Any with a float default: "float"."""
    annotation = parameter.annotation
    if annotation is Any and isinstance(parameter.default, float):
        return "float"
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")


def drop_replaced(config: ConfigDict, original: ConfigDict) -> None:
    """In sections whose `name` was changed by a flag, remove the arguments of the former name from the config file.

    So --config.solver.name=heun works on a config with the solver ddim and an eta. Arguments that were set by flags
    stay, and so do those of `data` and `optimizer`, which are common to all names.
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
    """Flatten nested mappings to {"section.key": value}."""
    if not isinstance(config, dict | ConfigDict):
        return {prefix: list(config) if isinstance(config, tuple) else config}
    return {k: v for key in config for k, v in flatten(config[key], f"{prefix}.{key}" if prefix else key).items()}


def changes(config: ConfigDict, saved: dict[str, Any]) -> list[str]:
    """Lines "config.key is A now and was B" for each key in which `config` and `saved` differ."""
    here, there = flatten(config), flatten(saved)
    return [
        f"config.{key} is {here.get(key)!r} now and was {there.get(key)!r}"
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key)
    ]


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ConfigDict) else value


def suggest(name: str, names: list[str]) -> str:
    """Returns " (did you mean '...'?)" with the most similar of `names`; "" if none is similar."""
    close = difflib.get_close_matches(name, names, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_sizes(constructor: Callable[..., Any], field: str, section: Mapping[str, Any]) -> None:
    """Raises ConfigError unless the arguments of a network in `section` are in range.

    Integers, and those in tuples, must be positive if their defaults are or there is no default, else at least 0;
    those named NAME_id are not checked. A dropout must be in [0, 1).
    """
    parameters = inspect.signature(constructor.__init__).parameters
    for key, value in section.items():
        if key not in parameters or key.endswith("_id"):
            continue
        default = parameters[key].default
        if key == "dropout" and isinstance(value, int | float) and not 0 <= value < 1:
            raise ConfigError(f"config.{field}.dropout={value!r} must be in [0, 1)")
        numbers, defaults = (
            [n for n in (entry if isinstance(entry, tuple | list) else (entry,)) if type(n) is int]
            for entry in (value, default)
        )
        least = int(default is inspect.Parameter.empty or min(defaults, default=0) > 0)
        if numbers and min(numbers) < least:
            raise ConfigError(f"config.{field}.{key}={value!r} must be at least {least}")


@contextlib.contextmanager
def refusal(field: str = "") -> Iterator[None]:
    """Context manager that turns errors about the user's input into ConfigErrors that begin with `field`, if any."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise ConfigError(f"{field}: {error}" if field else str(error)) from error
