"""Generators and discriminators: shapes, independence of the batch, blocks that start as the identity, counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config import names
from diffusion_jax.networks.functional import count_parameters, init_apply
from diffusion_jax.networks.r3gan import InvertedBottleneck, R3Discriminator, R3Generator
from diffusion_jax.networks.streams import streams

SHAPE = (8, 8, 3)
SIZES = {"mlp": dict(hidden=16, num_layers=2), "r3gan": dict(channels=(8, 16), num_res_blocks=1, group_width=4)}


def made(table, name, **options):
    given = dict(shape=SHAPE) if name == "mlp" else dict(image_size=8, in_channels=3)
    init, apply = init_apply(lambda rngs: table[name](**given, **SIZES[name] | options, rngs=rngs))
    params = init(jax.random.key(0))
    return jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape), params), jax.jit(apply)


@pytest.mark.parametrize("name", names.DISCRIMINATORS)
def test_the_logit_of_an_example_depends_on_nothing_else_in_its_batch(name):
    params, D = made(names.DISCRIMINATORS, name, time=True, image_channels=3, num_classes=4)
    x, image = jax.random.normal(jax.random.key(2), (2, 5, *SHAPE))
    c_noise, label = jnp.arange(5.0) / 5, jnp.arange(5) % 4
    whole = D(params, x, c_noise, {"image": image, "label": label})
    assert whole.shape == (5, 1)
    other = D(params, x.at[:3].add(9.0), c_noise, {"image": image, "label": label})
    np.testing.assert_allclose(other[3:], whole[3:], rtol=1e-5, atol=1e-6)
    # It depends on x, on the time, on the image and on the class.
    for changed in (
        (x + 1, c_noise, {"image": image, "label": label}),
        (x, c_noise + 0.5, {"image": image, "label": label}),
        (x, c_noise, {"image": image + 1, "label": label}),
        (x, c_noise, {"image": image, "label": (label + 1) % 4}),
    ):
        assert np.abs(D(params, *changed) - whole).min() > 1e-5


@pytest.mark.parametrize("name", names.GENERATORS)
def test_generators_read_z_and_the_class_and_not_the_time(name):
    params, G = made(names.GENERATORS, name, latent_dim=6, num_classes=4)
    z, label = jax.random.normal(jax.random.key(2), (5, 6)), {"label": jnp.arange(5) % 4}
    x = G(params, z, jnp.zeros(5), label)
    assert x.shape == (5, *SHAPE)
    np.testing.assert_array_equal(G(params, z, jnp.ones(5), label), x)
    for changed in ((z + 1, label), (z, {"label": (label["label"] + 1) % 4})):
        y = G(params, changed[0], jnp.zeros(5), changed[1])
        assert np.abs(y - x).max((1, 2, 3)).min() > 1e-3


def test_a_bottleneck_starts_as_the_identity_and_depth_scales_what_it_learns():
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 16))
    spread = []
    for depth in (1, 16):
        block = bottleneck(depth)
        np.testing.assert_array_equal(block(x), x)
        kernel = block.conv_2.kernel[...]
        spread.append(float(kernel.std()))
        assert kernel.shape == (3, 3, 4, 32)  # in groups of 4 channels
    assert spread[0] / spread[1] == pytest.approx(2, rel=0.05)  # 16^(1/4)
    # Gain sqrt(2 / 1.04) over the root of 9 x 4 inputs.
    assert spread[0] == pytest.approx(np.sqrt(2 / 1.04 / 36), rel=0.05)
    with pytest.raises(ValueError, match="group_width=5 must divide the 32 channels"):
        bottleneck(1, group_width=5)


def bottleneck(depth, group_width=4):
    return InvertedBottleneck(16, depth, expansion=2, group_width=group_width, rngs=streams(default=jax.random.key(1)))


@pytest.mark.parametrize(("size", "stages"), [(28, 3), (32, 4)])
def test_images_of_other_sizes(size, stages):
    options = dict(image_size=size, channels=(4,) * stages, num_res_blocks=1, group_width=4)
    init, G = init_apply(lambda rngs: R3Generator(latent_dim=3, **options, rngs=rngs))
    assert jax.eval_shape(lambda key: G(init(key), jnp.zeros((2, 3)), jnp.zeros(2)), jax.random.key(0)).shape == (
        2,
        size,
        size,
        3,
    )
    with pytest.raises(ValueError, match="image_size=30 must be a multiple of"):
        init_apply(lambda rngs: R3Discriminator(**options | dict(image_size=30), rngs=rngs))


def test_the_networks_for_cifar10_have_the_size_of_the_authors():
    """Their modules, added up: 8 blocks of 768 -> 1536 -> 1536 in 96 groups -> 768, and the ends, with classes."""
    block = 768 * 1536 + 1536 + 1536 * 16 * 9 + 1536 + 1536 * 768
    ends = {
        R3Generator: 4 * 4 * 768 + 128 * 768 + 768 * 3 + 10 * 64,
        R3Discriminator: 3 * 768 + 4 * 4 * 768 + 768 * 768 + 10 * 768,
    }
    null = {R3Generator: 64, R3Discriminator: 768}  # the vector of the null class
    for network, rest in ends.items():
        init, _ = init_apply(lambda rngs, network=network: network(image_size=32, num_classes=10, rngs=rngs))
        assert count_parameters(jax.eval_shape(init, jax.random.key(0))) == 8 * block + rest + null[network]
