"""Text as token ids: the bytes of UTF-8, so that no vocabulary has to be learned or loaded."""

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32

VOCABULARY = 257  # 256 bytes, after 0 for padding


_NAMED = 3  # texts in a warning
_LONGEST = 200  # characters of each


@dataclasses.dataclass
class Cuts:
    """Warns of texts that are cut at the length that a text encoder reads, the first time that this happens."""

    warned: bool = False

    def report(self, lost: Sequence[str], count: int, max_tokens: int) -> None:
        """`lost` are the ends of those of `count` texts that are cut."""
        if lost and not self.warned:
            self.warned = True
            ends = ", ".join(repr(end[:_LONGEST]) for end in lost[:_NAMED])
            more = ", ..." if len(lost) > _NAMED else ""
            warnings.warn(
                f"{len(lost)} of {count} texts are cut, because {max_tokens} tokens are read; lost: {ends}{more}",
                stacklevel=3,
            )


def tokens_of(texts: Sequence[str], max_tokens: int, cuts: Cuts | None = None) -> Int32[np.ndarray, "n max_tokens"]:
    """Each text as its bytes plus 1, cut at `max_tokens` and padded with 0. `cuts` warns of what is lost."""
    tokens = np.zeros((len(texts), max_tokens), np.int32)
    for row, text in zip(tokens, texts, strict=True):
        ids = np.frombuffer(text.encode()[:max_tokens], np.uint8)
        row[: len(ids)] = ids.astype(np.int32) + 1
    if cuts is not None:
        ends = (text.encode()[max_tokens:].decode(errors="ignore") for text in texts)
        cuts.report([end for end in ends if end], len(texts), max_tokens)
    return tokens


def texts_of(tokens: Int[np.ndarray, "n max_tokens"]) -> list[str]:
    """The texts that `tokens_of` made tokens of; what a cut has left of a character is dropped."""
    return [bytes(int(i) - 1 for i in row if i).decode(errors="ignore") for row in np.asarray(tokens)]
