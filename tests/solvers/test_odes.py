"""Adaptive integration of rows: the steps are those of diffrax on each row alone, and what cannot arrive ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.solvers import odes

RATES = jnp.array([0.5, 3.0, 40.0])  # of three rows, the last one stiff


def decay(y, t):
    """Rows of two leaves: y' = -rate (y - cos(3 t)), and the integral of |y|^2."""
    x, _ = y
    return -RATES[:, None] * (x - jnp.cos(3 * t)[:, None]), jnp.square(x).sum(-1)


@pytest.mark.parametrize(
    "method", ["dopri5", *(pytest.param(name, marks=pytest.mark.slow) for name in odes.METHODS if name != "dopri5")]
)
def test_every_row_steps_as_diffrax_does(method):
    diffrax = odes.load_diffrax()
    options = dict(rtol=1e-4, atol=1e-6)
    with jax.enable_x64(True):
        x, total = jnp.array([[1.0, -2.0]] * 3, jnp.float64), jnp.zeros(3, jnp.float64)
        found = odes.integrate(decay, (x, total), 0.2, 1.3, method=method, **options)
        solver = getattr(diffrax, odes.METHODS[method])()
        for row in range(3):

            def field(t, y, rate):
                x, _ = y
                return -rate * (x - jnp.cos(3 * t)), jnp.square(x).sum()

            expected = diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                solver,
                0.2,
                1.3,
                0.01 * 1.1,
                (x[row], total[row]),
                RATES[row].astype(float),
                stepsize_controller=diffrax.PIDController(**options),
            )
            actual = jax.tree.map(lambda a, row=row: a[row], found.y)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[-1], rtol=1e-9), actual, expected.ys)
            reused = int(solver.tableau.fsal)
            evaluations = reused + int(expected.stats["num_steps"]) * (solver.tableau.num_stages - reused)
            assert int(found.nfe[row]) == evaluations
            assert bool(found.finished[row])


def test_a_field_without_values_ends_and_says_so():
    """The step is shortened until it no longer changes t, long before `max_steps`; other rows are not affected."""

    def field(y, t):
        return jnp.where(jnp.array([True, False])[:, None], jnp.nan, -y)

    found = odes.integrate(field, jnp.ones((2, 1)), 0.0, 1.0, max_steps=10_000)
    np.testing.assert_array_equal(found.finished, [False, True])
    assert int(found.nfe[0]) < 500
    np.testing.assert_allclose(found.y[1], np.exp(-1), rtol=1e-5)


def test_backwards_and_nowhere():
    there = odes.integrate(lambda y, t: -y, jnp.ones((1, 1)), 0.0, 1.0)
    back = odes.integrate(lambda y, t: -y, there.y, 1.0, 0.0)
    np.testing.assert_allclose(back.y, 1.0, rtol=1e-4)
    nowhere = odes.integrate(lambda y, t: -y, jnp.ones((1, 1)), 0.5, 0.5)
    np.testing.assert_array_equal(nowhere.y, 1.0)
    assert bool(nowhere.finished[0])


def test_steps_that_run_out():
    found = odes.integrate(lambda y, t: -y, jnp.ones((1, 1)), 0.0, 1.0, rtol=1e-6, atol=1e-6, max_steps=2)
    assert not bool(found.finished[0])
