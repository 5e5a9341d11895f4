"""Text as token ids: the bytes of UTF-8, so that no vocabulary has to be learned or loaded."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32

VOCABULARY = 257  # 256 bytes, after 0 for padding


def tokens_of(texts: Sequence[str], max_tokens: int) -> Int32[np.ndarray, "n max_tokens"]:
    """Each text as its bytes plus 1, cut at `max_tokens` and padded with 0."""
    tokens = np.zeros((len(texts), max_tokens), np.int32)
    for row, text in zip(tokens, texts, strict=True):
        ids = np.frombuffer(text.encode()[:max_tokens], np.uint8)
        row[: len(ids)] = ids.astype(np.int32) + 1
    return tokens


def texts_of(tokens: Int[np.ndarray, "n max_tokens"]) -> list[str]:
    """The texts that `tokens_of` made tokens of; what a cut has left of a character is dropped."""
    return [bytes(int(i) - 1 for i in row if i).decode(errors="ignore") for row in np.asarray(tokens)]
