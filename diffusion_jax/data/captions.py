"""Text as token ids: the bytes of UTF-8, so that no vocabulary has to be learned or loaded."""

import dataclasses
import re
import types
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int, Int32

VOCABULARY = 257  # 256 bytes, after 0 for padding
Added = Mapping[str, Sequence[int]]  # placeholder tokens, each with the ids of its vectors
NO_TOKENS: Added = types.MappingProxyType({})

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


def tokens_of(
    texts: Sequence[str], max_tokens: int, cuts: Cuts | None = None, added: Added = NO_TOKENS
) -> Int32[np.ndarray, "n max_tokens"]:
    """Each text as its bytes plus 1, cut at `max_tokens` and padded with 0. `cuts` warns of what is lost.

    Where a text has one of the tokens `added`, its ids stand instead of its bytes.
    """
    tokens = np.zeros((len(texts), max_tokens), np.int32)
    lost = []
    for row, text in zip(tokens, texts, strict=True):
        ids = _ids(text, added)
        row[: len(ids)] = ids[:max_tokens]
        lost += texts_of([ids[max_tokens:]], added) if len(ids) > max_tokens else []
    if cuts is not None:
        cuts.report([end for end in lost if end], len(texts), max_tokens)
    return tokens


def texts_of(tokens: Int[np.ndarray, "n max_tokens"] | Sequence[Sequence[int]], added: Added = NO_TOKENS) -> list[str]:
    """The texts that `tokens_of` made tokens of; what a cut has left of a character is dropped."""
    named = {first: token for token, (first, *_) in added.items()}
    rest = {i for _, (_, *others) in added.items() for i in others}
    texts = []
    for row in tokens:
        kept = (int(i) for i in row if i and int(i) not in rest)
        parts = (named[i].encode() if i in named else bytes([i - 1]) for i in kept)
        texts.append(b"".join(parts).decode(errors="ignore"))
    return texts


def any_of(added: Added) -> str:
    """A regular expression for the tokens `added`, the longer ones first."""
    return "|".join(re.escape(token) for token in sorted(added, key=len, reverse=True))


def _ids(text: str, added: Added) -> list[int]:
    parts = re.split(f"({any_of(added)})", text) if added else [text]
    return [i for n, part in enumerate(parts) for i in (added[part] if n % 2 else (b + 1 for b in part.encode()))]
