"""Codebooks and bottlenecks against k-means, closed forms and what gradients must be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.networks import codebook
from diffusion_jax.systems import bottlenecks


def _vectors(n=200, d=3, k=8, seed=0):
    random = np.random.default_rng(seed)
    return jnp.float32(random.standard_normal((n, d))), jnp.float32(random.standard_normal((k, d)))


def _network(embedding):
    return {"quantize": {"embedding": {"embedding": embedding}}}


def test_nearest_code_is_nearest():
    h, embedding = _vectors()
    distances = np.linalg.norm(np.asarray(h)[:, None] - np.asarray(embedding), axis=-1)
    np.testing.assert_array_equal(codebook.nearest_code(h, embedding), distances.argmin(-1))
    # Also for latents of an image, whose last axis is the vector.
    codes = codebook.nearest_code(h.reshape(2, 10, 10, 3), embedding)
    np.testing.assert_array_equal(codes.reshape(-1), distances.argmin(-1))


def test_the_gradient_passes_straight_through():
    h, embedding = _vectors()
    w = _vectors(seed=1)[0]
    value, (to_h, to_codes) = jax.value_and_grad(lambda h, e: (w * codebook.quantize(h, e)).sum(), (0, 1))(h, embedding)
    np.testing.assert_array_equal(to_h, w)
    np.testing.assert_array_equal(to_codes, 0)
    nearest = np.asarray(embedding)[np.asarray(codebook.nearest_code(h, embedding))]
    np.testing.assert_allclose(value, (np.asarray(w) * nearest).sum(), rtol=1e-5)


def test_without_memory_the_codebook_takes_a_step_of_k_means():
    h, embedding = _vectors()
    code = codebook.nearest_code(h, embedding)
    counts, sums = codebook.assigned(h, code, len(embedding))
    code = np.asarray(code)
    size, total = codebook.follow(jnp.full(8, 7.0), jnp.full((8, 3), 5.0), counts, sums, 0.0)
    for k in range(8):
        assert size[k] == (code == k).sum() > 0
        np.testing.assert_allclose(total[k] / size[k], np.asarray(h)[code == k].mean(0), rtol=1e-5)


def test_perplexity_between_one_and_all():
    assert codebook.perplexity(jnp.full(16, 3.0)) == pytest.approx(16, rel=1e-5)
    assert codebook.perplexity(jnp.zeros(16).at[4].set(9.0)) == pytest.approx(1)
    assert codebook.perplexity(jnp.array([2.0, 2.0, 0.0])) == pytest.approx(2, rel=1e-5)


def test_the_codebook_finds_clusters_and_dead_entries_are_re_initialised():
    """From entries that are all far off, of which without restarts one would win all."""
    random = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]])
    bottleneck = bottlenecks.Codebook(decay=0.9, restart_below=0.5)
    network = _network(jnp.float32(100 + random.standard_normal((12, 2))))
    state = bottleneck.init(network)

    @jax.jit
    def step(network, state, key, h):
        statistics = bottleneck(network, state, key, h)[3]
        return bottleneck.advance(network, state, statistics)

    for i in range(60):
        h = centres[random.integers(4, size=64)] + 0.1 * random.standard_normal((64, 2))
        network, state = step(network, state, jax.random.key(i), jnp.float32(h).reshape(4, 4, 4, 2))
    found = np.asarray(network["quantize"]["embedding"]["embedding"])
    distance = np.linalg.norm(found[:, None] - centres, axis=-1).min(0)
    assert distance.max() < 0.2
    h = jnp.float32(centres).reshape(1, 2, 2, 2)
    _, _, metrics, _ = bottleneck(network, state, None, h)
    assert metrics["perplexity"] == pytest.approx(4, rel=1e-4) and metrics["usage"] > 0.9


def test_accumulated_parts_count_as_one_batch():
    h, embedding = _vectors(n=192)
    network, bottleneck = _network(embedding), bottlenecks.Codebook(restart_below=0.0)
    state = bottleneck.init(network)
    statistics = [
        bottleneck(network, state, jax.random.key(0), part.reshape(4, 4, 4, 3))[3] for part in h.reshape(3, 64, 3)
    ]
    parts = jax.tree.map(lambda *x: jnp.stack(x), *statistics)
    whole = bottleneck(network, state, jax.random.key(0), h.reshape(12, 4, 4, 3))[3]
    for a, b in zip(*(jax.tree.leaves(bottleneck.advance(network, state, t)) for t in (parts, whole)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.99])
def test_codebook_penalty(decay):
    """beta |h - sg(e)|^2, and without averages |sg(h) - e|^2, whose gradients go to h and to e alone."""
    h, embedding = _vectors(n=32)
    h = h.reshape(2, 4, 4, 3)
    bottleneck = bottlenecks.Codebook(commitment_weight=0.25, codebook_weight=2.0, decay=decay, restart_below=0.0)

    def penalty(h, embedding):
        network = _network(embedding)
        return bottleneck(network, bottleneck.init(network), None, h)[1].sum()

    code = np.asarray(codebook.nearest_code(h, embedding))
    difference = np.asarray(h) - np.asarray(embedding)[code]
    squared = (difference**2).mean((1, 2, 3)).sum()
    value, (to_h, to_codes) = jax.value_and_grad(penalty, (0, 1))(h, embedding)
    assert value == pytest.approx(2 * (0.25 + (decay == 0)) * squared, rel=1e-5)
    np.testing.assert_allclose(to_h, 2 * 0.25 * 2 * difference / 48, rtol=1e-4, atol=1e-7)
    expected = np.zeros_like(embedding)
    if not decay:
        np.add.at(expected, code, -2 * 2 * difference / 48)
    np.testing.assert_allclose(to_codes, expected, rtol=1e-4, atol=1e-7)


def test_kl_is_that_of_gaussians():
    """Against the integral of q log(q / p), one dimension at a time."""
    mean, log_var = np.array([0.3, -1.2, 0.0]), np.array([0.5, -2.0, 0.0])
    x = np.linspace(-12, 12, 200_001)[:, None]
    log_q = -0.5 * ((x - mean) ** 2 / np.exp(log_var) + log_var + np.log(2 * np.pi))
    log_p = -0.5 * (x**2 + np.log(2 * np.pi))
    integral = (np.exp(log_q) * (log_q - log_p)).sum() * (x[1, 0] - x[0, 0])
    found = bottlenecks.kl_divergence(jnp.float32(mean)[None], jnp.float32(log_var)[None])
    np.testing.assert_allclose(found, [integral], rtol=1e-5)


def test_gaussian_draws_have_the_moments_of_h():
    h = jnp.broadcast_to(jnp.array([1.0, -2.0, np.log(0.25), np.log(4.0)]), (4, 60, 60, 4))
    bottleneck = bottlenecks.Gaussian(kl_weight=0.5, size=10)
    z, penalty, metrics, _ = bottleneck({}, {}, jax.random.key(0), h)
    np.testing.assert_allclose(z.mean((0, 1, 2)), [1, -2], atol=0.06)
    np.testing.assert_allclose(z.std((0, 1, 2)), [0.5, 2], rtol=0.03)
    np.testing.assert_allclose(penalty, 0.05 * metrics["kl"], rtol=1e-6)
    still, *_ = bottleneck({}, {}, None, h)
    np.testing.assert_array_equal(still, h[..., :2])


def test_refuses_numbers_out_of_range():
    with pytest.raises(ValueError, match=r"kl_weight=-1"):
        bottlenecks.Gaussian(kl_weight=-1.0)
    with pytest.raises(ValueError, match=r"decay=1\.0"):
        bottlenecks.Codebook(decay=1.0)
