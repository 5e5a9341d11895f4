"""Logits of grey levels: the masses of a truncated logistic distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.networks import level_logits


def test_logistic_logits_are_the_masses_of_the_bins():
    levels, mean, scale = 9, 0.3, 0.2
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    centres, half = np.linspace(-1, 1, levels), 1 / (levels - 1)
    mass = sigmoid((centres + half - mean) / scale) - sigmoid((centres - half - mean) / scale)
    ours = level_logits.logistic_logits(jnp.float32(mean), jnp.float32(np.log(scale)), levels)
    np.testing.assert_allclose(jax.nn.softmax(ours), mass / mass.sum(), rtol=1e-4)
    sharp = level_logits.logistic_logits(jnp.float32(-1.0), jnp.float32(-8.0), levels)
    assert np.isfinite(sharp).all() and int(jnp.argmax(sharp)) == 0


@pytest.mark.parametrize("head", level_logits.HEADS)
def test_a_network_of_zeros_prefers_the_level_it_is_given(head):
    def apply(params, x, c_noise, cond=None, *, key=None):
        assert x.min() >= -1 and x.max() <= 1
        return jnp.zeros((*x.shape[:-1], level_logits.channels(x.shape[-1], 5, head)))

    x = jnp.arange(5).reshape(1, 5, 1, 1)
    logits = level_logits.of_levels(apply, 5, head)({}, x, jnp.zeros(1))
    assert logits.shape == (1, 5, 1, 1, 5)
    if head == "logits":
        np.testing.assert_array_equal(logits.argmax(-1), x)
    else:  # tanh of the input is nearer to the middle
        assert (np.diff(np.asarray(jax.nn.softmax(logits[0, :, 0, 0]) @ jnp.arange(5.0))) > 0).all()


def test_an_unknown_head_is_refused():
    with pytest.raises(ValueError, match="head is 'x'"):
        level_logits.channels(1, 5, "x")
