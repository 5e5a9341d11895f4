"""The transformer of vectors: what it reads, and the sizes that it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.networks.functional import init_apply
from diffusion_jax.networks.sequence_dit import SequenceDiT
from tests.networks.test_token_dit import filled

SMALL = dict(shape=(6, 3), hidden_size=16, depth=1, num_heads=2, cond_dim=8)


def test_it_reads_vectors_positions_and_t():
    init, apply = init_apply(lambda rngs: SequenceDiT(**SMALL, rngs=rngs))
    params, x = init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (2, 6, 3))
    assert not apply(params, x, jnp.ones(2)).any()  # the output starts at zero
    params = filled(params)
    out = apply(params, x, jnp.ones(2))
    assert out.shape == (2, 6, 3)
    assert np.abs(out - apply(params, x, jnp.full(2, 900.0))).max() > 1e-3
    assert np.abs(out - apply(params, x[:, ::-1], jnp.ones(2))[:, ::-1]).max() > 1e-3
    assert np.abs(out - apply(params, x.at[:, 5].add(1), jnp.ones(2)))[:, 0].max() > 1e-4
    np.testing.assert_allclose(out[:1], apply(params, x[:1], jnp.ones(1)), atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (dict(shape=(6,)), r"\(6,\) are no sequences of vectors"),
        (dict(num_heads=16), "must be even"),
        (dict(num_heads=5), "5"),
    ],
)
def test_refused_sizes(wrong, words):
    with pytest.raises(ValueError, match=words):
        init_apply(lambda rngs: SequenceDiT(**SMALL | wrong, rngs=rngs))[0](jax.random.key(0))
