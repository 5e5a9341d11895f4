"""The VDM system: its parameters, its bound against a known density, samples, training, and what it refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax import build, grids, parameterizations, processes, solvers, systems
from diffusion_jax.sections import ConfigError
from diffusion_jax.training.step import init_state, make_train_step
from diffusion_jax.types import System
from tests.runs import digits
from tests.test_vdm import DATA, PARAM, exact


def config(**changes):
    """A small VDM of the digits."""
    made = digits(system=ConfigDict(dict(name="vdm")), data__levels=17, **changes)
    made.process = ConfigDict(dict(name="learned_vp", gamma_0=-7.0, gamma_1=5.0, hidden=4))
    made.parameterization = ConfigDict(dict(name="eps", label="log_snr"))
    made.sampling.grid = ConfigDict(dict(name="uniform", t_min=0.0))
    made.data.levels = 17
    return made


@functools.cache
def built():
    made = config()
    made.network.fourier = (3, 4)
    system = build.system(made)

    @jax.jit
    def start(key):
        params = system.init(key)
        output = params["network"]["linear_out"]
        output["kernel"] = 0.1 * jax.random.normal(key, output["kernel"].shape)
        return params

    return system, start(jax.random.key(0))


def images(n: int, seed: int = 0) -> jax.Array:
    return jnp.float32(np.random.default_rng(seed).integers(0, 17, (n, 8, 8, 1)) / 8 - 1)


def gaussian(levels: int, **changes) -> systems.VDM:
    """The exact denoiser of DATA; gamma_1 so high that nothing of it is left at t = 1."""
    diffusion = systems.Diffusion(
        init_network=lambda key: {"scale": jnp.ones(())},
        apply=exact,
        process=processes.learned_vp(-12.0, 12.0, hidden=4),
        param=PARAM,
        loss_fn=lambda params, key, x_0, cond=None: (jnp.zeros(len(x_0)), {}),
        guidance=lambda D: D,
        solver=solvers.ddim(),
        grid=grids.uniform(t_min=0.0),
        steps=100,
        shape=(2,),
        batch_size=5000,
    )
    return systems.VDM(diffusion=diffusion, levels=levels, **changes)


def test_the_bound_is_the_negative_log_likelihood_when_the_denoiser_is_exact():
    """Levels far finer than the data's density: log P(k) = log p(x) + d log(2 / (levels - 1)), paired per example."""
    levels, n = 4097, 4000
    system = gaussian(levels, num_times=32)
    params = system.init(jax.random.key(0))
    x_0 = jnp.clip(DATA.sample(jax.random.key(1), n), -1, 1)
    x_0 = 2 * jnp.round((x_0 + 1) / 2 * (levels - 1)) / (levels - 1) - 1
    figures = jax.jit(system.evaluate)(params, jax.random.key(2), {"x": x_0})
    assert set(figures) == {"bits_per_dim", "reconstruction", "prior", "diffusion"}
    start = processes.VE(sigma_min=1e-6)  # whose x_0 has no noise to speak of
    nats = np.float64(DATA.log_prob(start, x_0, jnp.float32(0))) + 2 * np.log(2 / (levels - 1))
    difference = np.asarray(figures["bits_per_dim"], np.float64) + nats / (2 * np.log(2))
    error = difference.std() / n**0.5
    assert abs(difference.mean()) < 4.5 * error
    assert error < 0.04  # of about 9.6 bits


def test_samples_of_the_learned_process():
    """The network is exact for any schedule, so samples under another one than that of the start have the moments."""
    system = gaussian(256)
    assert isinstance(system, System)
    params = system.init(jax.random.key(0))
    params["schedule"]["height"] = params["schedule"]["height"] + 3.0
    params["schedule"]["gamma_0"] = jnp.float32(-11.0)
    n = 5000
    x = system.sample(params, jax.random.key(1), n)["samples"]
    np.testing.assert_allclose(x.mean(0), DATA.mean, atol=4.5 * (0.06 / n) ** 0.5)
    np.testing.assert_allclose(np.cov(x.T), DATA.covariance, atol=0.06 * (4.5 * (2 / n) ** 0.5 + 0.03))
    few = dataclasses.replace(system.diffusion, batch_size=3)
    np.testing.assert_allclose(
        dataclasses.replace(system, diffusion=few).sample(params, jax.random.key(1), 4)["samples"], x[:4], atol=1e-5
    )


def test_parameters_are_the_network_and_the_schedule():
    system, params = built()
    assert set(params) == {"network", "schedule"}
    assert set(params["schedule"]) == {"gamma_0", "gamma_1", "slope", "shift", "height"}
    assert system.process(params).gamma(jnp.float32(1)) == 5.0
    assert params["network"]["linear_in"]["kernel"].shape[0] == 64 * 5  # the image and four Fourier features
    linear = dataclasses.replace(
        system, diffusion=dataclasses.replace(system.diffusion, process=processes.learned_vp(-7.0, 5.0))
    )
    assert set(jax.eval_shape(linear.init, jax.random.key(0))["schedule"]) == {"gamma_0", "gamma_1"}


def test_a_row_of_the_evaluation_does_not_depend_on_its_batch():
    system, params = built()
    x = images(6)
    evaluate = jax.jit(system.evaluate)
    whole, part = (evaluate(params, jax.random.key(1), {"x": x[:n]}) for n in (6, 4))
    for name, values in whole.items():
        assert values.shape == (6,)
        np.testing.assert_allclose(part[name], values[:4], rtol=1e-4, atol=1e-5)
    parts = whole["reconstruction"] + whole["prior"] + whole["diffusion"]
    np.testing.assert_allclose(whole["bits_per_dim"], parts, rtol=1e-5)


def test_the_loss_is_the_mean_of_the_evaluation():
    """One time per example against sixteen: the same expectation, here over many draws of one image."""
    system, params = built()
    x = jnp.tile(images(1), (4096, 1, 1, 1))
    loss, metrics = jax.jit(lambda key: system.loss(params, key, {"x": x}, None))(jax.random.key(0))
    figures = jax.jit(system.evaluate)(params, jax.random.key(1), {"x": x[:1024]})
    a, b = np.asarray(loss, np.float64), np.asarray(figures["bits_per_dim"], np.float64)
    # The times of the loss are evenly spread, so its error is smaller than that of independent rows.
    error = (a.var() / len(a) + b.var() / len(b)) ** 0.5
    assert abs(a.mean() - b.mean()) < 4.5 * error
    assert error < 0.02 * b.mean()
    np.testing.assert_allclose(loss, metrics["reconstruction"] + metrics["prior"] + metrics["diffusion"], rtol=1e-5)


def test_training_moves_network_and_schedule_by_their_own_optimizers():
    system, _ = built()
    groups = {"schedule": {"learning_rate": 1e-2}}
    made = config(optimizer__warmup_steps=0)
    made.optimizer.groups = ConfigDict(groups)
    optimizer, _ = build.optimizer(made)
    state = jax.jit(lambda key: init_state(system, optimizer, (0.9,), key))(jax.random.key(0))
    step = jax.jit(make_train_step(system, optimizer, num_steps=4, ema_rates=(0.9,), accumulate=2))
    before = state.params
    for seed in range(2):
        state, metrics = step(state, {"x": images(16, seed)})
    assert {"loss", "reconstruction", "prior", "diffusion", "gamma_0", "gamma_1"} <= set(metrics)
    assert all(value.shape == () and np.isfinite(value) for value in metrics.values())
    for name, value in state.params["schedule"].items():
        moved = np.abs(value - before["schedule"][name]).max()
        assert 5e-3 < moved < 3e-2, name  # two steps of Adam at its own rate
    assert set(state.ema["0.9"]) == {"network", "schedule"}


def test_discrete_time_visits_its_own_grid():
    system, params = built()
    system = dataclasses.replace(system, num_steps=4, num_times=4)
    np.testing.assert_allclose(
        system._time(jnp.array([0.0, 0.2, 0.25, 0.5, 0.999999, 1.0])), [0.25, 0.25, 0.5, 0.75, 1, 1]
    )
    value = jax.jit(system.evaluate)(params, jax.random.key(0), {"x": images(2)})["bits_per_dim"]
    assert np.isfinite(value).all()
    # No parameter is left out: in discrete time the interior follows the bound as well.
    grads = jax.jit(jax.grad(lambda p: jnp.mean(system.loss(p, jax.random.key(0), {"x": images(8)}, None)[0])))(params)
    assert all(np.abs(g).max() > 0 for g in grads["schedule"].values())


def test_other_likelihoods_and_labels():
    made = config()
    made.network.num_classes = 10
    made.evaluation.likelihood = ConfigDict(dict(name="bound", steps=2))
    made.sampling.num_samples = 3
    system = build.system(made)
    params = jax.jit(system.init)(jax.random.key(0))
    batch = {"x": images(2), "label": np.array([3, 4])}
    figures = jax.jit(system.evaluate)(params, jax.random.key(0), batch)
    assert {"bits_per_dim", "likelihood_bits_per_dim", "likelihood_rate"} <= set(figures)
    parts = figures["likelihood_rate"] + figures["likelihood_distortion"]
    np.testing.assert_allclose(figures["likelihood_bits_per_dim"], parts, rtol=1e-5)
    drawn = system.sample(params, jax.random.key(0), 3)
    assert drawn["samples"].shape == (3, 8, 8, 1)
    np.testing.assert_array_equal(drawn["label"], [0, 1, 2])


def refused(made, message):
    with pytest.raises(ConfigError, match=message):
        build.source(made) if "levels" in message else build.system(made)


def test_refusals():
    other = config()
    other.process = ConfigDict(dict(name="vp"))
    refused(other, r"config.system \(vdm\): the process is VP; VDM learns a LearnedVP")
    dequantized = config()
    dequantized.data.dequantize = True
    refused(dequantized, "config.data.dequantize=True")
    unknown = config()
    unknown.system.num_step = 3
    refused(unknown, "vdm takes no 'num_step' .did you mean 'num_steps'")
    negative = config()
    negative.system.num_steps = -1
    refused(negative, "num_steps=-1")
    fourier = config()
    fourier.network.fourier = (7.5,)
    refused(fourier, r"config.network.fourier=\(7.5,\) must hold integers")
    off = config()
    off.data.levels = 16
    refused(off, "levels is 16, but x holds")
    with pytest.raises(ValueError, match="levels=1"):
        gaussian(1)


def test_parameterizations_agree():
    """The bound of one and the same denoiser, however its network is asked: v against eps."""
    label = parameterizations.log_sigma_label
    x_0 = jnp.asarray([[0.0, -0.25], [0.5, 0.125]])
    eps_system = gaussian(17, num_times=8)
    params = eps_system.init(jax.random.key(0))

    def v_network(params, x, c_noise, cond=None, *, key=None):
        sigma = jnp.sqrt(jax.nn.sigmoid(2 * c_noise))[:, None]
        alpha = jnp.sqrt(jax.nn.sigmoid(-2 * c_noise))[:, None]
        eps = exact(params, x, c_noise)
        return alpha * eps - sigma * (x - sigma * eps) / alpha

    v_diffusion = dataclasses.replace(
        eps_system.diffusion, apply=v_network, param=parameterizations.v_prediction(label)
    )
    v_system = dataclasses.replace(eps_system, diffusion=v_diffusion)
    a, b = (jax.jit(s.evaluate)(params, jax.random.key(0), {"x": x_0})["diffusion"] for s in (eps_system, v_system))
    np.testing.assert_allclose(a, b, rtol=1e-3)
    assert (a > 0).all()
