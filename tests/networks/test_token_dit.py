"""The transformer of tokens: published size, rotary positions, and what it reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.networks.functional import count_parameters, init_apply
from diffusion_jax.networks.token_dit import TokenDiT, rotary

SMALL = dict(shape=(6,), states=5, out_channels=4, hidden_size=16, depth=1, num_heads=2, cond_dim=8)


def filled(params):
    """Parameters without zeros, so that every layer counts."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def test_inner_products_of_rotary_embeddings_depend_on_the_distance():
    q, k = (jax.random.normal(jax.random.key(i), (1, 1, 8)) for i in (0, 1))
    turned_q, turned_k = (rotary(jnp.broadcast_to(x, (1, 10, 8)), 2) for x in (q, k))
    products = np.asarray(jnp.einsum("nhd,mhd->hnm", turned_q.reshape(10, 2, 4), turned_k.reshape(10, 2, 4)))
    for d in range(-4, 5):
        diagonal = np.diagonal(products, d, axis1=1, axis2=2)
        np.testing.assert_allclose(diagonal, np.broadcast_to(diagonal[:, :1], diagonal.shape), atol=1e-4)
    np.testing.assert_allclose(turned_q[0, 0], q[0, 0], atol=1e-6)


def test_openwebtext_has_the_size_of_the_blocks_and_tables():
    """12 blocks of 12 d^2 + 6 (128 + 1) d + 5 d weights, two tables, and the small layers, summed by hand."""
    sizes = dict(shape=(1024,), states=50_258, out_channels=50_257, hidden_size=768, depth=12, num_heads=12)
    init, _ = init_apply(lambda rngs: TokenDiT(**sizes, cond_dim=128, rngs=rngs))
    d, c = 768, 128
    block = 12 * d * d + 4 * d + d + 6 * d * (c + 1)
    rest = 50_258 * d + 50_257 * (d + 1) + 2 * d * (c + 1) + 256 * c + c + c * c + c
    assert count_parameters(jax.eval_shape(init, jax.random.key(0))) == 12 * block + rest


def test_it_reads_positions_and_t_only_if_asked():
    x = jnp.array([[0, 1, 4, 3, 2, 2]])
    for time in (False, True):
        init, apply = init_apply(lambda rngs, time=time: TokenDiT(**SMALL, time_conditioned=time, rngs=rngs))
        params = filled(init(jax.random.key(0)))
        early, late = (apply(params, x, jnp.full(1, t)) for t in (1.0, 900.0))
        assert early.shape == (1, 6, 4) and early.dtype == jnp.float32
        assert (np.abs(early - late).max() > 1e-3) == time
        other = apply(params, x[:, ::-1], jnp.ones(1))[:, ::-1]
        assert np.abs(other - early).max() > 1e-3


def test_dropout_only_in_training():
    init, apply = init_apply(lambda rngs: TokenDiT(**SMALL, dropout=0.5, rngs=rngs))
    params, x = filled(init(jax.random.key(0))), jnp.zeros((1, 6), jnp.int32)
    plain = apply(params, x, jnp.ones(1))
    np.testing.assert_array_equal(plain, apply(params, x, jnp.ones(1)))
    assert np.abs(plain - apply(params, x, jnp.ones(1), key=jax.random.key(0))).max() > 1e-3


@pytest.mark.parametrize("wrong", [dict(num_heads=3), dict(hidden_size=6, num_heads=2), dict(shape=(6, 6))])
def test_refused_sizes(wrong):
    with pytest.raises(ValueError, match=r"num_heads|shape"):
        init_apply(lambda rngs: TokenDiT(**SMALL | wrong, rngs=rngs))
