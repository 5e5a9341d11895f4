"""ADM's and EDM's U-Nets: the null condition, orders of channels, refusals. Outputs: tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.networks.adm import ADM
from diffusion_jax.networks.attention import split_qkv
from diffusion_jax.networks.edm import DhariwalUNet, SongUNet
from diffusion_jax.networks.functional import init_apply

SMALL = dict(
    image_size=4,
    in_channels=1,
    model_channels=8,
    channel_mult=(1, 1),
    num_res_blocks=1,
    attention_resolutions=(2,),
    num_head_channels=4,
    num_groups=4,
)
SONG = dict(
    image_size=4, in_channels=1, model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=(), augment_dim=9
)
X = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
C_NOISE = jnp.array([3.0, 500.0])


def built(make):
    """apply and parameters of order 1 / sqrt(fan_in), zero initialisers included."""
    init, apply = init_apply(make)
    rng = np.random.default_rng(1)

    def draw(leaf):
        return jnp.asarray(rng.standard_normal(leaf.shape) / np.sqrt(leaf.size / leaf.shape[-1]), jnp.float32)

    return apply, jax.tree.map(draw, jax.eval_shape(init, jax.random.key(0)))


def test_the_label_for_no_class_adds_nothing_to_adm():
    apply, params = built(lambda rngs: ADM(num_classes=3, remat=True, rngs=rngs, **SMALL))
    run = jax.jit(lambda params, label: apply(params, X, C_NOISE, {"label": label}))
    none, first = (run(params, jnp.full(2, label)) for label in (3, 0))
    zeros = jax.tree.map(jnp.zeros_like, params["label_emb"])
    np.testing.assert_array_equal(none, run(params | {"label_emb": zeros}, jnp.full(2, 0)))
    assert (np.abs(first - none).max((1, 2, 3)) > 1e-3).all()


def test_without_a_word_of_it_x_is_not_augmented():
    apply, params = built(lambda rngs: SongUNet(rngs=rngs, **SONG))
    run = jax.jit(lambda cond: apply(params, X, C_NOISE, cond))
    np.testing.assert_allclose(run(None), run({"augment": jnp.zeros((2, 9))}), atol=1e-6)
    assert np.abs(run(None) - run({"augment": jnp.ones((2, 9))})).max() > 1e-3


@pytest.mark.parametrize("order", ["h3c", "3hc", "hc3"])
def test_queries_keys_and_values_are_taken_from_their_channels(order):
    """Of 2 heads of 4 channels: each channel of one layer is named by its part, head and channel."""
    sizes = {"3": 3, "h": 2, "c": 4}
    index = np.indices([sizes[axis] for axis in order]).reshape(3, -1)
    part, head, channel = (index[order.index(axis)] for axis in "3hc")
    names = 100 * part + 10 * head + channel
    found = split_qkv(jnp.asarray(names, jnp.float32)[None, None], 2, order)
    expected = [[100 * i + 10 * h + c for h in range(2) for c in range(4)] for i in range(3)]
    np.testing.assert_array_equal(np.array(found)[:, 0, 0], expected)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (ADM, SMALL | dict(attention_resolutions=(3,)), r"attention_resolutions=\(3,\) must be among"),
        (ADM, SMALL | dict(num_head_channels=3), "num_head_channels=3"),
        (ADM, SMALL | dict(num_head_channels=None, num_heads=3), "num_heads=3"),
        (ADM, SMALL | dict(image_size=5), "image_size=5"),
        (ADM, SMALL | dict(class_token_dim=4), "needs num_classes > 0"),
        (SongUNet, SONG | dict(encoder_type="residuals"), "encoder_type .*'residuals'"),
        (SongUNet, SONG | dict(attn_resolutions=(2,)), r"attn_resolutions=\(2,\) must be among"),
        (DhariwalUNet, dict(image_size=8, channels_per_head=7, attn_resolutions=(8,)), "channels_per_head=7"),
    ],
)
def test_impossible_networks_are_refused(network, options, message):
    with pytest.raises(ValueError, match=message):
        init_apply(lambda rngs: network(rngs=rngs, **options))


def test_the_features_of_an_image_are_added_to_those_of_x():
    """As in SegDiff, after the first convolution: with its last layer at zero the image encoder adds a constant."""
    sizes = SMALL | dict(image_channels=3, image_blocks=1, image_width=4)
    apply, params = built(lambda rngs: ADM(rngs=rngs, **sizes))
    assert params["input_blocks"]["0"]["0"]["kernel"].shape == (3, 3, 1, 8)  # x alone
    run = jax.jit(lambda params, image: apply(params, X, C_NOISE, {"image": image}))
    one, other = (run(params, jnp.full((2, 4, 4, 3), value)) for value in (0.5, -0.5))
    assert np.abs(one - other).max() > 1e-4
    last = jax.tree.map(jnp.zeros_like, params["rrdb"]["conv_last"])
    blind = params | {"rrdb": params["rrdb"] | {"conv_last": last}}
    np.testing.assert_array_equal(run(blind, jnp.full((2, 4, 4, 3), 0.5)), run(blind, jnp.zeros((2, 4, 4, 3))))
    with pytest.raises(ValueError, match="image_blocks=1 are of an encoder of images: image_channels must not be 0"):
        ADM(rngs=None, **SMALL, image_blocks=1)


def test_the_image_encoder_of_segdiff_has_the_parameters_of_the_original():
    """Weights and biases of the layers of RRDBNet(in_nc=3, out_nc=128, nf=64, nb=15, gc=32) in its code."""
    convolution = lambda c_in, c_out: 9 * c_in * c_out + c_out
    dense = sum(convolution(64 + 32 * i, 32) for i in range(4)) + convolution(192, 64)
    others = convolution(3, 64) + 2 * convolution(64, 64) + convolution(64, 128)
    init, _ = init_apply(
        lambda rngs: ADM(rngs=rngs, **SMALL | dict(model_channels=128, image_channels=3, image_blocks=15))
    )
    params = jax.eval_shape(init, jax.random.key(0))["rrdb"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 15 * 3 * dense + others
