"""Flow networks: the inverse, log |det| and the density in closed form, causality, and guidance of the affine maps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.networks.functional import init_methods
from diffusion_jax.networks.invertible import Affine, guided
from diffusion_jax.networks.real_nvp import RealNVP, checkerboard
from diffusion_jax.networks.tarflow import AutoregressiveBlock, TarFlow

TAR = dict(patch_size=1, channels=8, num_blocks=2, layers_per_block=1, head_dim=4, expansion=2)
NVP = dict(num_couplings=3, hidden=8, num_layers=1)
NETWORKS = {"tarflow": functools.partial(TarFlow, **TAR), "real_nvp": functools.partial(RealNVP, **NVP)}
EACH = pytest.mark.parametrize("name", NETWORKS)


@functools.cache
def network(name, shape=(2, 2, 2), scale=0.15, **sizes):
    """(params, forward, inverse) with every parameter shaken, since the network starts as the identity."""
    make = lambda rngs: NETWORKS[name](shape=shape, **sizes, rngs=rngs)
    init, (forward, inverse) = init_methods(make, ("forward", "inverse"))
    params, random = jax.jit(init)(jax.random.key(0)), np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + jnp.float32(scale * random.standard_normal(x.shape)), params)
    return params, jax.jit(forward), jax.jit(inverse)


def examples(n=4, shape=(2, 2, 2)):
    return jax.random.normal(jax.random.key(1), (n, *shape))


@EACH
def test_log_det_is_that_of_the_jacobian(name):
    params, forward, _ = network(name)
    x = examples()
    _, log_det = forward(params, x)
    jacobian = jax.vmap(jax.jacfwd(lambda v: forward(params, v.reshape(1, 2, 2, 2))[0].reshape(8)))(x.reshape(4, 8))
    np.testing.assert_allclose(log_det, jnp.linalg.slogdet(jacobian)[1], rtol=1e-4, atol=1e-4)
    assert np.std(log_det) > 0.01


@EACH
@pytest.mark.parametrize("shape", [(2, 2, 2), (6,)])
def test_the_inverse_returns_x(name, shape):
    params, forward, inverse = network(name, shape)
    x = examples(shape=shape)
    z, _ = forward(params, x)
    np.testing.assert_allclose(inverse(params, z), x, atol=1e-4)
    assert np.abs(z - x).max() > 0.1


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_patches_are_put_back_where_they_were(num_blocks):
    """Blocks that only shift: x - z is the same for all x, if tokens return to their places."""
    params, forward, inverse = network("tarflow", (4, 4, 3), patch_size=2, num_blocks=num_blocks)
    params = jax.tree.map(jnp.zeros_like, params)
    marked = jnp.arange(24.0) / 24  # bias of proj_out: a = 0, b = the place within a token
    for block in params["blocks"].values():
        block["proj_out"]["bias"] = jnp.where(jnp.arange(24) < 12, 0.0, marked)
    x = examples(shape=(4, 4, 3))
    z, log_det = forward(params, x)
    shift = np.asarray(x - z)
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:1], shift.shape), atol=1e-6)
    np.testing.assert_array_equal(log_det, np.zeros(4))
    patches = shift[0].reshape(2, 2, 2, 2, 3).transpose(0, 2, 1, 3, 4).reshape(4, 12)
    first, last = (patches == 0).all(1), np.argsort(np.abs(patches).sum(1))
    if num_blocks == 1:  # the first token stays, the others are shifted by the same numbers
        np.testing.assert_array_equal(first, [True, False, False, False])
        np.testing.assert_allclose(patches[1:], np.broadcast_to(marked[12:], (3, 12)), rtol=1e-5)
    else:  # the second block keeps the last one: both ends are shifted once, the rest twice
        assert set(last[:2]) == {0, 3}
        np.testing.assert_allclose(patches[1:3], np.broadcast_to(2 * marked[12:], (2, 12)), rtol=1e-5)
    np.testing.assert_allclose(inverse(params, z), x, atol=1e-5)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["real_nvp", "tarflow"])
def test_the_density_of_two_numbers_integrates_to_one(name):
    params, forward, _ = network(name, (2,))
    side = jnp.linspace(-12, 12, 401)
    x = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)
    z, log_det = forward(params, x)
    density = jnp.exp(jax.scipy.stats.norm.logpdf(z).sum(-1) + log_det)
    assert float(density.sum() * (side[1] - side[0]) ** 2) == pytest.approx(1, abs=2e-3)


def test_a_block_is_causal_and_its_jacobian_triangular():
    block = AutoregressiveBlock(
        num_tokens=4,
        token_dim=2,
        channels=8,
        num_layers=1,
        num_heads=2,
        expansion=2,
        dropout=0.0,
        num_classes=0,
        implementation=None,
        rngs=nnx.Rngs(0),
    )
    block.proj_out.kernel[...] = jax.random.normal(jax.random.key(0), block.proj_out.kernel.shape)
    x = jax.random.normal(jax.random.key(1), (4, 2))
    jacobian = jax.jit(jax.jacfwd(lambda x: block(x[None], None)[0][0]))(x)  # [token, entry, token, entry]
    size = np.abs(np.asarray(jacobian)).sum((1, 3))
    np.testing.assert_array_equal(np.triu(size, 1), np.zeros((4, 4)))
    assert (np.tril(size) > 0).sum() == 10
    diagonal = np.asarray(jacobian)[np.arange(4), :, np.arange(4)]
    np.testing.assert_allclose(diagonal, [np.diag(np.diag(part)) for part in diagonal], atol=1e-6)
    flipped = jax.jit(jax.jacfwd(lambda x: block(x[None, ::-1], None)[0][0, ::-1]))(x)
    assert np.triu(np.abs(np.asarray(flipped)).sum((1, 3)), 1).max() > 0


@EACH
def test_it_starts_as_the_identity(name):
    params, forward, inverse = network(name, scale=0.0)
    z, log_det = forward(params, examples())
    np.testing.assert_array_equal(z, examples())
    np.testing.assert_array_equal(log_det, np.zeros(4))
    np.testing.assert_array_equal(inverse(params, examples()), examples())


@EACH
def test_classes_change_the_flow_and_no_class_is_the_null_class(name):
    params, forward, inverse = network(name, num_classes=3)
    x, cond = examples(), {"label": jnp.array([0, 1, 2, 3])}
    z, _ = forward(params, x, cond)
    null, _ = forward(params, x)
    distance = np.abs(np.asarray(z - null)).max((1, 2, 3))
    assert (distance[:3] > 1e-3).all() and distance[3] < 1e-6
    np.testing.assert_allclose(inverse(params, z, cond), x, atol=1e-4)


def test_the_null_class_of_tarflow_is_the_mean_of_the_classes():
    params, forward, _ = network("tarflow", num_classes=3)
    one = jax.tree.map(lambda x: x, params)
    for block in one["blocks"].values():
        block["class_embed"] = jnp.broadcast_to(block["class_embed"].mean(0), block["class_embed"].shape)
    x = examples()
    np.testing.assert_allclose(forward(params, x)[0], forward(one, x, {"label": jnp.arange(4) % 3})[0], atol=1e-5)


@EACH
def test_guidance_of_scale_1_is_the_conditional_flow_and_of_scale_0_the_null_flow(name):
    params, _, inverse = network(name, num_classes=3)
    z, cond, null = examples(), {"label": jnp.array([0, 1, 2, 0])}, {"label": jnp.array([3])}
    plain, without = inverse(params, z, cond), inverse(params, z)
    np.testing.assert_allclose(inverse(params, z, cond, null, jnp.float32(1)), plain, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(inverse(params, z, cond, null, jnp.float32(0)), without, rtol=1e-4, atol=1e-4)
    assert np.abs(inverse(params, z, cond, null, jnp.float32(2)) - plain).max() > 1e-3


def test_guidance_extrapolates_both_numbers():
    affine = Affine(jnp.array([[1.0], [0.5]]), jnp.array([[2.0], [3.0]]))
    a, b = guided(affine, jnp.float32(3))
    np.testing.assert_allclose((a, b), (np.array([[2.0]]), np.array([[0.0]])))


def test_a_coupling_keeps_a_checkerboard():
    np.testing.assert_array_equal(checkerboard((2, 3), 0), [[0, 1, 0], [1, 0, 1]])
    params, forward, _ = network("real_nvp", num_couplings=1)
    x = examples()
    moved = np.asarray(forward(params, x)[0] != x)
    np.testing.assert_array_equal(moved, np.broadcast_to(checkerboard((2, 2, 2), 1), moved.shape))


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["real_nvp", "tarflow"])
def test_dropout_needs_a_key(name):
    params, forward, _ = network(name, dropout=0.5)
    x = examples()
    plain, dropped = forward(params, x), forward(params, x, key=jax.random.key(0))
    assert np.abs(plain[0] - dropped[0]).max() > 1e-3
    np.testing.assert_array_equal(dropped[0], forward(params, x, key=jax.random.key(0))[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NETWORKS["tarflow"](shape=(3, 2, 1), patch_size=2, rngs=nnx.Rngs(0)), "positive divisor of 3"),
        (lambda: TarFlow(shape=(2, 2, 1), channels=8, head_dim=5, rngs=nnx.Rngs(0)), "head_dim=5"),
        (lambda: NETWORKS["real_nvp"](shape=(1,), rngs=nnx.Rngs(0)), "two entries"),
        (lambda: NETWORKS["real_nvp"](shape=(4,), rngs=nnx.Rngs(0)).forward(jnp.zeros((2, 3))), r"\(2, 3\)"),
        (lambda: NETWORKS["tarflow"](shape=(4,), rngs=nnx.Rngs(0)).inverse(jnp.zeros((2, 3))), r"\(2, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
