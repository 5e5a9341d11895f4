"""The transformer of point clouds: symmetries, conditions, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.networks.functional import conditions_of, init_apply
from diffusion_jax.networks.point_transformer import PointTransformer
from tests.networks.test_token_dit import filled

SMALL = dict(shape=(6, 3), width=16, depth=2, num_heads=2)
KEY = jax.random.key(0)
ORDER = np.array([3, 0, 5, 1, 4, 2])


def network(**options):
    init, apply = init_apply(lambda rngs: PointTransformer(**SMALL | options, rngs=rngs))
    params = init(KEY)
    shape = (SMALL | options)["shape"]
    x = jax.random.normal(jax.random.key(1), (2, *shape))
    assert not apply(params, x, jnp.ones(2)).any()  # the output starts at zero
    return filled(params), jax.jit(apply), x


@pytest.mark.parametrize("options", [{}, {"inducing": 3}, {"prepend_time": False, "embedding": "fourier"}])
def test_permuting_the_points_permutes_the_output(options):
    """With codes of the positions it would not: the last lines add some."""
    params, apply, x = network(**options)
    t = jnp.array([0.3, 2.0])
    out = apply(params, x, t)
    np.testing.assert_allclose(apply(params, x[:, ORDER], t), out[:, ORDER], atol=2e-5)
    assert np.abs(out - apply(params, x, t + 1)).max() > 1e-3
    assert np.abs(out - apply(params, x.at[:, 5].add(1), t))[:, 0].max() > 1e-5  # every point sees the others
    np.testing.assert_allclose(out[:1], apply(params, x[:1], t[:1]), atol=1e-5)
    codes = jnp.arange(6.0)[:, None]
    with_codes = lambda x: apply(params, x + codes, t)
    assert np.abs(with_codes(x[:, ORDER]) - with_codes(x)[:, ORDER]).max() > 1e-2


@pytest.mark.parametrize("inducing", [0, 3])
def test_points_that_do_not_exist_have_no_effect(inducing):
    params, apply, x = network(masked=True, inducing=inducing)
    nodes = jnp.array([[True] * 4 + [False] * 2] * 2)
    out = apply(params, x, jnp.ones(2), {"nodes": nodes})
    other = apply(params, x.at[:, 4:].set(7.0), jnp.ones(2), {"nodes": nodes})
    np.testing.assert_allclose(out[:, :4], other[:, :4], atol=1e-5)
    alone, _ = init_apply(lambda rngs: PointTransformer(**SMALL | dict(shape=(4, 3), inducing=inducing), rngs=rngs))
    assert jax.tree.structure(jax.eval_shape(alone, KEY)) == jax.tree.structure(params)
    _, small = init_apply(lambda rngs: PointTransformer(**SMALL | dict(shape=(4, 3), inducing=inducing), rngs=rngs))
    np.testing.assert_allclose(small(params, x[:, :4], jnp.ones(2)), out[:, :4], atol=1e-5)
    np.testing.assert_allclose(  # without the condition every point exists
        apply(params, x, jnp.ones(2)), apply(params, x, jnp.ones(2), {"nodes": jnp.ones((2, 6), bool)}), atol=1e-6
    )


def test_given_points_enter_clean_in_place_of_x():
    params, apply, x = network(known=True)
    known = x.at[:, 2:].set(jnp.nan)
    out = apply(params, x, jnp.ones(2), {"known": known})
    np.testing.assert_allclose(apply(params, x.at[:, :2].add(5), jnp.ones(2), {"known": known}), out, atol=1e-6)
    assert np.abs(apply(params, x, jnp.ones(2), {"known": known + 1}) - out).max() > 1e-3
    assert np.abs(apply(params, x, jnp.ones(2)) - out).max() > 1e-3  # they are marked
    condition = conditions_of(lambda rngs: PointTransformer(**SMALL, known=True, rngs=rngs))["known"]
    assert condition.structure and np.isnan(condition.null)


def test_conditions_are_tokens():
    options = dict(num_classes=4, vector_dim=5, token_dim=8, max_tokens=3)
    params, apply, x = network(**options)
    cond = {
        "label": jnp.array([1, 2]),
        "vector": jnp.ones((2, 5)) / np.sqrt(5),
        "tokens": jnp.ones((2, 3, 8)),
        "mask": jnp.array([[True, True, False]] * 2),
    }
    out = apply(params, x, jnp.ones(2), cond)
    for name, value in dict(label=jnp.array([0, 0]), vector=jnp.zeros((2, 5)), tokens=jnp.zeros((2, 3, 8))).items():
        assert np.abs(apply(params, x, jnp.ones(2), {**cond, name: value}) - out).max() > 1e-5, name
    hidden = {**cond, "tokens": cond["tokens"].at[:, 2].set(9.0)}
    np.testing.assert_allclose(apply(params, x, jnp.ones(2), hidden), out, atol=1e-6)


def test_a_learned_variance_doubles_the_channels():
    params, apply, x = network(learn_sigma=True)
    assert apply(params, x, jnp.ones(2)).shape == (2, 6, 6)


@pytest.mark.parametrize(("wrong", "words"), [(dict(shape=(6,)), "no clouds"), (dict(num_heads=3), "num_heads=3")])
def test_refused_sizes(wrong, words):
    with pytest.raises(ValueError, match=words):
        init_apply(lambda rngs: PointTransformer(**SMALL | wrong, rngs=rngs))[0](KEY)
