"""From sections to objects: keywords reach their constructors, and values of another type are refused by name."""

import pytest
from ml_collections import ConfigDict

from diffusion_jax import processes, solvers
from diffusion_jax.config import names, sections
from diffusion_jax.config.sections import ConfigError


def test_keywords_reach_the_constructor():
    process = sections.construct(names.PROCESSES, "process", {"name": "vp", "beta_max": 10.0})
    assert process == processes.VP(beta_max=10.0)


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
        sections.construct(names.PROCESSES, "process", section)


def test_sizes_that_may_be_zero():
    sections.check_sizes(names.NETWORKS["unet_2d_condition"], "network", {"mid_transformer_layers": 0, "dropout": 0.0})
    sections.check_sizes(names.AUTOENCODERS["autoencoder_kl"], "network", {"attention_levels": (0,)})
    sections.check_sizes(names.TEXT_ENCODERS["clip_text"], "system.text_encoder", {"eos_token_id": 0, "skip": 0})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_are_finite(value):
    with pytest.raises(ConfigError, match=rf"config\.solver\.eta={value} must be a finite number"):
        sections.construct({"ddim": solvers.ddim}, "solver", {"name": "ddim", "eta": value})
    sections.construct({"heun": solvers.heun}, "solver", {"name": "heun", "s_max": float("inf")})


def test_an_integer_is_a_number():
    assert sections.construct(names.PROCESSES, "process", {"name": "vp", "beta_max": 10}).beta_max == 10


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
