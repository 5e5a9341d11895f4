"""Networks of time series: the published size of CSDI, and the state-space layer as the recursion that it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.networks.csdi import CSDI
from diffusion_jax.networks.functional import count_parameters, functional
from diffusion_jax.networks.tsdiff import S4D, TSDiffNet


def test_csdi_has_the_parameters_of_the_authors():
    """414,065 for PhysioNet's 35 features, as counted in the authors' network."""
    module = nnx.eval_shape(lambda: CSDI(rngs=nnx.Rngs(0)))
    assert count_parameters(nnx.to_pure_dict(nnx.state(module))) == 414_065


def test_the_state_space_layer_is_a_recursion_in_both_directions():
    layer = S4D(3, 8, rngs=nnx.Rngs(0))
    u = jax.random.normal(jax.random.key(0), (2, 17, 3))
    step, weights = (np.asarray(part) for part in layer.poles())

    def recursion(u, direction):
        """s_k = exp(dt A) s_{k-1} + u_k, y_k = Re(weights s_k)."""
        state, out = np.zeros((len(u), *step.shape[1:]), complex), []
        for k in range(u.shape[1]):
            state = np.exp(step[direction]) * state + u[:, k, :, None]
            out.append((weights[direction] * state).sum(-1).real)
        return np.stack(out, 1)

    u = np.asarray(u)
    later = recursion(u[:, ::-1], 1)[:, ::-1]
    expected = recursion(u, 0) + np.pad(later[:, 1:], ((0, 0), (0, 1), (0, 0))) + np.asarray(layer.skip[...]) * u
    np.testing.assert_allclose(jax.jit(layer.mixed)(jnp.asarray(u)), expected, rtol=1e-3, atol=1e-4)


def test_tsdiff_starts_at_zero_or_as_x_and_refuses_an_odd_state():
    x = jax.random.normal(jax.random.key(0), (3, 20, 2))
    for init_skip in (False, True):
        sizes = dict(shape=(20, 2), hidden=8, num_layers=1, state_dim=4, init_skip=init_skip)
        apply, params = functional(TSDiffNet(**sizes, rngs=nnx.Rngs(0)))
        np.testing.assert_array_equal(jax.jit(apply)(params, x, jnp.ones(3)), x * init_skip)
    with pytest.raises(ValueError, match="state_dim=5 must be even"):
        TSDiffNet(shape=(20, 1), state_dim=5, rngs=nnx.Rngs(0))
    for network in (TSDiffNet, CSDI):
        with pytest.raises(ValueError, match="are no series"):
            network(shape=(8, 8, 1), rngs=nnx.Rngs(0))
