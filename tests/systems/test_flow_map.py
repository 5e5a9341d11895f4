"""The system of flow maps: its denoiser, samples, target network, training and resuming, and what is refused."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax.config import build
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.networks.dit import DiT
from diffusion_jax.networks.functional import init_apply
from diffusion_jax.parameterizations import FlowMap
from diffusion_jax.run.job import prepare
from diffusion_jax.types import System, Train
from tests.runs import resumed, toy


def config_of(name="mean_flow", **changes):
    config = toy(**changes)
    own = changes.get("system", dict(name=name))
    config.system = ConfigDict(own)
    config.process = ConfigDict(dict(name="rectified_flow"))
    config.parameterization = ConfigDict(dict(name="velocity", label="unit_time"))
    config.weighting = ConfigDict(dict(name="velocity_matching"))
    config.times = ConfigDict(dict(name="uniform", t_min=1e-3))
    config.solver = ConfigDict(dict(name="flow_map"))
    config.sampling.grid = ConfigDict(dict(name="uniform", t_min=0.0))
    config.sampling.steps = 1
    config.network.gap = True
    return config


@functools.cache
def system_of(name="mean_flow", num_classes=0):
    config = config_of(name)
    config.network.num_classes = num_classes
    system = build.system(config)
    shapes, rng = jax.eval_shape(system.init, jax.random.key(0)), np.random.default_rng(0)
    return system, jax.tree.map(lambda x: jnp.float32(0.3 * rng.standard_normal(x.shape)), shapes)


def test_is_a_system():
    assert isinstance(system_of()[0], System)


@pytest.mark.parametrize("steps", [1, 3])
def test_samples_are_the_steps_of_the_map(steps):
    """Row i starts from its own noise, and u is the network at (t, t - s)."""
    system, params = system_of()
    config = config_of()
    config.sampling.steps = steps
    drawn = build.system(config).sample(params, jax.random.key(3), 5)["samples"]
    x = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(jax.random.split(jax.random.key(3))[0], i), (2,)))(
        jnp.arange(5)
    )
    times = np.linspace(1, 0, steps + 1, dtype=np.float32)
    for t, s in itertools.pairwise(times):
        labels = jnp.broadcast_to(jnp.stack([t, t - s]), (5, 2))
        x = x - (t - s) * system.apply(params["network"], x, labels, None)
    np.testing.assert_allclose(drawn, x, rtol=1e-3, atol=1e-4)


def test_a_sample_depends_on_its_index_alone():
    system, params = system_of()
    whole = system.sample(params, jax.random.key(3), 6)["samples"]
    np.testing.assert_allclose(system.sample(params, jax.random.key(3), 3)["samples"], whole[:3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mean_flow", "shortcut"])
def test_the_denoiser_is_that_of_the_smallest_gap(name):
    """D = x - t u(x, t, t); a shortcut model knows no gap below 1 / 128."""
    system, params = system_of(name)
    x, t = jax.random.normal(jax.random.key(0), (4, 2)), jnp.float32(0.6)
    D = system.denoiser(params)
    assert isinstance(D, FlowMap)
    labels = jnp.broadcast_to(jnp.array([0.6, 0.0 if name == "mean_flow" else 1 / 128]), (4, 2))
    np.testing.assert_allclose(
        D(x, t), x - 0.6 * system.apply(params["network"], x, labels, None), rtol=1e-4, atol=1e-5
    )


def test_one_time_stands_for_a_gap_of_zero_in_every_network():
    system, params = system_of()
    x, t = jax.random.normal(jax.random.key(0), (4, 2)), jnp.linspace(0.1, 0.9, 4)
    labels = jnp.stack([t, jnp.zeros(4)], -1)
    apart = [system.apply(params["network"], x, c, None) for c in (t, labels, labels.at[:, 1].set(0.5))]
    np.testing.assert_array_equal(apart[0], apart[1])
    assert jnp.abs(apart[0] - apart[2]).max() > 1e-4

    init, apply = init_apply(lambda rngs: DiT(image_size=4, hidden_size=8, depth=1, num_heads=1, gap=True, rngs=rngs))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(init, jax.random.key(0))
    params = jax.tree.map(lambda s: jnp.float32(rng.standard_normal(s.shape)), shapes)
    x = jax.random.normal(jax.random.key(0), (4, 4, 4, 3))
    apart = [apply(params, x, c) for c in (t, labels, labels.at[:, 1].set(0.5))]
    np.testing.assert_allclose(apart[0], apart[1], rtol=1e-6)
    assert jnp.abs(apart[0] - apart[2]).max() > 1e-4


def test_the_target_network_is_an_average():
    system, params = system_of("shortcut")
    moved = {**params, "network": jax.tree.map(lambda x: x + 1, params["network"])}
    after = system.advance(moved, Train(jnp.int32(0), 1), {})["frozen"]["target"]
    expected = jax.tree.map(lambda e, p: 0.999 * e + 0.001 * (p + 1), params["frozen"]["target"], params["network"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after, expected)
    start = system.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, start["network"], start["frozen"]["target"])


def test_a_condition_and_its_dropout_reach_the_loss():
    system, params = system_of(num_classes=8)
    x, key, step = jax.random.normal(jax.random.key(0), (8, 2)), jax.random.key(1), Train(jnp.int32(0), 1)
    loss = jax.jit(lambda label: system.loss(params, key, {"x": x, "label": label}, step)[0])
    losses = [loss(jnp.full(8, c)) for c in (0, 1)]
    assert jnp.abs(losses[0] - losses[1]).max() > 1e-6
    config = config_of(system=dict(name="mean_flow", cond_dropout=0.5, omega=2.0))
    config.network.num_classes = 8
    guided = build.system(config)
    loss = jax.jit(lambda label: guided.loss(params, key, {"x": x, "label": label}, step)[0])
    losses = [loss(jnp.full(8, c)) for c in (0, 1)]
    dropped = np.asarray(losses[0] == losses[1])
    assert 0 < dropped.sum() < 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mean_flow", "shortcut"])
def test_a_resumed_run_equals_one_that_was_not_interrupted(name, tmp_path):
    config = config_of(name, optimizer__schedule="constant")
    whole = resumed(config, tmp_path, 2)
    assert any("target" in path for path in whole) == (name == "shortcut")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(process=dict(name="vp"), weighting=dict(name="simple")), r"config\.process\.name='vp'.*straight paths"),
        (dict(parameterization=dict(name="eps", label="time")), r"config\.parameterization\.name='eps'.*velocit"),
        (dict(parameterization=dict(name="velocity", label="log_sigma")), r"label='log_sigma'.*gap may be 0"),
        (dict(weighting=dict(name="edm")), r"config\.weighting\.name='edm'"),
        (dict(times=dict(name="importance", t_min=1e-3, t_max=0.9)), r"config\.times\.name='importance'.*weighted"),
        (dict(loss=dict(name="score_matching")), r"config\.loss\.name='score_matching'"),
        (dict(network=dict(name="mlp", hidden=16)), r"config\.network\.gap must be True.*mlp or dit"),
        (dict(guidance=dict(name="classifier_free")), r"config\.guidance\.name='classifier_free'.*heun"),
        (dict(sampling=dict(threshold=dict(name="static"))), r"config\.sampling\.threshold\.name='static'"),
        (dict(system=dict(name="mean_flow", target_rate=0.9)), r"config\.system\.target_rate=0\.9.*no target network"),
        (dict(system=dict(name="shortcut", target_rate=1.0)), r"target_rate is 1\.0"),
        (dict(system=dict(name="shortcut", num_steps=100)), r"num_steps is 100.*power of 2"),
        (dict(system=dict(name="mean_flow", omega=2.0)), r"config\.system\.omega=2\.0.*reads none"),
        (dict(system=dict(name="mean_flow", ratios=0.1)), r"config\.system\.ratios=0\.1.*ratio"),
        (dict(training=dict(dtype="bfloat16")), r"config\.training\.dtype='bfloat16'.*rounding"),
    ],
)
def test_refusals(changes, message):
    config = config_of()
    for section, values in changes.items():
        for key, value in values.items():
            if "name" in values:
                break
            config[section][key] = ConfigDict(value) if isinstance(value, dict) else value
        else:
            continue
        config[section] = ConfigDict(values)
    with pytest.raises(ConfigError, match=message):
        build.system(config)


def test_guidance_in_the_target_needs_a_null_condition_that_was_trained():
    config = config_of(system=dict(name="mean_flow", kappa=0.5))
    config.network.num_classes = 8
    with pytest.raises(ConfigError, match=r"config\.system\.cond_dropout=0 must be positive"):
        build.system(config)


def test_an_attention_without_a_derivative_is_refused_where_one_is_taken():
    config = config_of()
    config.data = ConfigDict(dict(name="digits", split="train", eval_split="test", image_size=8, channels=1, path=""))
    dit = dict(name="dit", gap=True, hidden_size=8, depth=1, num_heads=1, attention_implementation="cudnn")
    config.network = ConfigDict(dit)
    with pytest.raises(ConfigError, match=r"attention_implementation='cudnn' has no forward-mode derivative"):
        build.system(config)
    config.system = ConfigDict(dict(name="shortcut"))
    config.network.attention_implementation = "xla"
    build.system(config)


def test_other_systems_have_no_map():
    config = toy()
    config.solver = ConfigDict(dict(name="flow_map"))
    with pytest.raises(ConfigError, match=r"config\.solver\.name='flow_map' needs a flow map"):
        build.system(config)
    config = toy()
    config.network.gap = True
    with pytest.raises(ConfigError, match=r"config\.network\.gap=True is for flow maps"):
        build.system(config)


def test_low_rank_updates_follow_a_target():
    config = config_of("shortcut")
    config.lora.rank, config.lora.modules = 2, "linear"
    job = prepare(config)
    assert {"lora", "frozen"} <= set(job.state.params)
    assert {"network", "target"} <= set(job.state.params["frozen"])
