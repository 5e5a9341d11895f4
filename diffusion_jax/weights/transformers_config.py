"""Reading the config.json of a network of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def read(config: Mapping[str, Any], defaults: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """The values of `defaults` in a config.json of transformers; its other entries do not matter for the network.

    Raises ValueError, which names it, for another model_type, or a value of another type.
    """
    own = config.get("model_type", model_type)
    if own != model_type:
        raise ValueError(f"config.json: model_type={str(own)[:100]!r} must be {model_type!r} for this network")
    values = {name: config.get(name, default) for name, default in defaults.items()}
    for name, value in values.items():
        kinds = (int, float) if isinstance(defaults[name], float) else type(defaults[name])
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise ValueError(f"config.json: {name}={str(value)[:100]!r} must be like {defaults[name]!r}")
    return values
