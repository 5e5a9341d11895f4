"""Bridge models: the loss at its optimum, sampling from x_1, inpainting, independence of rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import solvers
from diffusion_jax.config import build, from_file
from diffusion_jax.losses import bridge_loss, times
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.parameterizations import i2sb_prediction
from diffusion_jax.processes import brownian_bridge
from diffusion_jax.solvers import grids
from diffusion_jax.systems import Bridge
from diffusion_jax.training.step import init_state, make_train_step

CORRELATION = 0.8
BRIDGE = brownian_bridge(0.5)


def linear(conditioned: bool) -> Bridge:
    """A bridge model of scalar pairs whose network is the exact optimum, times params["scale"]."""

    def apply(params, x, c_noise, cond=None, *, key=None):
        t = (c_noise / 999)[:, None]
        n, f, s = BRIDGE.near(t), BRIDGE.far(t), BRIDGE.sigma(t)
        if conditioned:
            x_1, rest = cond["image"], 1 - CORRELATION**2
            gain = n * rest / (n**2 * rest + s**2 + 1e-12)
            x_0 = CORRELATION * x_1 + gain * (x - (f + n * CORRELATION) * x_1)
        else:
            x_0 = (n + f * CORRELATION) / (n**2 + f**2 + 2 * n * f * CORRELATION + s**2) * x
        return params["scale"] * (x - x_0) / BRIDGE.reference.sigma(t)

    param = i2sb_prediction()
    return Bridge(
        init_network=lambda key: {"scale": jnp.ones(())},
        apply=apply,
        process=BRIDGE,
        param=param,
        loss_fn=bridge_loss(apply, param, BRIDGE, times.uniform(0.02, 0.98)),
        solver=solvers.bridge_posterior(),
        grid=grids.uniform(0.0),
        steps=50,
        shape=(1,),
        network_conditions=Conditions(image_shape=(1,)) if conditioned else Conditions(),
        batch_size=4000,
    )


def pairs(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    x_1, rest = np.random.default_rng(seed).standard_normal((2, n, 1)).astype(np.float32)
    return {"x": CORRELATION * x_1 + np.float32(np.sqrt(1 - CORRELATION**2)) * rest, "image": x_1}


@pytest.mark.parametrize("conditioned", [True, False])
def test_the_loss_is_least_at_the_exact_denoiser(conditioned):
    """A scaled network loses as much on both sides, and x_1 as a condition lowers the least loss."""
    system, batch = linear(conditioned), pairs(100_000)
    loss = jax.jit(lambda scale: system.loss({"network": {"scale": scale}}, jax.random.key(0), batch, None)[0].mean())
    value, less, more = (float(loss(jnp.float32(scale))) for scale in (1, 0, 2))
    assert less - value == pytest.approx(more - value, rel=0.15) and less > 1.03 * value
    if conditioned:
        other = linear(False)
        without = other.loss({"network": {"scale": jnp.float32(1)}}, jax.random.key(0), batch, None)[0].mean()
        assert value < 0.97 * without


@pytest.mark.parametrize(("conditioned", "covariance"), [(True, 0.8), (False, 0.880)])
def test_x_1_as_a_condition_decides_the_coupling(conditioned, covariance):
    system = dataclasses.replace(linear(conditioned), steps=200)
    x_1 = pairs(4000, seed=1)["image"]
    drawn = system.sample(system.init(jax.random.key(0)), jax.random.key(1), 4000, {"image": x_1})
    slope = float((drawn["samples"] * x_1).mean() / (x_1**2).mean())
    assert slope == pytest.approx(covariance, abs=0.03)
    assert drawn["samples"].std() == pytest.approx(1.0, abs=0.05)


def test_a_row_depends_on_its_id_and_condition_only():
    system, x_1 = linear(True), pairs(7)["image"]
    params, key = system.init(jax.random.key(0)), jax.random.key(1)
    draw = functools.partial(system.draw, params, key)
    whole = draw(jnp.arange(7), {"image": jnp.asarray(x_1)})["samples"]
    part = draw(jnp.arange(4, 7), {"image": jnp.asarray(x_1[4:])})["samples"]
    np.testing.assert_allclose(whole[4:], part, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="'image' is missing"):
        system.sample(params, key, 2, {})
    with pytest.raises(ValueError, match="2 rows for 3 samples"):
        system.sample(params, key, 3, {"image": x_1[:2]})


def digits(**flags):
    config = from_file("configs/bridge.py")
    config.network.hidden, config.network.num_layers = 16, 1
    config.update_from_flattened_dict(flags)
    return build.build(config)


def test_inpainting_counts_and_changes_unknown_pixels_alone():
    config = from_file("configs/bridge.py")
    config.network.hidden, config.network.num_layers = 16, 1
    config.system = dict(name="bridge", masked=True, degradation=dict(name="box", size=4))
    made = build.build(config)
    batch = made.source(evaluation=True).batch(np.arange(3))
    assert batch["image"].shape == (3, 8, 8, 2)
    system, unknown = made.system, batch["image"][..., 1:] >= 0
    assert unknown.sum() == 3 * 16
    np.testing.assert_array_equal(np.where(unknown, 0, batch["image"][..., :1] - batch["x"]), 0)
    params = system.init(jax.random.key(0))
    loss = lambda x: system.loss(params, jax.random.key(1), {**batch, "x": x}, None)[0]
    slope = jax.grad(lambda x: loss(x).sum())(jnp.asarray(batch["x"]))
    # Known pixels enter through x_t, whose weight at x_0 is at most 1; the error itself is that of the unknown ones.
    assert np.abs(np.where(unknown, slope, 0)).max() > 0
    drawn = system.sample(params, jax.random.key(2), 3, {"image": batch["image"]})["samples"]
    np.testing.assert_allclose(np.where(unknown, 0, drawn - batch["x"]), 0, atol=1e-6)


@pytest.mark.parametrize(
    ("degradation", "what"),
    [
        (dict(name="average", factor=2), lambda x: x.reshape(-1, 4, 2, 4, 2, 1).mean((2, 4)).repeat(2, 1).repeat(2, 2)),
        (dict(name="average", factor=1, noise=0.0), lambda x: x),
    ],
)
def test_degradations_of_digits(degradation, what):
    config = from_file("configs/bridge.py")
    config.system = dict(name="bridge", degradation=degradation)
    batch = build.build(config).source(evaluation=True).batch(np.arange(5))
    np.testing.assert_allclose(batch["image"], what(batch["x"]), atol=1e-5)


def test_noise_of_a_degradation_is_new_in_training_and_fixed_in_evaluation():
    config = from_file("configs/bridge.py")
    config.system = dict(name="bridge", degradation=dict(name="average", factor=2, noise=0.3))
    source = build.build(config).source()
    rows = np.array([3, 3])
    once, twice = (source.batch(rows)["image"] for _ in range(2))
    np.testing.assert_array_equal(once, twice)
    trained = source.batch(rows, np.random.default_rng(0))["image"]
    assert np.abs(trained[0] - trained[1]).max() > 0.1


def test_one_training_step_changes_the_network():
    made = digits()
    system, (optimizer, _) = made.system, made.parts.optimizer()
    state = jax.jit(lambda key: init_state(system, optimizer, (0.9,), key))(jax.random.key(0))
    batch = made.source().batch(np.arange(8), np.random.default_rng(0))
    step = jax.jit(make_train_step(system, optimizer, num_steps=10, ema_rates=(0.9,)))
    after, metrics = step(*(step(state, {k: batch[k] for k in system.batch})[:1]), {k: batch[k] for k in system.batch})
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.params, state.params)
    assert max(jax.tree.leaves(moved)) > 0 and np.isfinite(metrics["loss"])
