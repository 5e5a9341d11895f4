"""NCSN++ and FIR resampling: resampling against its definition, sizes against published ones, and the options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.networks import ncsnpp, resample
from diffusion_jax.networks.functional import count_parameters, init_apply


def image(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def upfirdn_by_loops(x, kernel, up, down, pad, gain):
    """One image channel: zeros after every pixel, zeros around, true convolution, every `down`-th pixel."""
    height, width = x.shape
    wide = np.zeros((height * up, width * up))
    wide[::up, ::up] = x
    wide = np.pad(wide, pad)
    taps = gain * np.outer(kernel, kernel) / np.sum(kernel) ** 2
    n = len(kernel)
    rows, columns = wide.shape[0] - n + 1, wide.shape[1] - n + 1
    full = [[(wide[i : i + n, j : j + n] * taps[::-1, ::-1]).sum() for j in range(columns)] for i in range(rows)]
    return np.array(full)[::down, ::down]


@pytest.mark.parametrize(
    "kernel, up, down, pad", [((1, 3, 3, 1), 2, 1, (2, 1)), ((1, 2, 5), 1, 2, (1, 0)), ((4, 1, 0, 2), 3, 2, (0, 3))]
)
def test_upfirdn_against_loops(kernel, up, down, pad):
    x = image(2, 5, 4, 3)
    y = resample.upfirdn_2d(x, kernel, up=up, down=down, pad=pad, gain=2.5)
    expected = [[upfirdn_by_loops(x[b, :, :, c], kernel, up, down, pad, 2.5) for c in range(3)] for b in range(2)]
    np.testing.assert_allclose(jnp.moveaxis(y, -1, 1), expected, atol=1e-5)


@pytest.mark.parametrize("change, size", [(resample.upsample_2d, 16), (resample.downsample_2d, 4)])
def test_resampling_keeps_constants_inside(change, size):
    y = change(jnp.ones((1, 8, 8, 1)))
    assert y.shape == (1, size, size, 1)
    np.testing.assert_allclose(y[:, 1:-1, 1:-1], 1.0, atol=1e-6)


def test_two_taps_are_repetition_and_averages():
    x = image(1, 4, 4, 2)
    np.testing.assert_allclose(resample.upsample_2d(x, (1, 1)), ncsnpp.upsample(x, None), atol=1e-6)
    np.testing.assert_allclose(resample.downsample_2d(x, (1, 1)), ncsnpp.downsample(x, None), atol=1e-6)


def test_convolution_with_a_delta_is_resampling_alone():
    x = image(1, 8, 8, 2)
    delta = jnp.zeros((3, 3, 2, 2)).at[1, 1].set(jnp.eye(2))
    np.testing.assert_allclose(resample.upsample_conv_2d(x, delta), resample.upsample_2d(x), atol=1e-6)
    np.testing.assert_allclose(resample.conv_downsample_2d(x, delta), resample.downsample_2d(x), atol=1e-6)


DDPMPP = {"fir": False, "progressive_input": "none", "embedding": "positional"}
LARGE = {"progressive": "output_skip", "progressive_input": "input_skip"}


@pytest.mark.parametrize(
    "kwargs, millions",
    # The sizes that the literature on score SDEs gives for the released CIFAR-10 networks (62 M to 108 M) and for
    # CelebA-HQ 256 (65.6 M, also that of sgmse's NCSN++, issue 11). The exact counts are checked by parity tests.
    [
        ({"image_size": 32}, 62.8),
        ({"image_size": 32, "num_res_blocks": 8}, 107.6),
        ({"image_size": 32, **DDPMPP}, 61.8),
        ({"image_size": 32, "num_res_blocks": 8, **DDPMPP}, 106.6),
        ({"image_size": 256, "ch_mult": (1, 1, 2, 2, 2, 2, 2), "num_res_blocks": 2, **LARGE}, 65.6),
    ],
)
def test_parameter_counts_of_the_paper(kwargs, millions):
    init, _ = init_apply(lambda rngs: ncsnpp.NCSNpp(rngs=rngs, **kwargs))
    params = jax.eval_shape(init, jax.random.key(0))
    assert round(count_parameters(params) / 1e6, 1) == millions


def tiny(dtype="float32", **kwargs):
    """(apply, params) of a small network for 8 x 8 images, with values of order 1 / sqrt(fan_in)."""
    options = {"image_size": 8, "in_channels": 1, "nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, **kwargs}
    options = {"attn_resolutions": (4,), **options}
    init, apply = init_apply(lambda rngs: ncsnpp.NCSNpp(rngs=rngs, **options), dtype)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(init, jax.random.key(0))
    # NumPy draws the values, since compiling the initialisers takes far longer than anything else here.

    def draw(leaf):
        return jnp.asarray(rng.standard_normal(leaf.shape) / np.sqrt(leaf.size / leaf.shape[-1]), jnp.float32)

    return jax.jit(apply), jax.tree.map(draw, shapes)


VARIANTS = [
    {},
    {"fir": False, "progressive_input": "residual", "skip_rescale": False},
    {"resblock_type": "ddpm", "progressive_input": "none"},
    {"resblock_type": "ddpm", "fir": False, "resamp_with_conv": False, **LARGE},
    {"progressive_combine": "cat", **LARGE},
    {"conditional": False, "num_classes": 3, "out_channels": 2},
]


@pytest.mark.few(2)
@pytest.mark.parametrize("kwargs", VARIANTS)
def test_every_pixel_of_the_output_depends_on_the_input(kwargs):
    apply, params = tiny(**kwargs)
    x = image(2, 8, 8, 1)
    y = apply(params, x, jnp.zeros(2))
    assert y.shape == (2, 8, 8, kwargs.get("out_channels", 1))
    moved = apply(params, x.at[0, 3, 3].add(1.0), jnp.zeros(2))
    assert (jnp.abs(moved - y)[0] > 0).all()
    np.testing.assert_allclose(moved[1], y[1], atol=1e-6)


def test_output_starts_at_zero():
    head = ncsnpp.Output(8, 3, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(head(image(1, 4, 4, 8)), 0.0)


def test_skip_rescale_keeps_the_variance_of_a_sum():
    # At the start a residual branch is zero, so that a block is its rescaled shortcut.
    block = ncsnpp.ResnetBlock(
        8, 8, 0, resampling="none", fir_kernel=None, dropout=0.0, rescale=0.5**0.5, rngs=nnx.Rngs(0)
    )
    x = image(1, 4, 4, 8)
    np.testing.assert_allclose(block(x, None), x / np.sqrt(2), rtol=1e-6)


def test_noise_level_and_label_matter():
    apply, params = tiny(num_classes=3)
    x = image(2, 8, 8, 1)
    plain = apply(params, x, jnp.zeros(2))
    null = apply(params, x, jnp.zeros(2), {"label": jnp.array([3, 3])})
    np.testing.assert_array_equal(plain, null)
    labelled = apply(params, x, jnp.zeros(2), {"label": jnp.array([3, 1])})
    np.testing.assert_allclose(labelled[0], plain[0], atol=1e-6)
    assert not np.allclose(labelled[1], plain[1], atol=1e-4)
    assert not np.allclose(apply(params, x, jnp.ones(2)), plain, atol=1e-4)


@pytest.mark.slow
def test_dropout_needs_a_key_and_remat_repeats_it():
    options = {"dropout": 0.5, "ch_mult": (1,), "attn_resolutions": ()}
    kept, params = tiny(**options)
    recomputed, _ = tiny(remat=True, **options)
    x, c_noise = image(1, 8, 8, 1), jnp.zeros(1)
    outputs = [kept(params, x, c_noise, key=jax.random.key(i)) for i in (1, 1, 2)]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert not np.allclose(outputs[0], outputs[2], atol=1e-4)
    assert not np.allclose(outputs[0], kept(params, x, c_noise), atol=1e-4)

    def loss(params):
        y = recomputed(params, x, c_noise, key=jax.random.key(1))
        return jnp.square(y).sum(), y

    gradient, y = jax.jit(jax.grad(loss, has_aux=True))(params)
    # Two programs round differently; another dropout mask would differ by far more.
    np.testing.assert_allclose(y, recomputed(params, x, c_noise, key=jax.random.key(1)), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(gradient["time_embedding"].pop("time_proj")["weight"], 0.0)
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0


def test_bfloat16_stays_close():
    exact, params = tiny()
    rounded, _ = tiny("bfloat16")
    args = params, image(2, 8, 8, 1), jnp.array([-1.0, 2.0])
    assert jnp.linalg.norm(rounded(*args) - exact(*args)) < 0.1 * jnp.linalg.norm(exact(*args))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"resblock_type": "resnet"}, "resblock_type .*'resnet'"),
        ({"progressive": "residual"}, "progressive .*'residual'"),
        ({"progressive_input": "skip"}, "progressive_input .*'skip'"),
        ({"progressive_combine": "mean"}, "progressive_combine .*'mean'"),
        ({"embedding": "learned"}, "embedding='learned'"),
        ({"nf": 6}, "nf=6"),
        ({"image_size": 9}, "image_size=9"),
        ({"attn_resolutions": (5,)}, "attn_resolutions"),
        ({"num_res_blocks": 0}, "num_res_blocks=0"),
    ],
)
def test_refuses_impossible_options(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny(**kwargs)


def test_refuses_images_it_cannot_halve():
    apply, params = tiny()
    with pytest.raises(ValueError, match="multiple of 2"):
        jax.eval_shape(apply, params, jnp.zeros((1, 7, 8, 1)), jnp.zeros(1))
    with pytest.raises(ValueError, match=r"\(1, 8, 8, 3\).* 1\]"):
        jax.eval_shape(apply, params, jnp.zeros((1, 8, 8, 3)), jnp.zeros(1))
