"""The residual MLP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.networks.functional import count_parameters, init_apply
from diffusion_jax.networks.mlp import MLP
from tests.networks import random_params


def build(dtype="float32", **kwargs):
    init, apply = init_apply(lambda rngs: MLP(**kwargs, rngs=rngs), dtype)
    return random_params(init), jax.jit(apply)


def test_count():
    params, _ = build(shape=(2,), hidden=8, num_layers=3)
    fourier, embedding = 4, (8 * 8 + 8) + (8 * 8 + 8)
    block = 16 + 3 * (8 * 8 + 8)
    assert count_parameters(params) == fourier + embedding + (2 * 8 + 8) + 3 * block + 16 + (8 * 2 + 2)


@pytest.mark.parametrize(
    ("shape", "out_channels", "out"), [((2,), None, (2,)), ((4, 4, 3), None, (4, 4, 3)), ((5,), 7, (7,))]
)
def test_shapes(shape, out_channels, out):
    params, apply = build(shape=shape, out_channels=out_channels, hidden=8, num_layers=1)
    assert apply(params, jnp.ones((3, *shape)), jnp.ones(3)).shape == (3, *out)


def test_starts_at_zero_and_depends_on_everything():
    kwargs = dict(hidden=16, num_layers=2, num_classes=3, dropout=0.5)
    init, apply = init_apply(lambda rngs: MLP(**kwargs, rngs=rngs))
    apply = jax.jit(apply)
    x, c = jax.random.normal(jax.random.key(0), (4, 2)), jnp.linspace(-1.0, 1.0, 4)
    params = init(jax.random.key(0))
    np.testing.assert_array_equal(apply(params, x, c), 0.0)
    params = random_params(init)
    y = apply(params, x, c)
    label = jnp.full(4, 1)
    np.testing.assert_array_equal(y, apply(params, x, c, {"label": jnp.full(4, 3)}))
    for other in (
        apply(params, x + 1, c),
        apply(params, x, c + 1),
        apply(params, x, c, {"label": label}),
        apply(params, x, c, key=jax.random.key(0)),
    ):
        assert (np.abs(other - y).max(-1) > 1e-4).all()


def test_refusals():
    with pytest.raises(ValueError, match="shape="):
        build(shape=())
    with pytest.raises(ValueError, match="activation='swish2'"):
        build(activation="swish2")
    params, apply = build(shape=(2,), hidden=8, num_layers=1)
    with pytest.raises(ValueError, match=r"\(4, 3\).*\[batch, 2\]"):
        apply(params, jnp.ones((4, 3)), jnp.ones(4))
