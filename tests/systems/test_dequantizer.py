"""Variational dequantization of a trained run: what is frozen, what it learns, and what it refuses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax.config import build, saved
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.run import evaluate, job, parameters, train
from diffusion_jax.types import System
from tests.runs import digits

LEVELS = 17


def model_config(**changes):
    """A small likelihood model of the digits."""
    config = digits(training__num_steps=30, **changes)
    config.data.update(levels=LEVELS, dequantize=True)
    config.parameterization = ConfigDict(dict(name="edm", sigma_data=0.5))
    return config


def config(model, **changes):
    config = digits(training__num_steps=60, **changes)
    config.system = ConfigDict(dict(name="variational_dequantization", model=str(model), num_layers=2, t_min=1e-3))
    config.data.levels = LEVELS
    config.optimizer.learning_rate = 3e-3
    config.evaluation.likelihood = ConfigDict(dict(name="ode", t_min=1e-3, rtol=1e-3, atol=1e-3))
    config.evaluation.num_samples = 16
    return build.reset_unread(config)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    train.train(model_config(), directory)
    return directory


@pytest.mark.slow
def test_starts_as_uniform_noise_with_the_runs_averaged_weights(model):
    made = job.prepare(config(model))
    assert isinstance(made.system, System)
    state = parameters.fresh_state(made)
    run = build.trained(str(model), "config.system.model")
    jax.tree.map(np.testing.assert_array_equal, state.params["frozen"]["diffusion"], run.load())
    x = jnp.float32(np.random.default_rng(0).integers(0, LEVELS, (4, 8, 8, 1)) / 8 - 1)
    noisy, log_q = made.system.dequantize(state.params)(jax.random.split(jax.random.key(0), 4), x)
    np.testing.assert_allclose(log_q, 0, atol=1e-4)
    assert (jnp.abs(noisy - x * 16 / LEVELS) <= 1 / LEVELS + 1e-6).all()  # within the cell of the level


@pytest.mark.slow
def test_trains_the_flow_alone_and_reports_both_bounds(model, tmp_path, capfd):
    train.train(config(model), tmp_path)
    evaluate.evaluate(config(model), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert np.mean([row["loss"] for row in rows[-3:]]) < rows[0]["loss"]
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert figures["held_out_bits_per_dim"] != figures["held_out_uniform_bits_per_dim"]
    assert np.isfinite([figures["held_out_bits_per_dim"], figures["held_out_uniform_bits_per_dim"]]).all()
    params, step = parameters.load_params(job.prepare(config(model)), tmp_path)
    run = build.trained(str(model), "config.system.model")
    jax.tree.map(np.testing.assert_array_equal, params["frozen"]["diffusion"], run.load())
    assert step == 60


def _pretend(directory, config):
    """A work directory whose config.json is that of `config`."""
    (directory / "checkpoints").mkdir(parents=True)
    saved.write_config(directory, config)
    return directory


def test_refuses_what_does_not_fit(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.system\.model='' must be the work directory of a trained run"):
        build.system(config(""))
    with pytest.raises(ConfigError, match=r"config\.system\.model='.*nowhere' must be the work directory"):
        build.system(config(tmp_path / "nowhere"))
    bare = tmp_path / "bare"
    (bare / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"bare' has no config\.json"):
        build.system(config(bare))
    made = model_config()
    made.data.levels = 9
    with pytest.raises(ConfigError, match=r"config\.data\.levels is 9 there and 17 here"):
        build.system(config(_pretend(tmp_path / "levels", made)))
    made = model_config()
    made.data.dequantize = False
    with pytest.raises(ConfigError, match=r"config\.data\.dequantize must be false here"):
        build.system(config(_pretend(tmp_path / "plain", made)))
    fine = _pretend(tmp_path / "fine", model_config())
    made = config(fine)
    made.evaluation.likelihood = ConfigDict(dict(name="bound", steps=4))
    with pytest.raises(ConfigError, match=r"config\.evaluation\.likelihood\.name='bound' must be 'ode' or 'none'"):
        build.system(made)
    made = config(fine)
    made.system.num_layers = 0
    with pytest.raises(ConfigError, match="num_layers=0"):
        build.system(made)
    with pytest.raises(ConfigError, match=r"other'.*config\.system\.name='variational_deq"):
        build.system(config(_pretend(tmp_path / "other", config(fine))))
    with pytest.raises(ConfigError, match=r"config\.system\.model: checkpoint: no checkpoint|no checkpoint in"):
        parameters.fresh_state(job.prepare(config(fine)))
