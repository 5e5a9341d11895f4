"""Modules as pure functions: plain dicts, dtypes, randomness, checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp

from diffusion_jax.networks import layers
from diffusion_jax.networks.functional import count_parameters, functional, init_apply


class Net(nnx.Module):
    """Twelve layers in a list (two-digit indices), dropout and Fourier features."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(12)])
        self.embed = layers.FourierEmbedding(3, rngs=rngs)

    def __call__(self, x, c_noise, cond=None, *, rngs=None):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        shift = 0 if cond is None else cond["shift"]
        return layers.dropout(x, 0.5, rngs) + self.embed(c_noise)[:, :3].astype(x.dtype) + shift


X, C = jax.random.normal(jax.random.key(1), (4, 3)), jnp.linspace(-1.0, 1.0, 4)


def make(rngs: nnx.Rngs) -> Net:
    return Net(rngs=rngs)


def keys_of(tree):
    return {k for k in tree} | {k for v in tree.values() if isinstance(v, dict) for k in keys_of(v)}


def test_apply_equals_the_module():
    module = Net(rngs=nnx.Rngs(0))
    apply, params = functional(module)
    np.testing.assert_allclose(apply(params, X, C), module(X, C), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(apply)(params, X, C, {"shift": X}), module(X, C) + X, rtol=1e-5)


def test_init_gives_plain_dicts_under_jit_and_eval_shape():
    init, _ = init_apply(make)
    params = jax.jit(init)(jax.random.key(0))
    assert all(isinstance(k, str) for k in keys_of(params))
    assert all(type(v) is dict for v in (params, params["layers"], params["layers"]["10"]))
    abstract = jax.eval_shape(init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda s: s.shape, abstract)
    assert count_parameters(params) == count_parameters(abstract) == 12 * (9 + 3) + 3
    other = jax.jit(init)(jax.random.key(1))
    assert not np.allclose(params["layers"]["0"]["kernel"], other["layers"]["0"]["kernel"])


def test_entries_of_a_list_stay_in_their_places():
    _, apply = init_apply(make)
    module = Net(rngs=nnx.Rngs(0))
    _, params = functional(module)
    for i in range(12):
        module.layers[i].bias[...] = jnp.full(3, float(i))
        params["layers"][str(i)]["bias"] = jnp.full(3, float(i))
    np.testing.assert_allclose(apply(params, X, C), module(X, C), rtol=1e-6)


def test_key_switches_dropout_on():
    init, apply = init_apply(make)
    params = init(jax.random.key(0))
    run = lambda key: jax.jit(apply)(params, X, C, key=key)
    assert np.allclose(run(None), run(None)) and np.allclose(run(jax.random.key(1)), run(jax.random.key(1)))
    assert not np.allclose(run(jax.random.key(1)), run(jax.random.key(2)))
    assert not np.allclose(run(jax.random.key(1)), run(None))


def test_bfloat16_computes_in_bfloat16_and_returns_float32():
    init, apply = init_apply(make, "bfloat16")
    _, apply32 = init_apply(make)
    params = jax.jit(init)(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    y, y32 = apply(params, X, C), apply32(params, X, C)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, y32, atol=0.05)
    assert np.abs(y - y32).max() > 1e-4
    dots = [line for line in str(jax.make_jaxpr(apply)(params, X, C)).splitlines() if "dot_general" in line]
    assert len(dots) == 12 and all("bf16" in line for line in dots)
    gradient = jax.grad(lambda p: apply(p, X, C).sum())(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}


def test_full_precision_parameters_are_not_cast():
    class Wrapped(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.embed = layers.FourierEmbedding(64, scale=16.0, rngs=rngs)

        def __call__(self, x, c_noise, cond=None, *, rngs=None):
            return self.embed(c_noise)

    init, apply = init_apply(Wrapped, "bfloat16")
    _, apply32 = init_apply(Wrapped)
    params = init(jax.random.key(0))
    np.testing.assert_array_equal(apply(params, X, C), apply32(params, X, C))


def test_unknown_dtype():
    with pytest.raises(ValueError, match="dtype='half'"):
        init_apply(make, "half")


def test_parameters_survive_a_checkpoint(tmp_path):
    init, apply = init_apply(make)
    params = jax.jit(init)(jax.random.key(0))
    ocp.save_pytree(tmp_path / "params", params)
    restored = ocp.load_pytree(tmp_path / "params", jax.eval_shape(init, jax.random.key(0)))
    np.testing.assert_array_equal(apply(restored, X, C), apply(params, X, C))


class Tokens(nnx.Module):
    """Logits of ids, in the dtype of the computation."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.table = nnx.Embed(5, 4, rngs=rngs)

    def __call__(self, x, c_noise, cond=None, *, rngs=None):
        assert x.dtype == jnp.int32
        return self.table.attend(self.table(x)) + c_noise[:, None, None].astype(self.table.embedding.dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ids_are_not_cast_and_their_output_is_float32(dtype):
    init, apply = init_apply(lambda rngs: Tokens(rngs=rngs), dtype)
    params, ids = init(jax.random.key(0)), jnp.array([[0, 4, 300 % 5], [1, 2, 3]], jnp.int32)
    table = params["table"]["embedding"].astype(dtype)
    out = apply(params, ids, jnp.zeros(2))
    assert out.dtype == jnp.float32 and out.shape == (2, 3, 5)
    np.testing.assert_allclose(
        out, np.float32(table)[ids] @ np.float32(table).T, atol=1e-2 if dtype != "float32" else 1e-6
    )
