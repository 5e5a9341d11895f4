"""Reading the config.json of a network of PyTorch: options that exist here become arguments, others are refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

_EMPTY = (None, False, (), [], {}, "")


def options(
    config: Mapping[str, Any], defaults: Mapping[str, Any], fixed: Mapping[str, tuple[Any, ...]], network: str
) -> dict[str, Any]:
    """The values of the options in `defaults`, with tuples instead of JSON's lists.

    Args:
      config: from a config.json. Entries that begin with "_" are ignored: they say which library wrote it.
      defaults: option -> its value in a config without it. A value must be of the same type; whole numbers also
        count as floats, options that are None by default may also be whole numbers, and sizes also pairs of them.
      fixed: option -> the values that our network supports, the first of them being the default.
      network: its name in error messages.

    Raises ValueError, which names option and value, for an option or value that our network does not support.
    """
    values = dict(defaults)
    for name, value in config.items():
        if name in defaults:
            values[name] = _checked(name, value, defaults[name])
        elif name in fixed:
            if value not in fixed[name]:
                allowed = " or ".join(repr(choice) for choice in fixed[name])
                raise ValueError(f"config.json: {name}={value!r} must be {allowed} for our {network}")
        elif not name.startswith("_") and value not in _EMPTY:
            raise ValueError(f"config.json: {name}={str(value)[:100]!r} is not supported by our {network}")
    return values


def square(value: Any, name: str = "sample_size") -> int:
    """The side of a size that may be given as [height, width]. Raises ValueError unless it is a square."""
    sides = set(value) if isinstance(value, tuple) and value else {value}
    side = sides.pop()
    if sides or isinstance(side, bool) or not isinstance(side, int) or side < 1:
        raise ValueError(f"config.json: {name}={value!r} must be the side of a square")
    return side


def with_defaults(constructor: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`arguments` of a network, completed by the defaults of its constructor; None for an argument without one."""
    parameters = inspect.signature(constructor.__init__).parameters
    defaults = {
        name: None if entry.default is inspect.Parameter.empty else entry.default
        for name, entry in parameters.items()
        if name not in ("self", "rngs")
    }
    return defaults | {name: value for name, value in arguments.items() if name in defaults}


def refuse_changed(arguments: Mapping[str, Any], allowed: Mapping[str, Any], theirs: str) -> None:
    """Raises ValueError for an argument of ours that is not as in `allowed` and has no counterpart in `theirs`."""
    for name, value in allowed.items():
        if arguments[name] != value:
            raise ValueError(f"{name}={arguments[name]!r} must be {value!r}: {theirs} has no such option")


def _checked(name: str, value: Any, default: Any) -> Any:
    if isinstance(value, list):
        value = tuple(value)
    kinds: tuple[type, ...] = (int, type(None)) if default is None else (type(default),)
    if isinstance(default, float):
        kinds = (int, float)
    elif name.endswith("_size"):
        kinds = (*kinds, tuple)
    fits = isinstance(value, kinds) and (isinstance(default, bool) or not isinstance(value, bool))
    if isinstance(value, tuple):
        element = type(default[0]) if default else int
        fits &= bool(value) and all(isinstance(v, element) and not isinstance(v, bool) for v in value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        fits &= 0 <= value < 2**31
    if not fits:
        described = "a number" if default is None else f"like {default!r}"
        raise ValueError(f"config.json: {name}={str(value)[:100]!r} must be {described}")
    return value
