"""The diffusion transformer: published sizes, the order of patches, conditions and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.networks.dit import DiT, position_embedding
from diffusion_jax.networks.functional import count_parameters, init_apply
from tests.networks import random_params

TINY = dict(image_size=8, in_channels=2, patch_size=2, hidden_size=16, depth=2, num_heads=2)


def build(dtype="float32", **kwargs):
    init, apply = init_apply(lambda rngs: DiT(**(TINY | kwargs), rngs=rngs), dtype)
    return jax.jit(init), jax.jit(apply)


@pytest.fixture(scope="module")
def inputs():
    return jax.random.normal(jax.random.key(3), (3, 8, 8, 2)), jnp.array([0.0, 400.0, 999.0])


@pytest.mark.parametrize(
    ("hidden_size", "depth", "num_heads", "patch_size", "millions"),
    [
        # arXiv:2212.09748, table 4 (ImageNet 256, latents 32 x 32 x 4).
        (384, 12, 6, 2, 33),
        (768, 12, 12, 2, 130),
        (768, 12, 12, 4, 130),
        (1024, 24, 16, 2, 458),
        (1152, 28, 16, 2, 675),
    ],
)
def test_published_sizes(hidden_size, depth, num_heads, patch_size, millions):
    kwargs = dict(image_size=32, in_channels=4, num_classes=1000, learn_sigma=True)
    kwargs |= dict(hidden_size=hidden_size, depth=depth, num_heads=num_heads, patch_size=patch_size)
    init, _ = init_apply(lambda rngs: DiT(**kwargs, rngs=rngs))
    count = count_parameters(jax.eval_shape(init, jax.random.key(0)))
    table = (32 // patch_size) ** 2 * hidden_size  # the authors' counts include the fixed position table
    assert (count + table) / 1e6 == pytest.approx(millions, abs=0.7)
    if hidden_size == 1152:
        assert count + table == 675_129_632  # as printed by the authors' training script for XL/2


def test_position_embedding_equals_its_formula():
    table = np.asarray(position_embedding(3, 16)).reshape(3, 3, 16)
    w = 10_000.0 ** (-np.arange(4) / 4)
    for row in range(3):
        for column in range(3):
            expected = [f(p * w) for p in (column, row) for f in (np.sin, np.cos)]
            np.testing.assert_allclose(table[row, column], np.concatenate(expected), atol=1e-6)


def test_starts_at_zero_and_keeps_the_shape(inputs):
    init, apply = build(learn_sigma=True)
    params = init(jax.random.key(0))
    y = apply(params, *inputs)
    assert y.shape == (3, 8, 8, 4)
    np.testing.assert_array_equal(y, 0.0)
    assert np.abs(apply(random_params(init), *inputs)).max() > 0.01


def test_patches_return_to_their_places(inputs):
    """Where the gates are zero the blocks are the identity, so a pixel may only act within its patch."""
    init, apply = build()
    params = random_params(init, scale=0.5)
    for part in (*params["blocks"].values(), params["final_layer"]):
        part["adaLN_modulation"] = jax.tree.map(np.zeros_like, part["adaLN_modulation"])
    x, c_noise = inputs
    change = np.abs(apply(params, x.at[:, 2, 5].add(1.0), c_noise) - apply(params, x, c_noise)).max((0, 3))
    inside = np.zeros((8, 8), bool)
    inside[2:4, 4:6] = True
    assert (change[inside] > 1e-3).all()
    np.testing.assert_array_equal(change[~inside], 0.0)


def test_pixels_keep_their_order_within_a_patch():
    """Patches written into the width and read back out give the image (up to the layer norm of the width)."""
    init, apply = build(in_channels=1, hidden_size=4, num_heads=1, depth=1)
    params = random_params(init, scale=0.0)
    params["x_embedder"]["proj"]["kernel"] = jnp.eye(4).reshape(2, 2, 1, 4)
    params["final_layer"]["linear"]["kernel"] = jnp.eye(4)
    x = 1e4 * jax.random.normal(jax.random.key(0), (1, 8, 8, 1))  # drowns the position table
    patches = np.asarray(x[0, :, :, 0]).reshape(4, 2, 4, 2).transpose(0, 2, 1, 3).reshape(16, 4)
    normed = (patches - patches.mean(-1, keepdims=True)) / patches.std(-1, keepdims=True)
    expected = normed.reshape(4, 4, 2, 2).transpose(0, 2, 1, 3).reshape(8, 8)
    np.testing.assert_allclose(apply(params, x, jnp.ones(1))[0, :, :, 0], expected, atol=1e-2)


def test_depends_on_x_the_time_and_the_position(inputs):
    init, apply = build()
    params, (x, c_noise) = random_params(init), inputs
    y = apply(params, x, c_noise)
    for other in (apply(params, x + 0.5, c_noise), apply(params, x, c_noise + 100)):
        assert (np.abs(other - y).max((1, 2, 3)) > 1e-3).all()
    rolled = apply(params, jnp.roll(x, 2, axis=1), c_noise)
    assert np.abs(jnp.roll(rolled, -2, axis=1) - y).max() > 1e-3


def test_labels(inputs):
    init, apply = build(num_classes=3)
    params, (x, c_noise) = random_params(init, scale=0.3), inputs
    null = apply(params, x, c_noise)
    np.testing.assert_array_equal(null, apply(params, x, c_noise, {"label": jnp.full(3, 3)}))
    labelled = apply(params, x, c_noise, {"label": jnp.array([0, 3, 1])})
    np.testing.assert_allclose(labelled[1], null[1], atol=1e-4)
    assert np.abs(labelled[0] - null[0]).max() > 1e-3 and np.abs(labelled[2] - null[2]).max() > 1e-3


def test_rematerialisation_gives_the_same_gradient(inputs):
    init, apply = build()
    _, apply_remat = build(remat=True)
    params = random_params(init)
    gradient, gradient_remat = (
        jax.jit(jax.grad(lambda p, a=a: jnp.sin(a(p, *inputs)).sum()))(params) for a in (apply, apply_remat)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), gradient, gradient_remat)


def test_bfloat16_is_near_float32(inputs):
    init, apply = build()
    _, apply_bf16 = build("bfloat16")
    params = random_params(init)
    y, y_bf16 = apply(params, *inputs), apply_bf16(params, *inputs)
    assert 1e-4 < np.linalg.norm(y_bf16 - y) / np.linalg.norm(y) < 0.03


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(patch_size=3), "image_size=8 must be a multiple of patch_size=3"),
        (dict(num_heads=3), "hidden_size=16 .*num_heads=3"),
        (dict(hidden_size=18), "hidden_size=18 .*multiple of 4"),
        (dict(pool_tokens=True), "pool_tokens needs tokens"),
    ],
)
def test_impossible_sizes_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


def test_images_of_another_size_are_refused():
    init, apply = build()
    params = jax.eval_shape(init, jax.random.key(0))
    with pytest.raises(ValueError, match=r"\(1, 16, 16, 2\).*\[batch, 8, 8, 2\]"):
        jax.eval_shape(apply, params, jnp.ones((1, 16, 16, 2)), jnp.ones(1))
