"""Losses of first stages, PSNR and SSIM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.evaluation.reconstruction import psnr, ssim
from diffusion_jax.losses import first_stage


def _images(size=16, seed=0, channels=3):
    return jnp.float32(np.random.default_rng(seed).uniform(-1, 1, (4, size, size, channels)))


def test_reconstruction():
    x, y = _images(), _images(seed=1)
    difference = np.asarray(x) - np.asarray(y)
    np.testing.assert_allclose(first_stage.reconstruction("l1")(x, y), np.abs(difference).mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(first_stage.reconstruction("l2")(x, y), (difference**2).mean((1, 2, 3)), rtol=1e-5)
    with pytest.raises(ValueError, match="reconstruction='l3' is unknown; choose one of l1, l2"):
        first_stage.reconstruction("l3")


def test_laplacian_of_constants_and_checkers():
    """A constant difference has no detail; one that alternates from pixel to pixel is detail of the finest level."""
    x = _images()
    np.testing.assert_allclose(first_stage.laplacian(x, x + 0.3), 0.3, rtol=1e-4)
    checkers = jnp.float32((-1.0) ** np.add.outer(np.arange(16), np.arange(16)))[None, :, :, None]
    np.testing.assert_allclose(first_stage.laplacian(x, x + 0.3 * checkers), 0.3, rtol=1e-4)
    blocks = jnp.kron(checkers[0, :4, :4, 0], jnp.ones((4, 4)))[None, :, :, None]
    # Two finer levels see nothing: their pairs of pixels are equal.
    np.testing.assert_allclose(first_stage.laplacian(x, x + 0.3 * blocks), 0.3, rtol=1e-4)
    # The same energy on two levels counts twice.
    np.testing.assert_allclose(first_stage.laplacian(x, x + 0.3 * (checkers + blocks)), 0.6, rtol=1e-4)
    assert first_stage.laplacian(_images(7), _images(7, 1)).shape == (4,)


def test_discriminator_losses():
    real, fake = jnp.array([[2.0, 0.5], [-1.0, 1.0]]), jnp.array([[-3.0, 0.0], [1.0, 2.0]])
    np.testing.assert_allclose(first_stage.hinge(real, fake), [0.5 * (0.25 + 0.5), 0.5 * (1.0 + 2.5)])
    expected = 0.5 * (np.log1p(np.exp(-np.asarray(real))).mean(1) + np.log1p(np.exp(np.asarray(fake))).mean(1))
    np.testing.assert_allclose(first_stage.vanilla(real, fake), expected, rtol=1e-5)
    np.testing.assert_allclose(first_stage.generator_loss(fake), [1.5, -1.5])


def test_adaptive_weight_is_the_ratio_of_norms_and_limited():
    weight = first_stage.adaptive_weight
    assert weight(jnp.array([3.0, 4.0]), jnp.array([0.0, 2.0])) == pytest.approx(2.5, rel=1e-4)
    assert weight(jnp.ones(4), jnp.zeros(4)) == pytest.approx(1e4)
    assert jax.grad(lambda g: weight(g, jnp.ones(2)))(jnp.ones(2)).tolist() == [0, 0]


def test_psnr():
    x = _images()
    # An error of 0.2 everywhere, of a range of 2: 20 dB.
    np.testing.assert_allclose(psnr(x, x + 0.2), 20.0, rtol=1e-4)
    np.testing.assert_allclose(psnr(x, x), 100.0)


@pytest.mark.parametrize("size", [16, 8])
def test_ssim_by_its_definition(size):
    """Window by window in NumPy; and 1 for equal images."""
    x, y = np.asarray(_images(size, channels=2), np.float64), np.asarray(_images(size, 1, 2), np.float64)
    y = 0.7 * x + 0.3 * y
    side = 11 if size >= 11 else 7
    w = np.exp(-0.5 * ((np.arange(side) - side // 2) / 1.5) ** 2)
    w = np.outer(w, w) / w.sum() ** 2
    found = []
    for a, b in zip(x, y, strict=True):
        values = []
        for i in range(size - side + 1):
            for j in range(size - side + 1):
                for c in range(2):
                    p, q = a[i : i + side, j : j + side, c], b[i : i + side, j : j + side, c]
                    mp, mq = (w * p).sum(), (w * q).sum()
                    vp, vq, cov = (w * p * p).sum() - mp**2, (w * q * q).sum() - mq**2, (w * p * q).sum() - mp * mq
                    c1, c2 = 0.02**2, 0.06**2
                    values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
        found.append(np.mean(values))
    np.testing.assert_allclose(ssim(jnp.float32(x), jnp.float32(y)), found, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ssim(jnp.float32(x), jnp.float32(x)), 1.0, rtol=1e-5)
