"""Autoregressive forecasts whose law at every horizon is known, and what a step may depend on."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from diffusion_jax import parameterizations, solvers
from diffusion_jax.config import build
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.guidance.observation import observed
from diffusion_jax.losses import denoising_loss, weightings
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.networks.functional import count_parameters, init_methods
from diffusion_jax.networks.timegrad import SeriesEncoder, TimeGradNet
from diffusion_jax.processes import VP
from diffusion_jax.run import evaluate, train
from diffusion_jax.solvers import grids
from diffusion_jax.systems import Diffusion, TimeGrad
from diffusion_jax.systems.scaling import SCALINGS
from tests.config.test_configs import read
from tests.oracles import network_of
from tests.runs import changed

PROCESS, PARAM = VP(), parameterizations.eps_prediction()
A, S, HORIZON, LENGTH = 0.8, 0.5, 6, 10


def exact(params, x_in, c_noise, cond, *, key=None):
    """The network whose denoiser is exact for x_{n+1} = A x_n + S e, given x_n as the condition."""
    mean = A * cond["vector"]

    def D(x, t, cond=None):
        alpha, sigma = PROCESS.alpha(t)[:, None], PROCESS.sigma(t)[:, None]
        return mean + S**2 * alpha / (alpha**2 * S**2 + sigma**2) * (x - alpha * mean)

    return network_of(D, PARAM, PROCESS)(x_in, c_noise)


def system(lag: int = 1, scaling: str = "none", apply=exact) -> TimeGrad:
    diffusion = Diffusion(
        init_network=lambda key: {},
        apply=apply,
        process=PROCESS,
        param=PARAM,
        loss_fn=denoising_loss(apply, PARAM, PROCESS, weightings.simple()),
        solver=solvers.heun(),
        grid=grids.quadratic(t_min=1e-4),
        steps=24,
        shape=(1,),
        network_conditions=Conditions(vector_dim=1),
        batch_size=8192,
    )
    return TimeGrad(
        diffusion=diffusion,
        init_encoder=lambda key: {},
        encode=lambda params, state, inputs: (state, inputs),
        state=(1,),
        lags=(lag,),
        operator=observed((LENGTH, 1), HORIZON),
        scaling=SCALINGS[scaling],
    )


def forecasts(model: TimeGrad, num: int = 8192, last: float = 2.0) -> np.ndarray:
    known = np.full((num, LENGTH, 1), np.nan, np.float32)
    known[:, : LENGTH - HORIZON] = np.array([0.3, -1.0, 0.5, last])[:, None]
    drawn = model.sample({"network": {}, "encoder": {}}, jax.random.key(0), num, {"known": known})["samples"]
    np.testing.assert_array_equal(drawn[:, : LENGTH - HORIZON], known[:, : LENGTH - HORIZON])
    return drawn[:, -HORIZON:, 0]


def deviations(x: np.ndarray, last: float = 2.0) -> tuple[float, float]:
    """The largest errors of mean and variance over horizons, from N(a^h x, s^2 (1 - a^2h) / (1 - a^2))."""
    h = np.arange(1, HORIZON + 1)
    variance = S**2 * (1 - A ** (2 * h)) / (1 - A**2)
    return float(np.abs(x.mean(0) - A**h * last).max()), float(np.abs(x.var(0) - variance).max())


def test_the_exact_denoiser_gives_the_predictive_law_at_every_horizon():
    x = forecasts(system())
    off, spread = deviations(x)
    assert off < 0.04 and spread < 0.04
    steps = np.corrcoef(x.T)[0]  # of one path: corr(x_1, x_h) of the recursion
    h = np.arange(1, HORIZON + 1)
    variance = (1 - A ** (2 * h)) / (1 - A**2)
    np.testing.assert_allclose(steps, A ** (h - 1) / np.sqrt(variance), atol=0.05)


def test_a_lag_that_is_off_by_one_is_found():
    """The negative control: x_{n+1} drawn given x_{n-1}."""
    off, _ = deviations(forecasts(system(lag=2), num=512))
    assert off > 0.5


def test_the_loss_is_that_of_the_steps_with_lags_and_reads_nothing_ahead():
    model = system(lag=3)
    x = jax.random.normal(jax.random.key(0), (2, LENGTH, 1))
    values, start = jnp.where(jnp.isfinite(x), x, 0), model.first
    _, vectors = model.encoded({"encoder": {}}, values, LENGTH)
    np.testing.assert_array_equal(vectors[:, :, 0].T, x[:, : LENGTH - start, 0])
    loss = jax.jit(lambda x: model.loss({"network": {}, "encoder": {}}, jax.random.key(1), {"x": x}, None)[0])
    hole = x.at[0, 5].set(jnp.nan)
    assert np.isfinite(loss(hole)).all() and loss(hole)[1] == loss(x)[1] and loss(hole)[0] != loss(x)[0]
    assert loss(jnp.full_like(x, jnp.nan)) == pytest.approx(0)


def test_a_row_depends_on_its_own_history_only():
    model = system()
    known = np.full((3, LENGTH, 1), np.nan, np.float32)
    known[:, : LENGTH - HORIZON] = np.random.default_rng(0).standard_normal((3, LENGTH - HORIZON, 1))
    draw = lambda known: model.sample({"network": {}, "encoder": {}}, jax.random.key(0), len(known), {"known": known})
    whole = draw(known)["samples"]
    np.testing.assert_allclose(draw(known[:1])["samples"], whole[:1], rtol=1e-5, atol=1e-5)
    changed = known.copy()
    changed[1] += 1
    other = draw(changed)["samples"]
    np.testing.assert_allclose(other[[0, 2]], whole[[0, 2]], rtol=1e-5, atol=1e-5)
    assert np.abs(other[1, -1] - whole[1, -1]).max() > 0.01


def test_a_known_value_within_the_horizon_leads_the_next_step():
    known = np.full((2000, LENGTH, 1), np.nan, np.float32)
    known[:, : LENGTH - HORIZON], at = 0, LENGTH - HORIZON + 1
    known[:, at] = 3
    x = system().sample({"network": {}, "encoder": {}}, jax.random.key(0), len(known), {"known": known})["samples"]
    np.testing.assert_array_equal(x[:, at], 3)
    assert abs(x[:, at + 1].mean() - A * 3) < 4 * S / np.sqrt(len(known))


def test_scaled_histories_give_scaled_forecasts():
    """With the exact denoiser of one scale, so that the samples are those of the other one, scaled."""
    model = system(scaling="mean")
    known = np.full((4, LENGTH, 1), np.nan, np.float32)
    known[:, : LENGTH - HORIZON] = np.random.default_rng(0).standard_normal((4, LENGTH - HORIZON, 1))
    draw = lambda known: model.sample({"network": {}, "encoder": {}}, jax.random.key(0), 4, {"known": known})["samples"]
    np.testing.assert_allclose(draw(100 * known), 100 * draw(known), rtol=1e-3, atol=1e-2)
    assert np.isfinite(draw(0 * known)).all()


@pytest.mark.parametrize(("dim", "count"), [(370, 102_786), (7, 15_612)])
def test_the_network_has_the_parameters_of_the_authors(dim, count):
    module = nnx.eval_shape(lambda: TimeGradNet(shape=(dim,), rngs=nnx.Rngs(0)))
    assert count_parameters(nnx.to_pure_dict(nnx.state(module))) == count


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_cells_are_those_of_flax(cell):
    """With the weights of Flax's cells, in its order of gates."""
    init, (encode,) = init_methods(lambda rngs: SeriesEncoder(3, 2, 4, 1, cell, rngs=rngs), ("__call__",))
    params = init(jax.random.key(0))
    rngs = nnx.Rngs(0)
    x, h = jax.random.normal(jax.random.key(1), (5, 3)), jax.random.normal(jax.random.key(2), (5, 4))
    if cell == "lstm":
        flax_cell, c = nnx.LSTMCell(3, 4, rngs=rngs), jnp.tanh(h[::-1])
        names = ("ii", "if_", "ig", "io"), ("hi", "hf", "hg", "ho")
        (c_next, _), expected = flax_cell((c, h), x)
        state = jnp.stack([h, c], 1)[:, None]
    else:
        flax_cell = nnx.GRUCell(3, 4, rngs=rngs)
        expected, _ = flax_cell(h, x)
        state = jnp.stack([h, h], 1)[:, None]
    if cell == "lstm":
        kernels = [jnp.concatenate([getattr(flax_cell, n).kernel[...] for n in part], -1) for part in names]
    else:
        kernels = [flax_cell.dense_i.kernel[...], flax_cell.dense_h.kernel[...]]
    params["input_gates"]["0"]["kernel"], params["state_gates"]["0"]["kernel"] = kernels
    after, _ = encode(params, state, x)
    np.testing.assert_allclose(after[:, 0, 0], expected, rtol=1e-5, atol=1e-6)
    if cell == "lstm":
        np.testing.assert_allclose(after[:, 0, 1], c_next, rtol=1e-5, atol=1e-6)


def tiny(**changes) -> ConfigDict:
    config = read("timegrad:eeg")
    config.data.update(length=12, horizon=3)
    config.system.update(horizon=3, lags=(1, 2), cells=8)
    config.network.update(channels=4, num_layers=2, vector_dim=8, hidden=8, cond_hidden=8)
    config.training.update(num_steps=4, batch_size=8, log_every=1, checkpoint_every=2)
    config.sampling.update(num_samples=8, samples_per_condition=4, steps=2)
    config.evaluation.update(num_samples=8, samples_per_condition=4, after_training=False)
    return changed(config, **changes)


@pytest.mark.slow
def test_the_command_trains_and_evaluates(tmp_path):
    config = tiny(training__num_steps=300, training__checkpoint_every=300, optimizer__learning_rate=1e-2)
    config.sampling.update(steps=8, samples_per_condition=1)
    config.evaluation.update(num_samples=640, samples_per_condition=16)
    train.train(config, tmp_path)
    evaluate.evaluate(config, tmp_path)
    values = json.loads((tmp_path / "evaluation.json").read_text())
    assert values["num_windows"] == 40 and values["crps"] < 0.5 and 0.4 < values["coverage_90"] <= 1
    assert {"crps_sum_19", "energy_score", "mase", "ridge_crps"} <= values.keys()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(system__horizon=0), "system.horizon=0 must be at least 1"),
        (dict(system__horizon=12), "horizon is 12.*less than the 12 steps"),
        (dict(system__lags=(0, 1)), r"lags=\(0, 1\) must be at least 1"),
        (dict(system__lags=(1, 10)), "history of 9 steps"),
        (dict(system__cell="rnn"), "cell is 'rnn'; choose lstm or gru"),
        (dict(network=dict(name="mlp")), "reads nothing; it must read the encoder's state"),
        (dict(guidance=dict(name="classifier_free")), "guidance.name='classifier_free' must be 'none'"),
        (dict(system__cells=0), "system.cells=0 must be at least 1"),
    ],
)
def test_configs_that_cannot_work_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        build.build(tiny(**changes))


def test_samples_need_a_history():
    model = dataclasses.replace(system())
    with pytest.raises((ValueError, TypeError)):
        model.sample({"network": {}, "encoder": {}}, jax.random.key(0), 2)
