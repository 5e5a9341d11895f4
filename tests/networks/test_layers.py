"""Layers against closed forms, NumPy in float64, and their invariances."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.networks import attention, layers, refinenet


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def test_group_norm_equals_its_definition():
    x = 3.0 * normal(2, 4, 5, 6) + 2.0
    norm = layers.GroupNorm(6, num_groups=3, epsilon=1e-5)
    norm.scale[...], norm.bias[...] = normal(6, seed=1), normal(6, seed=2)
    groups = np.asarray(x, np.float64).reshape(2, 20, 3, 2)
    mean, var = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    expected = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape) * np.asarray(norm.scale) + np.asarray(norm.bias)
    np.testing.assert_allclose(norm(x), expected, rtol=1e-4, atol=1e-5)


def test_group_norm_ignores_the_shift_and_scale_of_each_group():
    x = normal(2, 8, 8, 4)
    shift, scale = jnp.array([5.0, 5.0, -3.0, -3.0]), jnp.array([2.0, 2.0, 0.5, 0.5])
    norm = layers.GroupNorm(4, num_groups=2)
    np.testing.assert_allclose(norm(x * scale + shift), norm(x), atol=1e-4)


def test_group_norm_keeps_bfloat16_but_computes_in_float32():
    x = (normal(2, 16, 16, 8) + 10.0).astype(jnp.bfloat16)
    norm = layers.GroupNorm(8, num_groups=2)
    y = norm(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), norm(x.astype(jnp.float32)), rtol=0.005, atol=1e-6)


def test_group_norm_of_a_constant_is_its_bias():
    norm = layers.GroupNorm(4, num_groups=1)
    y, gradient = jax.value_and_grad(lambda x: norm(x).sum())(jnp.full((1, 3, 3, 4), 0.7))
    assert abs(y) < 0.05 and np.isfinite(gradient).all()


def test_group_norm_refuses_groups_that_do_not_divide():
    with pytest.raises(ValueError, match=r"num_groups=5.*channels, 8"):
        layers.GroupNorm(8, num_groups=5)


def test_dropout_zeroes_at_its_rate_and_rescales_the_rest():
    x = jnp.full((200, 200), 3.0)
    y = np.asarray(layers.dropout(x, 0.25, nnx.Rngs(dropout=jax.random.key(0))))
    assert set(np.unique(y)) == {0.0, 4.0}
    assert (y == 0).mean() == pytest.approx(0.25, abs=0.01)  # standard deviation 0.002


def test_dropout_without_randomness_or_rate_is_the_identity():
    x = normal(5, 5)
    np.testing.assert_array_equal(layers.dropout(x, 0.5, None), x)
    np.testing.assert_array_equal(layers.dropout(x, 0.0, nnx.Rngs(dropout=0)), x)


@pytest.mark.parametrize(("flip", "shift"), [(False, 1.0), (True, 0.0)])
def test_sinusoidal_embedding_equals_its_formula(flip, shift):
    t = np.array([0.0, 1.0, 500.0, 999.0])
    w = 10_000.0 ** (-np.arange(4) / (4 - shift))
    sin, cos = np.sin(t[:, None] * w), np.cos(t[:, None] * w)
    expected = np.concatenate([cos, sin] if flip else [sin, cos], -1)
    actual = layers.sinusoidal_embedding(
        jnp.asarray(t, jnp.float32), 8, flip_sin_to_cos=flip, downscale_freq_shift=shift
    )
    np.testing.assert_allclose(actual, expected, atol=2e-4)  # float32 angles up to 999


def test_sinusoidal_embedding_pads_odd_sizes_and_stays_in_float32():
    y = layers.sinusoidal_embedding(jnp.array([3.0], jnp.bfloat16), 9)
    assert y.shape == (1, 9) and y.dtype == jnp.float32 and y[0, -1] == 0
    with pytest.raises(ValueError, match="dim=2"):
        layers.sinusoidal_embedding(jnp.ones(1), 2)


def test_fourier_embedding_is_a_unit_circle_per_frequency_and_not_trained():
    embed = layers.FourierEmbedding(512, scale=16.0, rngs=nnx.Rngs(0))
    y = embed(jnp.array([0.0, -1.3]))
    np.testing.assert_allclose(y[0], np.repeat([0.0, 1.0], 512), atol=1e-6)
    np.testing.assert_allclose(y[1, :512] ** 2 + y[1, 512:] ** 2, 1.0, atol=1e-5)
    assert np.std(embed.weight) == pytest.approx(16.0, rel=0.15)
    gradient = nnx.grad(lambda m: m(jnp.array([0.3])).sum())(embed)
    np.testing.assert_array_equal(jax.tree.leaves(gradient)[0], 0.0)


def test_time_embedding_refuses_an_unknown_kind():
    with pytest.raises(ValueError, match="embedding='cosine'"):
        layers.TimeEmbedding(8, 16, embedding="cosine", rngs=nnx.Rngs(0))


def test_upsample_nearest_repeats_pixels():
    x = normal(2, 3, 4, 2)
    np.testing.assert_array_equal(layers.upsample_nearest(x), np.repeat(np.repeat(x, 2, 1), 2, 2))


def test_attention_equals_its_definition():
    q, k, v = (normal(2, 5, 6, seed=i) for i in range(3))
    heads = [np.asarray(a, np.float64).reshape(2, 5, 3, 2).transpose(0, 2, 1, 3) for a in (q, k, v)]
    logits = heads[0] @ heads[1].swapaxes(-1, -2) / np.sqrt(2)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = (weights @ heads[2]).transpose(0, 2, 1, 3).reshape(2, 5, 6)
    np.testing.assert_allclose(attention.dot_product_attention(q, k, v, 3), expected, rtol=1e-5, atol=1e-6)


def test_self_attention_starts_as_the_identity_and_moves_with_the_pixels():
    x = normal(2, 4, 4, 8)
    np.testing.assert_array_equal(attention.SelfAttention(8, num_groups=2, rngs=nnx.Rngs(0))(x), x)
    module = attention.SelfAttention(8, num_heads=2, num_groups=2, scale=1.0, rngs=nnx.Rngs(0))
    assert np.abs(module(x) - x).max() > 0.1
    np.testing.assert_allclose(module(x.swapaxes(1, 2)), module(x).swapaxes(1, 2), atol=1e-5)
    with pytest.raises(ValueError, match="num_heads=3"):
        attention.SelfAttention(8, num_heads=3, num_groups=2, rngs=nnx.Rngs(0))


def test_strided_convolution_pads_the_bottom_and_the_right():
    module = layers.conv(1, 1, stride=2, rngs=nnx.Rngs(0))
    module.kernel[...] = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1.0)
    x = normal(1, 4, 4, 1)
    np.testing.assert_array_equal(module(x), x[:, ::2, ::2])


def test_initialiser_has_the_variance_of_ddpm():
    kernel = np.asarray(layers.conv(48, 96, scale=0.5, rngs=nnx.Rngs(0)).kernel)
    variance = 0.5 / (9 * (48 + 96) / 2)
    assert kernel.var() == pytest.approx(variance, rel=0.03)
    assert np.abs(kernel).max() <= np.sqrt(3 * variance)
    np.testing.assert_array_equal(layers.conv(4, 4, scale=0.0, rngs=nnx.Rngs(0)).kernel, 0.0)


def test_unknown_activation():
    with pytest.raises(ValueError, match=r"activation='swosh'.*silu"):
        layers.activation("swosh")


def test_rematerialisation_changes_no_value_and_no_gradient():
    w = normal(16, 16)

    def loss(w, remat):
        def block(x, *, rngs):
            return layers.dropout(jnp.tanh(x @ w), 0.5, rngs)

        rngs = nnx.Rngs(dropout=jax.random.key(0))
        x = layers.call_block(block, normal(4, 16), rngs=rngs, remat=remat)
        return layers.call_block(block, x, rngs=None, remat=remat).sum() + (x == 0).sum()

    def plain(w):
        # With remat the key of the block seeds a stream; its first key draws the mask.
        key = nnx.Rngs(dropout=nnx.Rngs(dropout=jax.random.key(0)).dropout()).dropout()
        keep = jax.random.bernoulli(key, 0.5, (4, 16))
        x = jnp.where(keep, jnp.tanh(normal(4, 16) @ w) / 0.5, 0.0)
        return jnp.tanh(x @ w).sum() + (x == 0).sum()

    assert "remat" in str(jax.make_jaxpr(lambda w: loss(w, True))(w))
    value, gradient = jax.value_and_grad(loss)(w, True)
    expected, expected_gradient = jax.value_and_grad(plain)(w)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("mean", "std"), [(100.0, 0.1), (2000.0, 1.0), (1e4, 1.0)])
def test_normalisations_take_a_mean_far_above_the_deviation(mean, std):
    """As PyTorch's do; the difference E[x^2] - E[x]^2 in float32 gives deviations of hundreds."""
    x = np.float32(mean + std * np.random.default_rng(0).standard_normal((2, 16, 16, 32)))
    exact = np.float64(x)
    inputs, rngs = jnp.asarray(x), nnx.Rngs(0)
    groups = exact.reshape(2, 256, 8, 4)
    expected = (groups - groups.mean((1, 3), keepdims=True)) / groups.std((1, 3), keepdims=True)
    found = layers.GroupNorm(32, num_groups=8)(inputs)
    np.testing.assert_allclose(found, expected.reshape(x.shape), atol=2e-3 * max(1, mean / std / 1e4))
    for norm in (layers.layer_norm(32, rngs=rngs), layers.layer_norm(32, affine=False, rngs=rngs)):
        rows = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
        np.testing.assert_allclose(norm(inputs), rows, atol=2e-2)
    channels = exact.std((1, 2))
    found = refinenet._normalize(inputs, *(jnp.full((1, 32), a) for a in (1.0, 0.0, 0.0)))
    np.testing.assert_allclose(found.std((1, 2)), channels / np.sqrt(channels**2 + 1e-5), rtol=1e-3)


def test_no_network_takes_the_difference_of_moments():
    """flax's normalisations do by default."""
    calls = re.compile(r"nnx\.(LayerNorm|GroupNorm|InstanceNorm|BatchNorm)\(")
    folder = pathlib.Path(layers.__file__).parent
    users = [path.name for path in folder.glob("*.py") if calls.search(path.read_text())]
    assert users == ["layers.py"]
    assert "use_fast_variance=False" in (folder / "layers.py").read_text()
