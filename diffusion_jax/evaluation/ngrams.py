"""n-gram models of tokens: code lengths of texts, and what is hidden in them, without a network."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Int

Windows = Int[np.ndarray, "n length"]
_LARGEST = 2**21  # trigrams of which a table is made
_CHUNK = 16  # windows whose messages are kept at once


class NGram:
    """An interpolated n-gram model with Witten-Bell smoothing, of `order` n, from sequences of ids below `size`.

    p(w | h) = (c(h w) + T(h) p(w | h')) / (c(h) + T(h)), where c counts, T(h) is the number of different tokens after
    h, and h' is h without its first token; the shortest is uniform (Witten and Bell, 1991). Sequences that end with the
    token `pad` and are filled with it count up to and with the first one.

    Raises ValueError unless 1 <= order and size^order fits into 63 bits.
    """

    def __init__(self, sequences: Windows, order: int, size: int, pad: int | None = None):
        if order < 1 or order * math.log2(size) > 62:
            raise ValueError(f"order={order} must be at least 1, and {size}^order fit into 63 bits")
        self.order, self.size, self.pad = order, size, pad
        kept = counted(sequences, pad)
        self._tables = []
        for m in range(1, order + 1):
            codes, counts = np.unique(_codes(sequences, m, size)[kept[:, m - 1 :]], return_counts=True)
            contexts, first = np.unique(codes // size, return_index=True)
            totals = np.add.reduceat(counts, first)
            kinds = np.diff(np.append(first, len(codes)))
            self._tables.append((codes, counts, contexts, totals, kinds))

    def prob(self, windows: Windows) -> Float[np.ndarray, "n length"]:
        """p of every token given those before it in its window, of which it takes `order` - 1 at most."""
        windows = np.asarray(windows, np.int64)
        p = np.full(windows.shape, 1 / self.size)
        for m, (codes, counts, contexts, totals, kinds) in enumerate(self._tables, start=1):
            if m > windows.shape[1]:
                break
            here = _codes(windows, m, self.size)
            c, seen = _lookup(codes, counts, here), _lookup(contexts, totals, here // self.size)
            t = _lookup(contexts, kinds, here // self.size)
            lower = p[:, m - 1 :]
            p[:, m - 1 :] = np.where(seen > 0, (c + t * lower) / np.maximum(seen + t, 1), lower)
        return p

    def bits(self, windows: Windows) -> float:
        """Mean code length in bits per token, of windows that know nothing of what is before them."""
        return float(-np.log2(self.prob(windows))[counted(windows, self.pad)].mean())

    def hidden(self, known: Windows) -> Float[np.ndarray, "n length size"]:
        """p of every token of a window given those that are known, -1 being unknown, by forward-backward.

        Exact under the model, whose order must be 2 or 3. Raises ValueError for another order, or too large a table.
        """
        if self.order not in (2, 3) or self.size**self.order > _LARGEST:
            raise ValueError(f"order={self.order} must be 2 or 3, and {self.size}^order at most {_LARGEST}")
        K = self.size
        trigrams = np.stack(np.meshgrid(*[np.arange(K)] * 3, indexing="ij"), -1).reshape(-1, 3)
        p = self.prob(trigrams)
        step, start = p[:, 2].reshape(K, K, K), (p[:, 0] * p[:, 1]).reshape(K, K, K)[:, :, 0]
        chunks = np.array_split(np.asarray(known), -(-len(known) // _CHUNK))
        return np.concatenate([self._smoothed(chunk, start, step) for chunk in chunks])

    def _smoothed(self, known: Windows, start: np.ndarray, step: np.ndarray) -> Float[np.ndarray, "n length size"]:
        """Forward-backward over pairs of tokens, whose first law is `start` [K, K] and whose next token has `step`."""
        K, (n, length) = self.size, known.shape
        allowed = np.where(known[..., None] < 0, 1.0, np.eye(K)[np.maximum(known, 0)])  # [n, length, K]
        message = start * allowed[:, 0, :, None] * allowed[:, 1, None, :]
        forward = [_scaled(message)]
        for i in range(2, length):
            forward.append(_scaled(_forward(forward[-1], step, allowed[:, i])))
        backward = [np.ones((n, K, K))]
        for i in range(length - 1, 1, -1):
            backward.append(_scaled(_backward(backward[-1] * allowed[:, i][:, None, :], step)))
        posterior = [_scaled(f * b) for f, b in zip(forward, backward[::-1], strict=True)]
        return np.stack([posterior[0].sum(2), *(p.sum(1) for p in posterior)], axis=1)


def _forward(message: np.ndarray, step: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """sum_a m[a, b] p(c | a, b) for every pair (b, c), window by window: most messages have few pairs."""
    out = np.empty_like(message)
    for row, m in enumerate(message):
        a = np.flatnonzero(m.any(1))
        out[row] = np.einsum("ab,abc->bc", m[a], step[a]) * allowed[row]
    return out


def _backward(message: np.ndarray, step: np.ndarray) -> np.ndarray:
    """sum_c p(c | a, b) m[b, c] for every pair (a, b)."""
    out = np.empty_like(message)
    for row, m in enumerate(message):
        c = np.flatnonzero(m.any(0))
        out[row] = np.einsum("abc,bc->ab", step[:, :, c], m[:, c])
    return out


def _scaled(message: np.ndarray) -> np.ndarray:
    return message / message.sum((1, 2), keepdims=True)


def counted(windows: Windows, pad: int | None) -> Bool[np.ndarray, "n length"]:
    """Whether a token is before or at the first `pad` of its window."""
    is_pad = np.zeros(np.shape(windows), bool) if pad is None else np.asarray(windows) == pad
    return np.cumsum(is_pad, axis=1) - is_pad == 0


def _codes(sequences: np.ndarray, m: int, size: int) -> Int[np.ndarray, "n places"]:
    """The number of every m-gram of the sequences."""
    sequences = np.asarray(sequences, np.int64)
    count = sequences.shape[1] - m + 1
    codes = np.zeros((len(sequences), max(count, 0)), np.int64)
    for i in range(m):
        codes = codes * size + sequences[:, i : i + count]
    return codes


def _lookup(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)


def token_entropy(windows: Windows, pad: int | None = None) -> float:
    """The entropy in bits of the tokens of one window, averaged over windows: low for repetitive samples."""
    rows = []
    for row, kept in zip(np.asarray(windows), counted(windows, pad), strict=True):
        p = np.unique(row[kept], return_counts=True)[1] / kept.sum()
        rows.append(-(p * np.log2(p)).sum())
    return float(np.mean(rows))


def seen(windows: Windows, train: Int[np.ndarray, "m length"], order: int, size: int, pad: int | None = None) -> float:
    """The share of n-grams of the windows that occur in `train`."""
    known, found = (_codes(x, order, size)[counted(x, pad)[:, order - 1 :]] for x in (train, windows))
    return float(np.isin(found, known).mean())
