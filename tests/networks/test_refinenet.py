"""The RefineNets of NCSN and NCSNv2: layers against their definitions, sizes against arithmetic on the papers' text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.networks import refinenet
from diffusion_jax.networks.functional import count_parameters, init_apply


def image(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def expected_parameters(n: int, channels: int, num_levels: int) -> int:
    """Number of parameters of the four-level network, from the layer list of 1907.05600 and 2006.09011.

    `num_levels = 0` is NCSNv2, whose refine blocks have no normalisations.
    """

    def conv(a: int, b: int, size: int = 3, bias: bool = True) -> int:
        return size * size * a * b + b * bias

    def norm(a: int) -> int:
        return 3 * a * max(num_levels, 1)

    def cond_norm(a: int) -> int:
        return 3 * a * num_levels

    def same(a: int) -> int:  # residual block that keeps the channels
        return 2 * (norm(a) + conv(a, a))

    def unit(a: int) -> int:  # residual convolution unit of two convolutions
        return 2 * (cond_norm(a) + conv(a, a, bias=False))

    def fuse(a: int, b: int) -> int:  # multi-scale fusion of two inputs
        return 2 * (cond_norm(a) + conv(a, b))

    chained_pooling = unit  # it has as many parameters

    down = 2 * same(n)
    down += 2 * norm(n) + conv(n, n) + conv(n, 2 * n) + conv(n, 2 * n, size=1) + same(2 * n)
    down += 2 * (same(2 * n) + conv(2 * n, 2 * n) + same(2 * n))
    up = 2 * unit(2 * n) + chained_pooling(2 * n) + unit(2 * n)
    up += 4 * unit(2 * n) + fuse(2 * n, 2 * n) + chained_pooling(2 * n) + unit(2 * n)
    up += 4 * unit(2 * n) + fuse(2 * n, n) + chained_pooling(n) + unit(n)
    up += 4 * unit(n) + fuse(n, n) + chained_pooling(n) + 3 * unit(n)
    return conv(channels, n) + down + up + norm(n) + conv(n, channels)


def abstract(make, size: int, channels: int = 3):
    init, apply = init_apply(make)
    params = jax.eval_shape(init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    return params, jax.eval_shape(apply, params, x, jax.ShapeDtypeStruct((2,), jnp.float32))


@pytest.mark.parametrize("ngf, channels, num_levels", [(128, 3, 10), (64, 1, 3)])
def test_parameter_count_of_ncsn(ngf, channels, num_levels):
    make = lambda rngs: refinenet.NCSN(num_levels=num_levels, in_channels=channels, ngf=ngf, rngs=rngs)
    params, out = abstract(make, 32, channels)
    assert count_parameters(params) == expected_parameters(ngf, channels, num_levels)
    assert out.shape == (2, 32, 32, channels)


def test_parameter_count_of_ncsnv2():
    params, _ = abstract(lambda rngs: refinenet.NCSNv2(rngs=rngs), 32)
    assert count_parameters(params) == expected_parameters(128, 3, 0) == 29_694_083


@pytest.mark.parametrize("depth, size", [("standard", 28), ("deeper", 128), ("deepest", 256)])
def test_depths_keep_the_shape(depth, size):
    _, out = abstract(lambda rngs: refinenet.NCSNv2(ngf=4, depth=depth, rngs=rngs), size)
    assert out.shape == (2, size, size, 3)


def test_instance_norm_plus_is_its_equation():
    norm = refinenet.InstanceNormPlus(5, rngs=nnx.Rngs(0))
    norm.beta[...] = jnp.arange(5.0)
    x = 3 * image(2, 4, 6, 5) + jnp.arange(5.0)
    mean, var = np.mean(x, (1, 2), keepdims=True), np.var(x, (1, 2), keepdims=True)
    m, v = mean.mean(-1, keepdims=True), mean.var(-1, keepdims=True, ddof=1)
    z = (x - mean) / np.sqrt(var + 1e-5) + norm.alpha[...] * (mean - m) / np.sqrt(v + 1e-5)
    np.testing.assert_allclose(norm(x, None), norm.gamma[...] * z + norm.beta[...], rtol=2e-5, atol=2e-5)


def test_conditional_norm_takes_the_row_of_each_example():
    norm = refinenet.ConditionalInstanceNormPlus(4, 3, rngs=nnx.Rngs(0))
    gamma, alpha, beta = jnp.split(norm.embed.embedding[...], 3, axis=-1)
    assert not beta.any()
    assert abs(float(jnp.concatenate([gamma, alpha]).mean()) - 1) < 0.05
    single = refinenet.InstanceNormPlus(4, rngs=nnx.Rngs(0))
    single.gamma[...], single.alpha[...], single.beta[...] = gamma[2], alpha[2], beta[2]
    x = image(2, 3, 3, 4)
    np.testing.assert_allclose(norm(x, jnp.array([0, 2]))[1], single(x, None)[1], rtol=1e-6, atol=1e-6)


def test_pools_against_loops():
    x = np.asarray(image(2, 6, 4, 3))
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    np.testing.assert_array_equal(refinenet.max_pool_5x5(jnp.asarray(x)), np.nanmax(windows, (-2, -1)))
    np.testing.assert_allclose(refinenet.mean_pool_5x5(jnp.asarray(x)), np.nansum(windows, (-2, -1)) / 25, atol=1e-6)


def test_bilinear_resizing_keeps_corners_and_linear_images():
    plane = lambda h, w: (jnp.linspace(0, 1, h)[:, None] + 3 * jnp.linspace(0, 1, w))[None, :, :, None]
    np.testing.assert_allclose(refinenet.resize_bilinear(plane(4, 3), 8, 7), plane(8, 7), atol=1e-6)
    x = image(1, 4, 4, 2)
    resized = refinenet.resize_bilinear(x, 8, 8)
    np.testing.assert_allclose(resized[:, ::7, ::7], x[:, ::3, ::3], atol=1e-6)


@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_a_dilated_block_reads_pixels_on_its_grid(dilation):
    # Normalisation spreads every change over the whole image, so look at the convolutions alone.
    block = refinenet.ResidualBlock(2, 2, 0, dilation=dilation, rngs=nnx.Rngs(0))
    impulse = jnp.zeros((1, 9, 9, 2)).at[0, 4, 4].set(1.0)
    reached = np.unique(np.nonzero(np.abs(block.conv1(impulse) - block.conv1(0 * impulse)).sum((0, 2, 3)) > 1e-6)[0])
    assert reached.tolist() == [4 - dilation, 4, 4 + dilation]


def test_halving_block_pools_after_its_convolutions():
    block = refinenet.ResidualBlock(2, 4, 0, new_level=True, halve=True, rngs=nnx.Rngs(0))
    block.conv2.kernel[...] *= 0.0
    block.conv2.bias[...] *= 0.0
    x = image(1, 4, 4, 2)
    pooled = x.reshape(1, 2, 2, 2, 2, 2).mean((2, 4))
    np.testing.assert_allclose(block(x, None), block.shortcut(pooled), atol=1e-6)


def tiny(cls, dtype="float32", **kwargs):
    """(apply, params) of a small network for 8 x 8 images of one channel, with values of order 1 / sqrt(fan_in)."""
    make = lambda rngs: cls(in_channels=1, ngf=4, depth="shallow", rngs=rngs, **kwargs)
    init, apply = init_apply(make, dtype)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(init, jax.random.key(0))
    # NumPy draws the values, since compiling the initialisers takes far longer than anything else here.

    def draw(leaf):
        return jnp.asarray(rng.standard_normal(leaf.shape) / np.sqrt(leaf.size / leaf.shape[-1]), jnp.float32)

    return jax.jit(apply), jax.tree.map(draw, shapes)


def test_ncsn_rounds_the_level_and_treats_rows_alone():
    apply, params = tiny(refinenet.NCSN, num_levels=3)
    x = image(3, 8, 8, 1)
    together = apply(params, x, jnp.array([0.0, 1.0, 2.0]))
    one = apply(params, x, jnp.array([1.3, 0.7, 1.0]))
    np.testing.assert_allclose(together[1], one[1], rtol=1e-5, atol=1e-5)
    assert not np.allclose(together[0], one[0], atol=1e-4)
    assert not np.allclose(together[2], one[2], atol=1e-4)
    assert np.isnan(apply(params, x, jnp.full(3, 3.0))).all()


def test_ncsnv2_ignores_the_noise_level():
    apply, params = tiny(refinenet.NCSNv2)
    x = image(2, 8, 8, 1)
    np.testing.assert_array_equal(apply(params, x, jnp.zeros(2)), apply(params, x, jnp.full(2, 7.0)))


@pytest.mark.slow
def test_rematerialisation_wraps_every_block():
    apply, params = tiny(refinenet.NCSN, num_levels=3, remat=True)
    args = image(2, 8, 8, 1), jnp.ones(2)
    kept, _ = tiny(refinenet.NCSN, num_levels=3)
    np.testing.assert_allclose(apply(params, *args), kept(params, *args), rtol=1e-5, atol=1e-5)
    gradient = jax.make_jaxpr(jax.grad(lambda p: apply(p, *args).sum()))(params)
    assert str(gradient).count("prevent_cse") >= 9  # three levels of two residual blocks and a refine block


@pytest.mark.slow
def test_bfloat16_stays_close():
    exact, params = tiny(refinenet.NCSN, num_levels=3)
    rounded, _ = tiny(refinenet.NCSN, "bfloat16", num_levels=3)
    args = params, image(2, 8, 8, 1), jnp.array([0.0, 2.0])
    assert jnp.linalg.norm(rounded(*args) - exact(*args)) < 0.1 * jnp.linalg.norm(exact(*args))


def test_chained_pooling_can_be_differentiated_twice():
    # Sliced score matching differentiates v^T J v, and the pool pads with minus infinity.
    block = refinenet.CRPBlock(2, 0, rngs=nnx.Rngs(0))
    x, v = image(1, 6, 6, 2), image(1, 6, 6, 2, seed=1)
    curvature = lambda x: jnp.vdot(v, jax.jvp(lambda x: jnp.square(block(x, None)), (x,), (v,))[1])
    gradient = jax.jit(jax.grad(curvature))(x)
    step = 1e-2 * image(1, 6, 6, 2, seed=2)
    slope = (curvature(x + step) - curvature(x - step)) / 2
    np.testing.assert_allclose(jnp.vdot(gradient, step), slope, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize(
    "cls, kwargs, message",
    [
        (refinenet.NCSN, {"num_levels": 0}, "num_levels=0"),
        (refinenet.NCSN, {"ngf": 1}, "ngf=1"),
        (refinenet.NCSNv2, {"depth": "deep"}, "depth .*'deep'"),
    ],
)
def test_refuses_impossible_sizes(cls, kwargs, message):
    with pytest.raises(ValueError, match=message):
        cls(**kwargs, rngs=nnx.Rngs(0))


def test_refuses_images_it_cannot_halve():
    init, apply = init_apply(lambda rngs: refinenet.NCSNv2(ngf=2, depth="deepest", rngs=rngs))
    params = jax.eval_shape(init, jax.random.key(0))
    with pytest.raises(ValueError, match="multiple of 8"):
        jax.eval_shape(apply, params, jnp.zeros((1, 12, 12, 3)), jnp.zeros(1))
    with pytest.raises(ValueError, match=r"\(1, 8, 8, 1\).* 3\]"):
        jax.eval_shape(apply, params, jnp.zeros((1, 8, 8, 1)), jnp.zeros(1))
