"""n-gram models against direct counts and brute-force sums."""

import itertools

import numpy as np
import pytest

from diffusion_jax.evaluation import ngrams
from diffusion_jax.evaluation.ngrams import NGram

RNG = np.random.default_rng(0)
TRAIN = RNG.choice(4, size=(40, 12), p=[0.5, 0.3, 0.15, 0.05])


def by_counting(history, token, order, size):
    """Witten-Bell by recursion over the history."""
    if order == 0:
        return 1 / size
    lower = by_counting(history[1:], token, order - 1, size)
    grams = [tuple(row[i : i + order]) for row in TRAIN for i in range(len(row) - order + 1)]
    after = [gram[-1] for gram in grams if gram[:-1] == tuple(history)]
    if not after:
        return lower
    kinds = len(set(after))
    return (after.count(token) + kinds * lower) / (len(after) + kinds)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_are_those_of_the_recursion(order):
    windows = RNG.integers(0, 5, size=(3, 6))
    p = NGram(TRAIN, order, 5).prob(windows)
    for row, window in zip(p, windows, strict=True):
        for i, found in enumerate(row):
            m = min(order, i + 1)
            assert found == pytest.approx(by_counting(window[i - m + 1 : i].tolist(), window[i], m, 5))
    every = np.array([[1, 0, k] for k in range(5)])
    assert NGram(TRAIN, order, 5).prob(every)[:, 2].sum() == pytest.approx(1)


@pytest.mark.parametrize("order", [2, 3])
def test_forward_backward_is_the_sum_over_all_sequences(order):
    model, known = NGram(TRAIN, order, 4), np.array([[0, -1, -1, 2, -1, 1], [-1, 1, 0, -1, -1, -1]])
    found = model.hidden(known)
    for row, window in zip(found, known, strict=True):
        free = np.flatnonzero(window < 0)
        total = np.zeros((len(window), 4))
        for tokens in itertools.product(range(4), repeat=len(free)):
            full = window.copy()
            full[free] = tokens
            total[np.arange(len(full)), full] += model.prob(full[None]).prod()
        np.testing.assert_allclose(row, total / total.sum(1, keepdims=True), atol=1e-9)


def test_bits_of_uniform_tokens_and_entropy_of_repetitive_ones():
    uniform = NGram(np.arange(4)[None].repeat(1000, 0), 1, 4)
    assert uniform.bits(np.array([[0, 1, 2, 3]])) == pytest.approx(2, abs=1e-3)
    assert ngrams.token_entropy(np.zeros((3, 8), int)) == 0
    assert ngrams.token_entropy(np.array([[0, 1, 2, 3]])) == 2
    assert ngrams.seen(np.array([[0, 1, 2, 4]]), np.array([[0, 1, 2, 3]]), 3, 5) == 0.5


def test_what_fills_a_sequence_does_not_count():
    rows = np.array([[1, 2, 0, 0, 0], [2, 0, 0, 0, 0], [1, 2, 1, 2, 0]])
    padded, plain = NGram(rows, 2, 3, pad=0), [[1, 2, 0], [2, 0], [1, 2, 1, 2, 0]]
    firsts = np.concatenate(plain)
    p_1 = (np.bincount(firsts) + 3 / 3) / (len(firsts) + 3)
    assert padded.prob(np.array([[2, 0]]))[0] == pytest.approx([p_1[2], (3 + 2 * p_1[0]) / (4 + 2)])
    lengths = [-np.log2(padded.prob(np.array([row]))).sum() for row in plain]
    assert padded.bits(rows) == pytest.approx(sum(lengths) / len(firsts))
    assert ngrams.token_entropy(rows[1:2], pad=0) == 1
    assert ngrams.seen(np.array([[2, 1, 0, 0]]), rows, 2, 3, pad=0) == 0.5  # of (2, 1) and (1, 0)


def test_refused_orders():
    with pytest.raises(ValueError, match="order=0"):
        NGram(TRAIN, 0, 5)
    with pytest.raises(ValueError, match="2 or 3"):
        NGram(TRAIN, 1, 5).hidden(TRAIN)
