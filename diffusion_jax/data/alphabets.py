"""Alphabets: texts as one id per character or byte, and back."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

ASCII = "\n" + "".join(map(chr, range(32, 127)))  # a new line, and what can be printed
BYTES = "bytes"
HIDDEN = "_"  # a character of a request that is to be drawn
_SHOWN = 10  # characters in an error message


@dataclasses.dataclass(frozen=True)
class Alphabet:
    """Texts as ids of characters, their places in `characters`; "bytes" for those of UTF-8.

    A character outside becomes `unknown`, a character of the alphabet; without one it is an error.

    Raises:
        ValueError: fewer than two characters, one twice, or an `unknown` that is not one of them.
    """

    characters: str = ASCII
    unknown: str = ""

    def __post_init__(self) -> None:
        if self.characters == BYTES:
            return
        if len(set(self.characters)) != len(self.characters) or len(self.characters) < 2:
            raise ValueError(f"alphabet={self.characters!r} must be at least two different characters, or 'bytes'.")
        if self.unknown and (len(self.unknown) != 1 or self.unknown not in self.characters):
            raise ValueError(f"unknown={self.unknown!r} must be one character of the alphabet, or ''.")

    @property
    def size(self) -> int:
        return 256 if self.characters == BYTES else len(self.characters)

    @functools.cached_property
    def _ids(self) -> Int32[np.ndarray, "codes"]:
        """The id of each code point, -1 for those outside."""
        codes = np.frombuffer(self.characters.encode("utf-32-le"), np.uint32)
        ids = np.full(int(codes.max()) + 2, -1, np.int32)
        ids[codes] = np.arange(len(codes))
        return ids

    def encode(self, text: str) -> Int32[np.ndarray, "n"]:
        """The ids of a text. Raises ValueError, which names them, for characters outside of the alphabet."""
        if self.characters == BYTES:
            return np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        ids = self._ids[np.minimum(codes, len(self._ids) - 1)]
        outside = ids < 0
        if outside.any():
            if not self.unknown:
                strange = "".join(sorted({chr(code) for code in codes[outside]}))
                raise ValueError(
                    f"the text has {int(outside.sum())} characters that are not in the alphabet, such as "
                    f"{strange[:_SHOWN]!r}; data.alphabet lists the characters, data.unknown replaces others, and "
                    "data.alphabet='bytes' takes every text."
                )
            ids = np.where(outside, self._ids[ord(self.unknown)], ids)
        return ids

    def decode(self, ids: Int[np.ndarray, "n length"]) -> list[str]:
        """The texts of rows of ids; what is no id, such as a mask, is written as "_"."""
        if self.characters == BYTES:
            kept = np.where((ids >= 0) & (ids < 256), ids, ord(HIDDEN))
            return [bytes(row.astype(np.uint8).tolist()).decode(errors="replace") for row in kept]
        table = np.array([*self.characters, HIDDEN])
        return ["".join(table[np.where((row >= 0) & (row < self.size), row, self.size)]) for row in np.asarray(ids)]


def hidden_text(encode: Callable[[str], np.ndarray], length: int, texts: Any) -> Int32[np.ndarray, "n length"]:
    """The ids of texts of a request, -1 where a "_" stands or where a text ends before `length`.

    Raises ValueError for a text that is longer, or has no character to draw.
    """
    rows = np.full((len(texts), length), -1, np.int32)
    for row, text in zip(rows, texts, strict=True):
        at = 0
        for i, part in enumerate(text.split(HIDDEN)):
            ids = encode(part)
            at += i > 0
            if at + len(ids) > length:
                raise ValueError(f"the text {text[:40]!r} has more than {length} tokens, the length of a sequence")
            row[at : at + len(ids)] = ids
            at += len(ids)
        if (row >= 0).all():
            raise ValueError(f"the text {text[:40]!r} has nothing to draw; write '_' for each hidden character")
    return rows
