"""Conditions of every kind in the networks that read them, embedded once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.networks.conditioning import CrossAttention, TokenEncoder, embed
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.networks.dit import DiT
from diffusion_jax.networks.functional import embedder, init_apply
from diffusion_jax.networks.mlp import MLP
from diffusion_jax.networks.unet import UNet
from tests.networks import random_params

LABEL, VECTOR = dict(num_classes=3), dict(vector_dim=2)
TEXT, FEATURES = dict(token_dim=8, vocabulary=9, max_tokens=5), dict(token_dim=8, max_tokens=5)
NETWORKS = {
    "mlp": (functools.partial(MLP, shape=(4, 4, 1), hidden=8, num_layers=1), LABEL | VECTOR),
    "dit": (functools.partial(DiT, image_size=4, in_channels=1, hidden_size=8, depth=1, num_heads=2), LABEL | VECTOR),
    "dit_text": (functools.partial(DiT, image_size=4, in_channels=1, hidden_size=8, depth=1, num_heads=2), TEXT),
    "dit_pooled": (
        functools.partial(DiT, image_size=4, in_channels=1, hidden_size=8, depth=1, num_heads=2, pool_tokens=True),
        TEXT,
    ),
    "unet": (
        functools.partial(
            UNet,
            image_size=4,
            in_channels=1,
            channels=4,
            channel_mult=(1,),
            num_res_blocks=1,
            attention_resolutions=(4,),
            num_groups=2,
        ),
        LABEL | VECTOR | FEATURES | dict(image_channels=2),
    ),
}


def condition(conditions, key):
    draws = {
        "label": jax.random.randint(key, (2,), 0, 3),
        "vector": jax.random.normal(key, (2, 2)),
        "image": jax.random.normal(key, (2, 4, 4, 2)),
        "tokens": jax.random.randint(key, (2, 5), 1, 9) if conditions.vocabulary else jax.random.normal(key, (2, 5, 8)),
        "mask": jnp.ones((2, 5), bool),
    }
    return conditions.of(draws)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_condition_reaches_the_output_and_none_of_them_is_the_default(name):
    make, kinds = NETWORKS[name]
    shape = dict(kinds)
    channels = shape.pop("image_channels", 0)
    conditions = Conditions(**shape, image_shape=(4, 4, channels) if channels else ())
    init, apply = init_apply(lambda rngs: make(**kinds, rngs=rngs))
    embedded = embedder(lambda rngs: make(**kinds, rngs=rngs))
    params, apply = random_params(init, scale=0.3), jax.jit(apply)
    x, c = jax.random.normal(jax.random.key(0), (2, 4, 4, 1)), jnp.array([1.0, 2.0])
    cond, other = condition(conditions, jax.random.key(1)), condition(conditions, jax.random.key(2))
    y = apply(params, x, c, cond)
    np.testing.assert_allclose(apply(params, x, c), apply(params, x, c, conditions.null(2)), rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(apply(params, x, c, embedded(params, cond)), y, rtol=2e-6, atol=1e-6)
    for kind in set(cond) - {"mask"}:
        assert np.abs(apply(params, x, c, cond | {kind: other[kind]}) - y).max() > 1e-5, kind
    with pytest.raises(ValueError, match=r"cond\['\w+'\] has shape"):
        apply(params, x, c, jax.tree.map(lambda c: c[:1], cond))


def test_labels_are_read_and_the_null_label_is_the_default():
    read = Conditions(num_classes=10)
    for cond, labels in ((None, [10, 10, 10]), ({"label": jnp.array([1, 2, 3])}, [1, 2, 3])):
        np.testing.assert_array_equal(embed(cond, read, 3, label=lambda label: label).vector, labels)
    with pytest.raises(ValueError, match=r"'label' .* text"):
        embed({"text": jnp.ones((2, 4))}, read, 2, label=lambda label: label)
    with pytest.raises(ValueError, match=r"'label'.* shape \(3,\).*\(2,\)"):
        embed({"label": jnp.arange(3)}, read, 2, label=lambda label: label)


def test_pooled_tokens_are_the_mean_of_those_that_are_there():
    rows = jnp.arange(9.0)[:, None] * jnp.ones(8)
    read = Conditions(**TEXT)
    given = embed(
        {"tokens": jnp.array([[3, 5, 0, 0, 0], [0] * 5])}, read, tokens=lambda ids: rows[ids], pool=lambda h: h
    )
    np.testing.assert_array_equal(given.vector, [[4.0] * 8, [0.0] * 8])
    whole = Conditions(**FEATURES, unmasked=True)
    given = embed({"tokens": rows[None, :5]}, whole, pool=lambda h: h)
    np.testing.assert_array_equal(given.vector, [[2.0] * 8])


def test_padding_and_masked_places_do_not_matter():
    @nnx.jit
    def encodings(ids):
        encoder = TokenEncoder(9, 5, 8, depth=1, num_heads=2, rngs=nnx.Rngs(0))
        return encoder(ids)[:, :2], encoder(ids[:, :2])

    np.testing.assert_allclose(*encodings(jnp.array([[3, 4, 0, 0, 0]])), atol=1e-6)

    mask = jnp.array([[True, True, False, False, False]])

    @nnx.jit
    def attended(x, context):
        attend = CrossAttention(8, 8, num_heads=2, norm=nnx.LayerNorm(8, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
        attend.to_out.kernel[...] = jnp.eye(8)
        masked = [attend(x, c, mask) for c in (context, context.at[:, 2:].set(9.0))]
        return *masked, attend(x, context[:, :2], mask[:, :2]), attend(x, context, jnp.zeros((1, 5), bool))

    x, context = np.random.default_rng(0).standard_normal((2, 1, 5, 8)).astype(np.float32)
    out, other_there, alone, empty = attended(x, context)
    np.testing.assert_allclose(other_there, out, atol=1e-6)
    np.testing.assert_allclose(alone, out, atol=1e-6)
    np.testing.assert_array_equal(empty, x)
    assert np.abs(out - x).max() > 1e-3
