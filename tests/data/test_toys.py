"""Two-dimensional toys: support, moments and labels."""

import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.data.sources import toys


@pytest.mark.parametrize("kind", toys.KINDS)
def test_toys_are_centred_points_of_about_unit_scale(kind):
    source = data.load(name="toy", kind=kind, num_examples=20000)
    batch = data.arrays(source)
    assert batch["x"].shape == (20000, 2) and batch["x"].dtype == np.float32 and source.shape == (2,)
    assert np.all(np.abs(batch["x"].mean(axis=0)) < 0.25)
    assert np.all((batch["x"].std(axis=0) > 0.4) & (batch["x"].std(axis=0) < 1.5))
    if source.num_classes:
        np.testing.assert_allclose(np.bincount(batch["label"]) / 20000, 1 / source.num_classes, atol=0.02)
    else:
        assert "label" not in batch


def test_gaussian_mixture_has_the_moments_of_its_components():
    weights, means, std = toys.mixture()
    x, label = toys.draw("gaussian_mixture", 40000, np.random.default_rng(0))
    for k in range(len(weights)):
        component = x[label == k]
        np.testing.assert_allclose(component.mean(axis=0), means[k], atol=0.015)
        np.testing.assert_allclose(component.std(axis=0), std, rtol=0.06)
    np.testing.assert_allclose(x.var(axis=0), 1.4**2 / 2 + 0.15**2, rtol=0.03)


@pytest.mark.parametrize("kind", toys.MIXTURES)
def test_the_density_of_a_mixture_is_that_of_its_points(kind):
    """The mean of -log p is the entropy: of separate components log 8 and that of one Gaussian."""
    x, _ = toys.draw(kind, 20_000, np.random.default_rng(0))
    exact = toys.facts({"kind": kind})
    std = exact["mixture"].std
    entropy = np.log(8) + np.log(2 * np.pi * np.e * std**2)
    assert -exact["log_density"](x).mean() == pytest.approx(entropy, abs=0.03)


def test_checkerboard_fills_the_even_cells_only():
    x, _ = toys.draw("checkerboard", 8000, np.random.default_rng(0))
    cells = np.floor(x).astype(int)
    assert np.all(cells.sum(axis=1) % 2 == 0)
    counts = np.unique(cells, axis=0, return_counts=True)[1]
    assert len(counts) == 8
    np.testing.assert_allclose(counts, 1000, atol=150)


def test_rings_have_their_radii():
    x, label = toys.draw("rings", 6000, np.random.default_rng(0))
    radius = np.linalg.norm(x, axis=1)
    for k in range(3):
        assert abs(radius[label == k].mean() - 0.5 * (k + 1)) < 0.01


def test_splits_and_seeds_are_independent_draws():
    def first(**options):
        return data.arrays(data.load(name="toy", num_examples=8, **options))["x"]

    np.testing.assert_array_equal(first(), first())
    assert not np.isin(first(), first(evaluation=True)).any()
    assert not np.isin(first(), first(seed=1)).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "torus"}, "Unknown kind 'torus'"),
        ({"num_examples": 0}, "num_examples must be positive"),
        ({"split": "validation"}, "Unknown split 'validation'"),
        ({"flip": True}, r"data\.flip=True: 'toy' takes no 'flip'; it takes kind, num_examples, seed"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        data.load(**{"name": "toy"} | options)
