"""Schroedinger bridges: which pairs are made when, what is replaced when, and short trainings between Gaussians."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import solvers
from diffusion_jax.config import build, from_file
from diffusion_jax.losses import bridge_loss, times
from diffusion_jax.parameterizations import ddbm_preconditioning, time_label
from diffusion_jax.processes import Reversed, brownian_bridge
from diffusion_jax.solvers import grids
from diffusion_jax.systems import SchroedingerBridge
from diffusion_jax.training import optimizers
from diffusion_jax.training.step import init_state, make_train_step
from diffusion_jax.types import Train

GOLDEN = (5**0.5 - 1) / 2
BRIDGE = brownian_bridge(1.0)
BINS = 64  # of the time, in each of which the network is linear


def linear(**options) -> SchroedingerBridge:
    """Scalars, with a network F = weight[bin of t] x, the exact function class of Gaussians of mean 0."""

    def apply(params, x, c_noise, cond=None, *, key=None):
        place = jnp.clip(c_noise / 999 * BINS - 0.5, 0, BINS - 1)
        return jnp.interp(place, jnp.arange(BINS), params["weight"])[:, None] * x

    param = ddbm_preconditioning(label=time_label, sigma_data=1.0, sigma_end=1.0)
    loss = functools.partial(bridge_loss, apply, param, times=times.uniform(1e-3, 0.999))
    return SchroedingerBridge(
        **dict(
            init_network=lambda key: {"weight": jnp.zeros(BINS)},
            apply=apply,
            process=BRIDGE,
            param=param,
            loss_fn=loss(process=BRIDGE),
            forward_loss_fn=loss(process=Reversed(bridge=BRIDGE)),
            solver=solvers.bridge_posterior(),
            grid=grids.uniform(0.0),
            steps=50,
            shape=(1,),
            inner_steps=30,
            batch_size=4000,
        )
        | options
    )


def test_the_first_pairs():
    x_0, x_1 = jnp.zeros((5000, 1)), jnp.ones((5000, 1))
    (a, b), (c, d) = linear(coupling="independent").first_pairs(None, jax.random.key(0), x_0, x_1)
    assert all(jnp.array_equal(*same) for same in ((a, x_0), (b, x_1), (c, x_0), (d, x_1)))
    (a, b), (c, d) = linear(coupling="reference").first_pairs(None, jax.random.key(0), x_0, x_1)
    assert jnp.array_equal(a, x_0) and jnp.array_equal(d, x_1)
    assert float(b.mean()) == pytest.approx(0, abs=0.05) and float(b.std()) == pytest.approx(1, rel=0.05)
    assert float(c.mean()) == pytest.approx(1, abs=0.05) and abs(float(jnp.corrcoef(b[:, 0], c[:, 0])[0, 1])) < 0.05


def test_gaussian_pairs_are_those_of_the_bridge_between_the_moments():
    """N(0, 1) and N(1, 1), s = 1: the mean of the moments of all batches, and pairs of covariance (sqrt 5 - 1) / 2."""
    system = linear(coupling="gaussian", inner_steps=1)
    params = system.init(jax.random.key(0))
    x_0, x_1 = jax.random.normal(jax.random.key(4), (2, 3, 20_000, 1)) + jnp.float32([0, 1])[:, None, None, None]
    for step in range(3):
        train, batch = Train(jnp.int32(step), 10), {"x": x_0[step], "image": x_1[step]}
        _, metrics = system.loss(params, jax.random.key(1), batch, train)
        params = system.advance(params, train, metrics)
    moments = params["frozen"]["moments"]
    for name, x in {"x": x_0, "image": x_1}.items():
        np.testing.assert_allclose(moments[name]["mean"], [x.mean()], atol=1e-5)
        np.testing.assert_allclose(moments[name]["square"], [[(x**2).mean()]], atol=1e-5)
    for a, b in system.first_pairs(moments, jax.random.key(5), x_0[0], x_1[0]):
        assert float(jnp.cov(a[:, 0], b[:, 0])[0, 1]) == pytest.approx(GOLDEN, abs=0.03)
        assert [float(v) for v in (a.mean(), b.mean())] == pytest.approx([0, 1], abs=0.03)
        assert [float(v) for v in (a.std(), b.std())] == pytest.approx([1, 1], abs=0.03)


def test_gaussian_pairs_need_a_covariance_that_fits():
    with pytest.raises(ValueError, match="at most 1024 numbers, not of shape"):
        linear(coupling="gaussian", shape=(32, 32, 3))


@pytest.mark.slow
def test_made_pairs_keep_their_true_ends_and_come_from_the_target():
    """Before `pretrain` the target is unused; after it the loss depends on it, without a gradient."""
    system = linear(pretrain=5)
    params = system.init(jax.random.key(0))
    other = {**params, "frozen": jax.tree.map(lambda x: x + 0.3, params["frozen"])}
    batch = {"x": jnp.ones((4, 1)), "image": -jnp.ones((4, 1))}
    loss = lambda params, step: system.loss(params, jax.random.key(1), batch, Train(jnp.int32(step), 10))[0]
    np.testing.assert_array_equal(loss(params, 4), loss(other, 4))
    assert np.abs(loss(params, 5) - loss(other, 5)).max() > 1e-3
    grads = jax.grad(lambda p: loss(p, 5).sum())(params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads["frozen"]))
    assert np.any(grads["forward"]["weight"]) and np.any(grads["backward"]["weight"])
    (x_0, _), (_, x_1) = system.made_pairs(params["frozen"]["target"], jax.random.key(2), batch["x"], batch["image"])
    np.testing.assert_array_equal(x_0, batch["x"])
    np.testing.assert_array_equal(x_1, batch["image"])


def test_pairs_of_a_row_do_not_depend_on_other_rows():
    system = linear()
    params = jax.tree.map(lambda x: x + 0.2, system.init(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(3), (6, 1))
    (_, whole), _ = system.made_pairs(params, jax.random.key(1), x, x)
    changed = x.at[:3].set(5.0)
    (_, part), _ = system.made_pairs(params, jax.random.key(1), changed, changed)
    np.testing.assert_array_equal(whole[3:], part[3:])


def advanced(system, steps):
    """The first weight of frozen.target["backward"] after each step in which the network's weight is the step + 1."""
    params, seen = system.init(jax.random.key(0)), []
    for step in range(steps):
        now = {name: {"weight": jnp.full(BINS, step + 1.0)} for name in ("backward", "forward")}
        params = system.advance({**params, **now}, Train(jnp.int32(step), steps), {})
        seen.append(float(params["frozen"]["target"]["backward"]["weight"][0]))
    return seen


def test_the_target_is_replaced_at_the_end_of_each_iteration():
    assert advanced(linear(pretrain=3, refresh=2, rate=0.0), 8) == [0, 0, 3, 3, 5, 5, 7, 7]
    assert advanced(linear(pretrain=3, refresh=0, rate=0.0), 4) == [1, 2, 3, 4]


def trained(system, steps, rate=0.02, seed=0):
    """Parameters after training between unit Gaussians."""
    optimizer, _ = optimizers.make_optimizer(learning_rate=rate, num_steps=steps, schedule="cosine")
    state = init_state(system, optimizer, (), jax.random.key(seed))
    step = make_train_step(system, optimizer, num_steps=steps, ema_rates=())

    def body(state, key):
        x_0, x_1 = jax.random.normal(key, (2, 512, 1))
        return step(state, {"x": x_0, "image": x_1})[0], None

    state, _ = jax.jit(lambda state, keys: jax.lax.scan(body, state, keys))(
        state, jax.random.split(jax.random.key(7), steps)
    )
    return state.params


def coupling_of(system, params, direction):
    x = jax.random.normal(jax.random.key(11), (4000, 1))
    y = system.carried(direction, params[direction], jax.random.key(12), x, 100)
    return float((x * y).mean() / (x * x).mean()), float(y.std())


@pytest.mark.slow
def test_online_training_reaches_the_schroedinger_bridge():
    """alpha-DSBM between unit Gaussians, s = 1: coupling (sqrt 5 - 1) / 2, from .5463 of the first pairs."""
    system = linear(pretrain=300, refresh=0, rate=0.95)
    params = trained(system, 1500)
    for direction in ("backward", "forward"):
        coupling, deviation = coupling_of(system, params, direction)
        assert coupling == pytest.approx(GOLDEN, abs=0.03)
        assert deviation == pytest.approx(1, abs=0.04)


def carried_law(end, start, covariance, steps):
    """(gain, noise) of y = gain x + sqrt(noise) z, `steps` exact steps from x_1 = x, for pairs of these variances.

    D(x, t) = Cov(x_0, x_t) / Var(x_t) x, with s = 1: every step is linear.
    """
    gain, noise = 1.0, 0.0
    times = np.linspace(1, 0, steps + 1)
    for t, s in itertools.pairwise(times):
        variance = (1 - t) ** 2 * end + t**2 * start + 2 * t * (1 - t) * covariance + t * (1 - t)
        a = s / t
        factor = a + (1 - s - a * (1 - t)) * ((1 - t) * end + t * covariance) / variance
        gain, noise = factor * gain, factor**2 * noise + s * (1 - s) - a**2 * t * (1 - t)
    return gain, noise


def iterated(coupling, num, inner_steps, steps):
    """The coupling after each of `num` iterations whose pairs are made in `inner_steps`, measured in `steps`."""
    law, found = {"independent": (1, 1, 0), "reference": (1, 2, 1)}[coupling], []
    for _ in range(num):
        found.append(carried_law(*law, steps)[0])
        gain, noise = carried_law(*law, inner_steps)
        law = (1, gain**2 + noise, gain)
    return found


def test_many_exact_steps_give_the_sequences_of_imf_and_ipf():
    np.testing.assert_allclose(iterated("independent", 3, 4000, 4000), [0.5463, 0.6111, 0.6174], atol=1e-3)
    np.testing.assert_allclose(iterated("reference", 4, 4000, 4000), [1 / 2, 2 / 3, 3 / 5, 5 / 8], atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("coupling", ["independent", "reference"])
def test_iterations_are_those_of_imf_and_ipf(coupling):
    """After `pretrain` and after one more iteration, in closed form for the numbers of steps that are taken."""
    for iterations, value in enumerate(iterated(coupling, 2, 30, 100)):
        system = linear(coupling=coupling, pretrain=500, refresh=500, rate=0.95)
        found, _ = coupling_of(system, trained(system, 500 * (iterations + 1)), "backward")
        assert found == pytest.approx(value, abs=0.02)


@pytest.mark.slow
def test_gaussian_pairs_start_where_iterations_end():
    """Between Gaussians the bridge is reached in `pretrain`, whose independent pairs give 0.5463."""
    system = linear(coupling="gaussian", pretrain=500)
    for direction in ("backward", "forward"):
        found, deviation = coupling_of(system, trained(system, 500), direction)
        assert found == pytest.approx(GOLDEN, abs=0.02)
        assert deviation == pytest.approx(1, abs=0.04)


def test_sampling_goes_both_ways():
    system = linear()
    params = system.init(jax.random.key(0))
    drawn = system.sample(params, jax.random.key(1), 3, {"image": np.zeros((3, 1), np.float32)})
    assert drawn["samples"].shape == (3, 1)
    forward = linear(direction="forward")
    assert set(forward.conditions) == {"source_x"}
    drawn = forward.sample(params, jax.random.key(1), 3, {"source_x": np.zeros((3, 1), np.float32)})
    assert drawn["samples"].shape == (3, 1)


@pytest.mark.parametrize(
    "options",
    [dict(coupling="optimal"), dict(pretrain=0), dict(rate=1.0), dict(direction="up"), dict(refresh=-1)],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        linear(**options)


def test_the_default_config_steps():
    config = from_file("configs/schroedinger.py")
    config.network.hidden, config.system.inner_steps = 16, 2
    made = build.build(config)
    system, (optimizer, _) = made.system, made.parts.optimizer()
    state = jax.jit(lambda key: init_state(system, optimizer, (0.9,), key))(jax.random.key(0))
    batch = made.source().batch(np.arange(8), np.random.default_rng(0))
    step = jax.jit(make_train_step(system, optimizer, num_steps=10, ema_rates=(0.9,)))
    state, metrics = step(state, {name: batch[name] for name in system.batch})
    assert {"loss", "backward", "forward"} <= set(metrics) and set(state.ema["0.9"]) == {"backward", "forward"}
