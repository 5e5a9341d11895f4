"""EDM's augmentation: transformations that are known exactly, and what the network is told of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config import defaults, fits
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.systems import augmentation

SIZE = 8
IMAGES = jax.random.normal(jax.random.key(0), (2, SIZE, SIZE, 3))


def smooth(size: int = 16) -> jax.Array:
    y, x = jnp.meshgrid(jnp.linspace(-1, 1, size), jnp.linspace(-1, 1, size), indexing="ij")
    return jnp.exp(-3 * (x - 0.3) ** 2 - 5 * (y + 0.2) ** 2)[None, :, :, None]


def test_known_transformations():
    run = jax.jit(augmentation.transformed)
    same = jnp.broadcast_to(jnp.eye(2), (2, 2, 2))
    np.testing.assert_allclose(run(IMAGES, same, jnp.zeros((2, 2))), IMAGES, atol=1e-5)
    # Place p shows what was one pixel to the right of it and two below.
    moved = run(IMAGES, same, jnp.tile(jnp.array([1.0, 2.0]), (2, 1)))
    np.testing.assert_allclose(moved[:, :-2, :-1], IMAGES[:, 2:, 1:], atol=1e-5)
    # And beyond the border the reflection.
    np.testing.assert_allclose(moved[:, :-2, -1], IMAGES[:, 2:, -2], atol=1e-5)


def test_rotations_and_scales_of_a_smooth_image():
    """The filter is not quite symmetric, and moves everything by a twentieth of a pixel."""
    run, image = jax.jit(augmentation.transformed), smooth()
    quarter = augmentation.rotation(jnp.full(1, jnp.pi / 2))
    np.testing.assert_allclose(run(image, quarter, jnp.zeros((1, 2)))[0], jnp.rot90(image[0], 1), atol=0.03)
    larger = run(image, jnp.eye(2)[None] / 2, jnp.zeros((1, 2)))[0]
    np.testing.assert_allclose(larger, jax.image.resize(image[0], (32, 32, 1), "cubic")[8:24, 8:24], atol=0.015)


def test_what_the_network_is_told():
    """Zeros of what is left alone; everything at its rate; images mirrored as told, at no other probability."""
    x = jnp.tile(IMAGES[:1, :4, :4, :1], (2000, 1, 1, 1))
    run = jax.jit(augmentation.augment, static_argnums=2)
    images, told = run(jax.random.key(1), x, 0.0)
    assert not np.asarray(told)[:, 1:].any() and abs(np.mean(told[:, 0]) - 0.5) < 0.05
    expected = np.where(np.asarray(told)[:, 0, None, None, None] == 1, x[:, :, ::-1], x)
    np.testing.assert_allclose(images, expected, atol=1e-5)
    _, told = run(jax.random.key(2), x, 0.3)
    rates = np.mean(np.asarray(told) != 0, axis=0)
    np.testing.assert_allclose(rates[[0, 1]], [0.5, 0.15], atol=0.04)
    np.testing.assert_allclose(rates[[2, 3, 4, 5, 7, 8]], 0.3, atol=0.05)
    np.testing.assert_array_equal(told[:, 7] != 0, told[:, 8] != 0)
    np.testing.assert_allclose((told[:, 3] + 1) ** 2 + told[:, 4] ** 2, 1.0, atol=1e-5)


def test_what_is_told_is_what_was_done():
    """The transformation with the numbers told, put together from its definition, gives the same images."""
    x = jax.random.normal(jax.random.key(3), (32, SIZE, SIZE, 1))
    images, told = jax.jit(augmentation.augment, static_argnums=2)(jax.random.key(4), x, 0.7)
    t = np.asarray(told, np.float64)
    angle, direction = np.arctan2(t[:, 4], t[:, 3] + 1), np.arctan2(t[:, 6], t[:, 5])
    x = np.where(t[:, 0, None, None, None] == 1, x[:, :, ::-1], x)
    x = np.where(t[:, 1, None, None, None] == 1, x[:, ::-1], x)
    errors = []
    # Stretching along a direction and shrinking along its opposite are told in the same numbers.
    for n in (np.hypot(t[:, 5], t[:, 6]), -np.hypot(t[:, 5], t[:, 6])):
        # An image is moved, stretched, turned and scaled: from each of its places back.
        turn = lambda a: np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]).transpose(2, 0, 1)
        diagonal = np.stack([2 ** (-0.2 * n), 2 ** (0.2 * n)], -1)[:, :, None] * np.eye(2)
        linear = turn(angle) / 2 ** (0.2 * t[:, 2, None, None]) @ turn(-direction) @ diagonal @ turn(direction)
        offset = -(linear @ (t[:, 7:, None] * SIZE * 0.125))[..., 0]
        found = jax.jit(augmentation.transformed)(jnp.asarray(x), *map(jnp.float32, (linear, offset)))
        errors.append(np.abs(found - images).max((1, 2, 3)))
    assert (np.minimum(*errors) < 1e-3).all() and (np.maximum(*errors) > 0.1).any()


@pytest.mark.parametrize(("dim", "probability", "message"), [(0, 0.1, "augment_dim=9"), (9, 2.0, "in")])
def test_what_does_not_fit_is_refused(dim, probability, message):
    config = defaults()
    config.network = dict(name="song_unet", augment_dim=dim)
    with pytest.raises(ConfigError, match=rf"config\.system\.augment={probability}.*{message}"):
        fits.check_augmentation(config, probability)
