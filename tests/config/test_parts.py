"""The points that a config names: each gets its keywords, and what else it needs of the config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax import solvers
from diffusion_jax.config import defaults, names, replace
from tests.runs import parts_of, toy


@pytest.mark.parametrize(
    "changes, times",
    [
        (dict(), np.linspace(1, 1e-3, 5)),
        (dict(sampling__grid=ConfigDict(dict(name="uniform", t_max=0.5))), np.linspace(0.5, 1e-3, 5)),
    ],
)
def test_the_grid_gets_its_keywords(changes, times):
    config = toy(**{"sampling.grid": ConfigDict(dict(name="uniform")), **changes})
    parts = parts_of(config)
    np.testing.assert_allclose(parts.grid(parts.process, config.sampling.steps), times, rtol=1e-6)


def test_optimizer_follows_its_schedule():
    config = toy(optimizer__warmup_steps=2, training__num_steps=4)
    _, rate = parts_of(config).optimizer()
    np.testing.assert_allclose([rate(k) for k in (0, 1, 2, 4)], [0, 1e-3, 2e-3, 0], atol=1e-9)


def test_the_network_is_told_the_shape_of_the_data():
    network = parts_of(replace(defaults(), network=dict(name="mlp", hidden=8, num_layers=1))).network()
    params = jax.jit(network.init)(jax.random.key(0))
    assert network.apply(params, jnp.zeros((2, 8, 8, 1)), jnp.zeros(2)).shape == (2, 8, 8, 1)


def test_churn_is_shared_among_the_papers_number_of_steps(monkeypatch):
    """EDM's gamma is churn / N, where N counts the last step to sigma = 0, which is the final denoising here."""
    seen = {}

    def heun(churn=0.0, num_steps=None):
        seen.update(churn=churn, num_steps=num_steps)
        return solvers.ddim()

    monkeypatch.setitem(names.SOLVERS, "heun", heun)
    config = toy(sampling__steps=6, sampling__denoise=True)
    config.process = ConfigDict(dict(name="edm"))
    config.solver = ConfigDict(dict(name="heun", churn=3.0))
    config.sampling.grid = ConfigDict(dict(name="karras", denoising=True))
    parts = parts_of(config)
    assert parts.solver and seen == {"churn": 3.0, "num_steps": 6}
    sigma = parts.process.sigma(parts.grid(parts.process, config.sampling.steps))
    expected = (80 ** (1 / 7) + np.arange(6) / 5 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigma, expected, rtol=1e-3)


def test_langevin_steps_at_each_level_are_not_the_steps_of_the_run(monkeypatch):
    """Both are called num_steps: without one in the config, annealed_langevin keeps its own default."""
    seen = {}

    def langevin(num_steps=100):
        seen["num_steps"] = num_steps
        return solvers.ddim()

    monkeypatch.setitem(names.SOLVERS, "annealed_langevin", langevin)
    config = toy()
    config.solver = ConfigDict(dict(name="annealed_langevin"))
    assert parts_of(config).solver
    assert seen == {"num_steps": 100}
