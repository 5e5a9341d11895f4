"""Weight averages against their closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.training import ema


def _params(value, dtype=jnp.float32):
    return {"net": {"w": jnp.full((2, 3), value, dtype)}, "frozen": {"w": jnp.ones(4)}}


def test_closed_form_for_constant_parameters():
    rates = (0.9, 0.99)
    average = ema.init(_params(0.0), rates)
    for step in range(20):
        average = ema.update(average, _params(1.0), step, rates)
    for rate in rates:  # e_n = 1 - d^n
        np.testing.assert_allclose(average[str(rate)]["net"]["w"], 1 - rate**20, rtol=1e-5)


def test_weights_of_a_moving_sequence():
    average = ema.init(_params(0.0), (0.7,))
    values = [1.0, -2.0, 5.0, 3.0]
    for step, value in enumerate(values):
        average = ema.update(average, _params(value), step, (0.7,))
    expected = sum(0.3 * 0.7 ** (len(values) - 1 - i) * value for i, value in enumerate(values))
    np.testing.assert_allclose(average["0.7"]["net"]["w"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("step", "decay"), [(0, 0.1), (8, 0.5), (90, 0.91), (890, 0.99), (89_990, 0.9999), (10**6, 0.9999)]
)
def test_warmup_raises_the_rate_with_the_steps(step, decay):
    """The shares of the old average: it forgets its start at first, and reaches the rate it is given."""
    average = ema.update(ema.init(_params(1.0), (0.9999,)), _params(0.0), jnp.int32(step), (0.9999,), warmup=True)
    np.testing.assert_allclose(average["0.9999"]["net"]["w"], decay, rtol=1e-6)


def test_warmup_averages_the_first_steps():
    """The average of 0, 1, 2 and 3 after a start at 100, by hand: the new value has 9/10, 9/11, 9/12, 9/13."""
    average = ema.init(_params(100.0), (0.9999,))
    expected = (10.0, 2.6363636, 2.1590909, 2.7412587)
    for step, value in enumerate(expected):
        average = ema.update(average, _params(float(step)), jnp.int32(step), (0.9999,), warmup=True)
        np.testing.assert_allclose(average["0.9999"]["net"]["w"], value, rtol=1e-6)


def test_warmup_never_exceeds_the_rate():
    late = 10**6
    warm = ema.update(ema.init(_params(0.0), (0.5,)), _params(1.0), late, (0.5,), warmup=True)
    np.testing.assert_allclose(warm["0.5"]["net"]["w"], 0.5)


def test_average_is_float32_and_leaves_frozen_parts_out():
    average = ema.init(_params(1.0, jnp.bfloat16), (0.9999,))
    assert set(average["0.9999"]) == {"net"}
    average = ema.update(average, _params(2.0, jnp.bfloat16), 0, (0.9999,))
    weights = average["0.9999"]["net"]["w"]
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights - 1.0, 1e-4, rtol=2e-3)  # bfloat16 would not have moved


def test_init_copies_so_that_the_parameters_may_be_donated():
    params = _params(1.0)
    average = ema.init(params, (0.9,))
    jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)(params)
    np.testing.assert_array_equal(average["0.9"]["net"]["w"], 1.0)


def test_half_life():
    decay = ema.decay_from_half_life(500_000, 512)
    np.testing.assert_allclose(decay ** (500_000 / 512), 0.5, rtol=1e-9)
    with pytest.raises(ValueError, match="half_life_images=0"):
        ema.decay_from_half_life(0, 512)


@pytest.mark.parametrize("rates", [(1.0,), (-0.1,), (0.9, 0.9)])
def test_refuses_bad_rates(rates):
    with pytest.raises(ValueError, match="ema rates="):
        ema.init(_params(0.0), rates)


@pytest.mark.parametrize(("step", "decay"), [(0, 0.0), (20, 0.5), (200, 0.9330330), (10**7, 0.9999)])
def test_rampup_bounds_the_half_life_by_a_fraction_of_the_steps(step, decay):
    """EDM's average forgets half in a twentieth of the steps so far, and at most as its rate says."""
    average = ema.update(ema.init(_params(1.0), (0.9999,)), _params(0.0), jnp.int32(step), (0.9999,), rampup=0.05)
    np.testing.assert_allclose(average["0.9999"]["net"]["w"], decay, rtol=1e-6)
