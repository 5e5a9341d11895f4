"""The points that a config names: each gets its keywords, and what else it needs of the config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax import solvers
from diffusion_jax.config import defaults, names, replace
from diffusion_jax.config.sections import ConfigError
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


@pytest.mark.parametrize(
    "section, values, words",
    [
        ("process", dict(name="ve", sigma_min=50.0, sigma_max=0.01), "process.sigma_min=50.0.*noise must grow"),
        ("process", dict(name="ve", sigma_min=0.0, sigma_max=1.0), "process.sigma_min=0.0.*noise must grow"),
        ("process", dict(name="edm", sigma_min=80.0, sigma_max=0.002), "process.sigma_max=0.002.*noise must grow"),
        ("process", dict(name="vp", beta_min=-1.0), "process.beta_min=-1.0.*noise must grow"),
        ("process", dict(name="subvp", beta_min=0.0, beta_max=0.0), "process.beta_max=0.0.*noise must grow"),
        ("process", dict(name="cosine", s=-0.5), r"process.s=-0.5.*noise must grow"),
        (
            "process",
            dict(name="discrete_vp", beta_start=0.1, beta_end=0.01),
            r"process.*\(0.1, 0.01\); it must be 0 < beta_start",
        ),
        ("process", dict(name="discrete_vp", beta_start=-1.0), r"process.*\(-1.0, 0.02\); it must be 0 < beta_start"),
        ("solver", dict(name="ddim", eta=1.5), r"solver \(ddim\): eta is 1.5.*\[0, 1\]"),
        ("solver", dict(name="ddim", eta=-1.0), r"solver \(ddim\): eta is -1.0.*\[0, 1\]"),
        ("solver", dict(name="predictor_corrector", snr=-1.0), r"solver.*snr is -1.0.*at least 0"),
        ("solver", dict(name="annealed_langevin", step_size=0.0), r"solver.*step_size is 0.0.*positive"),
        ("network", dict(name="mlp", hidden=0), "network.hidden=0 must be at least 1"),
        ("network", dict(name="mlp", num_layers=-1), "network.num_layers=-1 must be at least 1"),
        ("network", dict(name="mlp", num_classes=-1), "network.num_classes=-1 must be at least 0"),
        ("network", dict(name="mlp", dropout=1.5), r"network.dropout=1.5 must be in \[0, 1\)"),
        ("network", dict(name="unet", channel_mult=(1, 0)), r"network.channel_mult=\(1, 0\) must be at least 1"),
        ("network", dict(name="dit", num_heads=0), "network.num_heads=0 must be at least 1"),
    ],
)
def test_numbers_out_of_range(section, values, words):
    config = toy()
    config[section] = ConfigDict(values)
    with pytest.raises(ConfigError, match=rf"config\.{words}"):
        made = parts_of(config)
        made.network() if section == "network" else getattr(made, section)


def test_the_grid_of_karras_needs_a_positive_rho():
    with pytest.raises(ConfigError, match=r"config\.sampling\.grid \(karras\): rho is 0.*positive"):
        _ = parts_of(toy(sampling__grid=ConfigDict(dict(name="karras", rho=0.0, t_min=0.01)))).grid


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
