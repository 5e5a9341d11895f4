"""Streams of keys: the same as NNX's, also where keys are drawn while a program is traced."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from diffusion_jax.networks.streams import streams


def drawn(rngs: nnx.Rngs) -> jax.Array:
    keys = [rngs.params(), rngs.dropout(), rngs.dropout(), rngs.params()]
    return jnp.stack([jax.random.key_data(key) for key in keys])


def test_the_keys_are_those_of_nnx():
    key = jax.random.key(3)
    expected = drawn(nnx.Rngs(default=key, dropout=key))
    assert len(np.unique(expected, axis=0)) == 2  # both streams begin with one key
    np.testing.assert_array_equal(drawn(streams(default=key, dropout=key)), expected)
    np.testing.assert_array_equal(jax.jit(lambda key: drawn(streams(default=key, dropout=key)))(key), expected)
