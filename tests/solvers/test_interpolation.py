import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.solvers import interpolation

lerp, slerp = jax.jit(interpolation.lerp), jax.jit(interpolation.slerp)

W = jnp.linspace(0, 1, 9)


def ends(*shape):
    return (jax.random.normal(jax.random.key(k), shape) for k in (0, 1))


@pytest.mark.parametrize("path", [lerp, slerp])
def test_ends_are_exact_and_w_leads(path):
    a, b = ends(5, 4, 4, 3)
    between = path(a, b, W)
    assert between.shape == (9, 5, 4, 4, 3)
    np.testing.assert_array_equal(between[0], a)
    np.testing.assert_array_equal(between[-1], b)
    np.testing.assert_allclose(path(a, b, 0.25), between[2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(path(a[:2], b[:2], W.reshape(3, 3)), between[:, :2].reshape(3, 3, 2, 4, 4, 3), atol=1e-6)


def test_slerp_is_an_arc_at_constant_speed():
    a, b = (v / jnp.linalg.norm(v, axis=1, keepdims=True) * 3 for v in ends(6, 50))
    between = slerp(a, b, W)
    np.testing.assert_allclose(jnp.linalg.norm(between, axis=-1), 3, rtol=1e-6)
    steps = jnp.linalg.norm(jnp.diff(between, axis=0), axis=-1)
    angle = jnp.arccos(jnp.sum(a * b, axis=1) / 9)
    np.testing.assert_allclose(steps, jnp.broadcast_to(6 * jnp.sin(angle / 16), steps.shape), rtol=1e-4)
    assert float(jnp.linalg.norm(lerp(a, b, 0.5), axis=1).max()) < 2.7


@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-4])
def test_slerp_of_nearly_parallel_rows_is_linear(angle):
    a = jnp.array([[1.0, 0.0]])
    b = 2 * jnp.array([[np.cos(angle), np.sin(angle)]], jnp.float32)
    np.testing.assert_allclose(slerp(a, b, W), lerp(a, b, W), atol=1e-6)


def test_slerp_of_opposite_and_of_zero_rows_is_linear():
    a = jnp.array([[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]])
    b = jnp.array([[-2.0, -4.0], [1.0, 1.0], [-3.0, 4.0]])
    between = slerp(a, b, W)
    np.testing.assert_allclose(between[:, :2], lerp(a, b, W)[:, :2], atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(between[:, 2], axis=-1), 5, rtol=1e-6)


@pytest.mark.parametrize("path", [lerp, slerp])
def test_shapes_must_agree(path):
    with pytest.raises(ValueError, match=r"b .*\(2, 4\).* a, \(2, 3\)"):
        path(jnp.ones((2, 3)), jnp.ones((2, 4)), 0.5)
