"""From config to objects: keywords reach their constructors, and what does not fit is named."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax import processes
from diffusion_jax.config import build, checks, defaults, replace, sections
from diffusion_jax.config.sections import ConfigError
from tests.runs import toy

TABLES = {
    "process": build.PROCESSES,
    "weighting": build.WEIGHTINGS,
    "times": build.TIMES,
    "solver": build.SOLVERS,
    "grid": build.GRIDS,
    "loss": build.LOSSES,
    "network": build.NETWORKS,
    "parameterization": build.PARAMETERIZATIONS,
}


def test_keywords_reach_the_constructor():
    process = sections.construct(build.PROCESSES, "process", {"name": "vp", "beta_max": 10.0})
    assert process == processes.VP(beta_max=10.0)


def test_defaults_are_complete():
    config = defaults()
    checks.check_keys(config)
    for field in ("process", "weighting", "times", "solver", "loss", "network", "parameterization"):
        assert config[field].name in TABLES[field]


@pytest.mark.parametrize("field", TABLES)
def test_every_constructor_has_a_signature(field):
    """Without one, every keyword would be accepted or refused alike."""
    for constructor in TABLES[field].values():
        parameters = inspect.signature(constructor.__init__ if isinstance(constructor, type) else constructor)
        assert all(p.kind != p.VAR_KEYWORD for p in parameters.parameters.values())


@pytest.mark.parametrize("field", TABLES)
def test_unknown_names_and_keywords(field):
    table = TABLES[field]
    for name in table:
        with pytest.raises(ConfigError) as refusal:
            sections.construct(table, field, {"name": name, "nonsense": 1})
        assert f"config.{field}.nonsense=1" in str(refusal.value)
    with pytest.raises(ConfigError) as refusal:
        sections.construct(table, field, {"name": f"{next(iter(table))}_"})
    assert all(name in str(refusal.value) for name in table)
    assert f"did you mean {next(iter(table))!r}" in str(refusal.value)


@pytest.mark.parametrize(
    "section, words",
    [
        ({"name": "vp", "beta_min": "low"}, "config.process.beta_min='low' must be a number"),
        ({"name": "vp", "beta_min": True}, "config.process.beta_min=True must be a number"),
        ({"name": "discrete_vp", "num_steps": 10.5}, "config.process.num_steps=10.5 must be an integer"),
        ({"name": "discrete_vp", "betas": 3}, "config.process.betas=3 must be a string"),
        ({"name": "discrete_vp", "zero_terminal_snr": 1}, "config.process.zero_terminal_snr=1 must be true or false"),
        ({"name": "discrete_vp", "betas": "liner"}, "choose linear"),
    ],
)
def test_values_of_the_wrong_type(section, words):
    with pytest.raises(ConfigError, match=words):
        sections.construct(build.PROCESSES, "process", section)


def test_an_integer_is_a_number():
    assert sections.construct(build.PROCESSES, "process", {"name": "vp", "beta_max": 10}).beta_max == 10


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("training", 3, "config.training=3 must be a section"),
        ("training.num_steps", 2.5, "config.training.num_steps=2.5 must be an integer"),
        ("training.num_steps", True, "config.training.num_steps=True must be an integer"),
        ("ema.rates", 0.999, "config.ema.rates=0.999 must be a tuple"),
        ("ema.warmup", "no", "config.ema.warmup='no' must be true or false"),
        ("weights", 3, "config.weights=3 must be"),
        ("data.image_size", "8", "config.data.image_size='8' must be a positive integer"),
    ],
)
def test_values_of_the_wrong_type_in_a_config_file(key, value, words):
    config = ConfigDict(defaults().to_dict(), type_safe=False)
    *section, last = key.split(".")
    target = config[section[0]] if section else config
    target[last] = value
    with pytest.raises(ConfigError, match=words):
        checks.check_keys(config)
        build.data_shape(config)


@pytest.mark.parametrize("key", ["guidance", "sampling.steps"])
def test_missing_keys(key):
    config = defaults()
    section, _, last = key.rpartition(".")
    del (config[section] if section else config)[last]
    with pytest.raises(ConfigError, match=rf"config\.{key} is missing"):
        checks.check_keys(config)


@pytest.mark.parametrize(
    "changes, times",
    [
        (dict(), np.linspace(1, 1e-3, 5)),
        (dict(sampling__grid=ConfigDict(dict(name="uniform", t_max=0.5))), np.linspace(0.5, 1e-3, 5)),
    ],
)
def test_the_grid_gets_its_keywords(changes, times):
    config = toy(**{"sampling.grid": ConfigDict(dict(name="uniform")), **changes})
    system = build.system(config)
    np.testing.assert_allclose(system.grid(system.process, system.steps), times, rtol=1e-6)


def test_dropped_keywords():
    original = ConfigDict(dict(solver=dict(name="ddim", eta=0.5), sampling=dict(grid=dict(name="karras", rho=7.0))))
    same, other, kept = (ConfigDict(original.to_dict()) for _ in range(3))
    other.solver.name, other.sampling.grid.name = "heun", "uniform"
    kept.solver.name, kept.solver.eta = "ancestral", 0.7
    for config in (same, other, kept):
        sections.drop_replaced(config, original)
    assert same == original
    assert other.to_dict() == {"solver": {"name": "heun"}, "sampling": {"grid": {"name": "uniform"}}}
    assert kept.solver.to_dict() == {"name": "ancestral", "eta": 0.7}


def test_data_and_optimizer_keep_their_keywords():
    original = ConfigDict(dict(data=dict(name="mnist", image_size=28), optimizer=dict(name="adam", learning_rate=0.1)))
    config = ConfigDict(original.to_dict())
    config.data.name, config.optimizer.name = "fashion_mnist", "lion"
    sections.drop_replaced(config, original)
    assert config.data.image_size == 28 and config.optimizer.learning_rate == 0.1


def test_optimizer_follows_its_schedule():
    config = toy(optimizer__warmup_steps=2, training__num_steps=4)
    _, rate = build.optimizer(config)
    np.testing.assert_allclose([rate(k) for k in (0, 1, 2, 4)], [0, 1e-3, 2e-3, 0], atol=1e-9)


def test_the_network_is_told_the_shape_of_the_data():
    init, apply = build.network(replace(defaults(), network=dict(name="mlp", hidden=8, num_layers=1)))
    params = jax.jit(init)(jax.random.key(0))
    assert apply(params, jnp.zeros((2, 8, 8, 1)), jnp.zeros(2)).shape == (2, 8, 8, 1)


def test_source_splits():
    train, test = build.source(toy()), build.source(toy(), evaluation=True)
    assert len(train) == len(test) == 256
    assert np.abs(train.batch(np.arange(5))["x"] - test.batch(np.arange(5))["x"]).min() > 0


def test_the_average_that_is_sampled():
    config = toy(ema__rates=(0.9, 0.99))
    assert checks.ema_rate(config) == "0.9"
    config.sampling.ema_rate = 0.99
    assert checks.ema_rate(config) == "0.99"


def test_langevin_steps_at_each_level_are_not_the_steps_of_the_run(monkeypatch):
    """Both are called num_steps: without one in the config, annealed_langevin keeps its own default."""
    seen = {}

    def langevin(num_steps=100):
        seen["num_steps"] = num_steps
        return build.solvers.ddim()

    monkeypatch.setitem(build.SOLVERS, "annealed_langevin", langevin)
    config = toy()
    config.solver = ConfigDict(dict(name="annealed_langevin"))
    build.system(config)
    assert seen == {"num_steps": 100}
