"""One entry of the table of published values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """What is published for some variants.

    Attributes:
        paper: its name and arXiv id.
        variants: "FILE:VARIANT" of configs/.
        values: source -> key of the config -> value.
        differences: in sentences, how these variants differ from what the authors did, or what could not be confirmed.
    """

    paper: str
    variants: tuple[str, ...]
    values: Mapping[str, Mapping[str, Any]]
    differences: tuple[str, ...] = ()
