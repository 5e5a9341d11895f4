import numpy as np
import pytest

from diffusion_jax.evaluation import neighbours
from diffusion_jax.evaluation.neighbours import (
    closer_probability,
    density_coverage,
    nearest_distances,
    nearest_neighbour_distance,
    precision_recall,
)


def _points(*values):
    return np.array(values, np.float64)[:, None]


def test_known_fractions_on_a_line(monkeypatch):
    real = _points(0, 1, 2, 10)  # distances to the nearest other: 1, 1, 1, 8; to the second: 2, 1, 2, 9
    samples = _points(0.5, 2.75, 4.0, 30.0, 100.0)  # to the nearest other: 2.25, 1.25, 1.25, 26, 70
    for entries in (2**25, 8):  # in one block, and in blocks of two rows
        monkeypatch.setattr(neighbours, "_ENTRIES", entries)
        # Balls [-1, 1], [0, 2], [1, 3], [2, 18] hold 0.5, 2.75 (twice) and 4; 2 lies on the border of the last ball.
        assert precision_recall(real, samples, k=1) == (3 / 5, 4 / 4)
        # 0.5 is in two balls, 2.75 in two, 4 in one; every ball has a sample.
        assert density_coverage(real, samples, k=1) == (5 / 5, 4 / 4)
        # Second neighbours: [-2, 2], [0, 2], [0, 4], [1, 19]: 0.5 in three, 2.75 in two, 4 in two.
        assert density_coverage(real, samples, k=2) == (7 / (2 * 5), 4 / 4)
    # One narrow mode: the samples reach no real point but 0, and the real balls around 2 and 10 have no sample.
    near = _points(0.0, 0.1, 0.2)
    assert precision_recall(real, near, k=1) == (1.0, 1 / 4)
    assert density_coverage(real, near, k=1) == (pytest.approx((2 + 2 + 2) / 3), 2 / 4)


def test_equal_sets_and_far_sets():
    x = np.random.default_rng(0).normal(size=(200, 5))
    assert precision_recall(x, x) == (1, 1)
    assert density_coverage(x, x)[1] == 1
    assert precision_recall(x, x + 100) == (0, 0) and density_coverage(x, x + 100) == (0, 0)
    assert precision_recall(x, x[:50])[0] == 1 > precision_recall(x, x[:50])[1]
    duplicates = np.zeros((10, 3))
    assert precision_recall(duplicates, duplicates) == (1, 1), "balls of radius 0 hold their centre"


def test_density_and_coverage_of_equal_distributions_have_their_expectations():
    """arXiv:2002.09797, lemmas 1 and 2: 1, and 1 - (m - 1) ... (m - k) / ((2 m - 1) ... (2 m - k)) for n = m."""
    random = np.random.default_rng(1)
    m, k = 60, 5
    found = np.array([density_coverage(*random.normal(size=(2, m, 3)), k=k) for _ in range(200)])
    i = np.arange(1, k + 1)
    expected = 1.0, 1 - np.prod((m - i) / (2 * m - i))
    error = found.std(axis=0) / np.sqrt(len(found))
    assert np.all(np.abs(found.mean(axis=0) - expected) < 3 * error) and np.all(error < 0.02)


def test_rotations_translations_and_scales_change_nothing():
    random = np.random.default_rng(2)
    real, samples = random.normal(size=(80, 4)), 1.2 * random.normal(size=(70, 4)) + 0.3
    q = np.linalg.qr(random.normal(size=(4, 4)))[0]
    for metric in (precision_recall, density_coverage):
        expected = metric(real, samples)
        assert metric(3 * real @ q + 1e4, 3 * samples @ q + 1e4) == expected
        assert 0 < expected[1] < 1


def test_nearest_neighbour_is_the_closed_form_and_exact_for_copies():
    random = np.random.default_rng(0)
    train = random.uniform(-1, 1, (5000, 6, 6, 1)).astype(np.float32)
    offset = np.array([0.01, 0.02, 0.0, 0.03], np.float32)
    samples = train[[0, 2047, 2048, 4999]] + offset[:, None, None, None]
    np.testing.assert_allclose(nearest_distances(samples, train), offset, rtol=1e-4)
    result = nearest_neighbour_distance(samples, train)
    assert result.mean == pytest.approx(0.015, rel=1e-4)
    assert result.minimum == 0
    with pytest.raises(ValueError, match="same shape"):
        nearest_neighbour_distance(samples, train[..., 0])


def test_the_probability_of_being_closer_counts_pairs():
    assert closer_probability(np.array([0.0, 2.0]), np.array([1.0, 3.0, 2.0])) == (3 + 1 + 0.5) / 6
    assert closer_probability(np.zeros(4), np.ones(3)) == 1 and closer_probability(np.ones(4), np.zeros(3)) == 0
    assert closer_probability(np.ones(4), np.ones(3)) == 0.5


@pytest.mark.parametrize("metric", [precision_recall, density_coverage])
def test_bad_features_are_refused(metric):
    x = np.zeros((6, 2))
    for real, samples, k, message in [
        (x[:3], x, 3, r"real must be \[n, d\] with n > k = 3 >= 1, got shape \(3, 2\)"),
        (x, x[:2], 3, "samples must be"),
        (x, x, 0, "k = 0"),
        (x, x[:, :1], 3, "same dimension, got 2 and 1"),
        (x, np.full((6, 2), np.nan), 3, "samples must be finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            metric(real, samples, k=k)
