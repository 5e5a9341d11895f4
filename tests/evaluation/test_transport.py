"""Metrics of bridges: exact assignments, and PSNR of pairs."""

import itertools

import numpy as np
import pytest

from diffusion_jax.evaluation import transport


def test_the_assignment_is_the_best_of_all_permutations():
    x, y = np.random.default_rng(0).standard_normal((2, 6, 3))
    costs = [np.square(x - y[list(order)]).sum(1).mean() for order in itertools.permutations(range(6))]
    assert transport.assigned_cost(x, y) == pytest.approx(min(costs))
    assert transport.wasserstein_2(x, y[::-1]) == pytest.approx(min(costs) ** 0.5)
    assert transport.wasserstein_2(x, x[::-1]) == pytest.approx(0, abs=1e-6)


def test_a_translation_costs_its_square():
    x = np.random.default_rng(0).standard_normal((200, 2))
    moved = x + np.array([3.0, 4.0])
    values = transport.transport(moved, x, moved, x)
    assert values["transport_cost"] == pytest.approx(25) and values["transport_cost_optimal"] == pytest.approx(25)
    assert values["transport_w2"] == pytest.approx(0, abs=1e-5) and values["transport_w2_real"] == pytest.approx(5)
    assert values["transport_cost_independent"] == pytest.approx(25 + 2 * x.var(0).sum())


def test_different_sizes_are_refused():
    with pytest.raises(ValueError, match="must be alike"):
        transport.wasserstein_2(np.zeros((3, 2)), np.zeros((4, 2)))


def test_pairs():
    truth = np.zeros((2, 8, 8, 1), np.float32)
    samples = np.concatenate([truth + 0.2, truth - 0.2])
    values = transport.paired(samples, truth + 0.4, truth)
    assert values["pairs_psnr"] == pytest.approx(20) and values["pairs_psnr_start"] == pytest.approx(10 * np.log10(25))
    assert values["pairs_mean_psnr"] > 60 and values["pairs_num"] == 2
    with pytest.raises(ValueError, match="every pair needs as many"):
        transport.paired(samples[:3], truth, truth)


def test_a_smaller_start_is_compared_at_both_sizes():
    """Samples that repeat the pixels of a smaller image average to it; bicubic interpolation of a constant is exact."""
    start = np.random.default_rng(0).uniform(-1, 1, (5, 2, 2, 1))
    truth = np.repeat(np.repeat(start, 4, 1), 4, 2)
    found = transport.paired(truth + 0.1, start, truth)
    assert found["pairs_consistency"] == pytest.approx(0.01)
    assert found["pairs_psnr"] == pytest.approx(10 * np.log10(4 / 0.01))
    flat = np.full((5, 2, 2, 1), 0.3)
    assert transport.paired(truth, flat, np.full((5, 8, 8, 1), 0.3))["pairs_psnr_start"] > 90
    assert "pairs_consistency" not in transport.paired(truth, truth, truth)
