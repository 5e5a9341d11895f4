"""Metrics of point clouds against closed forms."""

import itertools

import numpy as np
import pytest

from diffusion_jax.evaluation import clouds

RNG = np.random.default_rng(0)


def gaussian(n, points=16, scale=1.0, rng=RNG):
    return (scale * rng.standard_normal((n, points, 3))).astype(np.float32)


def test_chamfer_of_two_points_and_of_a_translation():
    """|v|^2 each way; below half of the least spacing each point is nearest to its own image."""
    a, b = np.zeros((1, 1, 3)), np.full((1, 1, 3), 2.0)
    np.testing.assert_allclose(clouds.chamfer_distances(a, b), 24.0)
    grid = np.stack(np.meshgrid(*[np.arange(3.0)] * 3), -1).reshape(1, -1, 3)
    small, large = np.array([0.3, 0.1, 0.2]), np.array([3.0, 0.0, 0.0])
    np.testing.assert_allclose(clouds.chamfer(grid, grid + small), 2 * np.sum(small**2), rtol=1e-5)
    # The planes 0, 1, 2 against 3, 4, 5: distances 3, 2, 1 each way.
    np.testing.assert_allclose(clouds.chamfer(grid, grid + large), 2 * (9 + 4 + 1) / 3, rtol=1e-5)


def test_chamfer_of_all_pairs_is_that_of_each(monkeypatch):
    x, y = gaussian(3, 20), gaussian(4, 7)
    squared = np.square(x[:, None, :, None] - y[None, :, None]).sum(-1)
    expected = squared.min(3).mean(2) + squared.min(2).mean(2)
    np.testing.assert_allclose(clouds.chamfer_distances(x, y), expected, rtol=1e-5)
    monkeypatch.setattr(clouds, "_ENTRIES", 200)  # several blocks
    np.testing.assert_allclose(clouds.chamfer_distances(x, y), expected, rtol=1e-5)
    forth, back = next(clouds.nearest(x, y))
    np.testing.assert_allclose(forth, squared[0].min(2).mean(1), rtol=1e-5)
    np.testing.assert_allclose(back, squared[0].min(1).mean(1), rtol=1e-5)


def test_earth_movers_distance_is_the_least_over_permutations():
    x, y = gaussian(1, 5), gaussian(1, 5)
    brute = min(np.linalg.norm(x[0] - y[0, list(order)], axis=-1).mean() for order in itertools.permutations(range(5)))
    np.testing.assert_allclose(clouds.earth_mover_distances(x, y)[0, 0], brute, rtol=1e-6)
    permuted, v = x[:, RNG.permutation(5)], np.float32([5.0, -3.0, 1.0])
    assert clouds.earth_mover_distances(x, permuted)[0, 0] == 0
    np.testing.assert_allclose(clouds.earth_mover_distances(x, permuted + v)[0, 0], np.linalg.norm(v), rtol=1e-5)
    with pytest.raises(ValueError, match="5 and 6 points"):
        clouds.earth_mover_distances(x, gaussian(1, 6))


def test_sets_of_one_law_a_copy_and_sets_far_apart():
    """1-NNA is (n - 1) / (2 n - 1) in expectation, 0 for a copy and 1 for sets far apart; COV of a copy is 1."""
    accuracy = []
    for seed in range(30):
        both = gaussian(40, 8, rng=np.random.default_rng(seed))
        values = clouds.generation(both[:20], both[20:], both[:20], clouds.CD)
        accuracy.append(values["one_nna_cd"])
        assert values["one_nna_cd"] == values["one_nna_cd_train"]
    assert abs(np.mean(accuracy) - 19 / 39) < 4 * np.std(accuracy) / np.sqrt(30)
    x = gaussian(20, 8)
    copy = clouds.generation(x, x, x, clouds.CD)
    assert (copy["one_nna_cd"], copy["coverage_cd"]) == (0, 1) and copy["mmd_cd"] < 1e-5
    far = clouds.generation(x, x + 10, x, clouds.EMD)
    assert far["one_nna_emd"] == 1 and far["num_clouds_emd"] == 20
    # The translation of each is nearest to it or another one, at |v| at least in the direction of v.
    assert abs(far["mmd_emd"] - 10 * np.sqrt(3)) < 1.0


def test_coverage_and_matching_of_a_collapsed_set():
    references = np.stack([np.full((4, 3), float(i)) for i in range(5)])
    samples = np.repeat(references[2:3], 5, 0)
    between = clouds.chamfer_distances(samples, references)
    assert clouds.coverage(between) == 1 / 5
    np.testing.assert_allclose(clouds.minimum_matching_distance(between), np.mean([4, 1, 0, 1, 4]) * 6, rtol=1e-5)


def test_divergence_of_densities():
    x = gaussian(5, 50)
    assert clouds.jensen_shannon_divergence(x, x[::-1]) == 0
    left, right = np.full((1, 10, 3), -1.0), np.full((1, 10, 3), 1.0)
    assert clouds.jensen_shannon_divergence(left, right) == 1
    # Half of the mass in common: H(1/4, 1/2, 1/4) - 1 = 1/2 bit.
    one, two = np.concatenate([left, 0 * left], 1), np.concatenate([right, 0 * left], 1)
    np.testing.assert_allclose(clouds.jensen_shannon_divergence(one, two), 0.5)


def test_copies_of_training_clouds_are_seen():
    rng = np.random.default_rng(1)
    train, test, new = (gaussian(30, 16, rng=rng) for _ in range(3))
    assert clouds.memorisation(train[:10] + 0.01, test, train)["nearest_train_ratio"] < 0.01
    assert 0.8 < clouds.memorisation(new, test, train)["nearest_train_ratio"] < 1.2


def test_completion_next_to_retrieval_and_mirror_image():
    """The truth completes without error; retrieval finds a training copy, and the mirror a symmetric cloud."""
    half = np.abs(gaussian(3, 10))
    truth = np.concatenate([half, half * [-1, 1, 1]], 1).astype(np.float32)
    known = truth.copy()
    known[:, 10:] = np.nan
    values = clouds.completion(truth, truth, known, np.concatenate([gaussian(5, 20), truth]))
    assert max(values.values()) < 1e-5
    values = clouds.completion(truth + 1, truth, known, gaussian(5, 20))
    assert values["completion_cd"] > 0.1 < values["completion_cd_retrieval"]


def test_twins_are_draws_from_one_surface():
    rng = np.random.default_rng(2)
    axes = 0.3 + rng.random((4, 3))
    sphere = rng.standard_normal((7, 200, 3))
    sphere /= np.linalg.norm(sphere, axis=-1, keepdims=True)
    shapes = (sphere * axes[[0, 1, 0, 2, 3, 2, 0], None]).astype(np.float32)
    assert [group.tolist() for group in clouds.twins(shapes, 1.3)] == [[0, 2, 6], [1], [3, 5], [4]]
    assert len(clouds.twins(shapes, 0.01)) == 7


def test_what_are_no_clouds_is_refused():
    with pytest.raises(ValueError, match=r"x must be clouds \[n, points, 3\] and not empty, got shape \(4, 3\)"):
        clouds.chamfer_distances(np.zeros((4, 3)), gaussian(1))
    with pytest.raises(ValueError, match="y must be finite"):
        clouds.chamfer_distances(gaussian(1), gaussian(1) * np.nan)
