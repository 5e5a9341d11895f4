"""The VDM system: its parameters, its bound against a known density, samples, training, and what it refuses."""

import dataclasses
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax import processes, solvers, systems
from diffusion_jax.config import build
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.guidance.steering import Guidance
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.run import train
from diffusion_jax.solvers import grids
from diffusion_jax.training.step import init_state, make_train_step
from diffusion_jax.types import System
from tests.losses.test_vdm import DATA, PARAM, exact
from tests.runs import ROOT, digits, parts_of, source_of, with_devices
from tests.systems.test_noisy_classifier import classifier_config


def config(**changes):
    """A small VDM of the digits."""
    made = digits(system=ConfigDict(dict(name="vdm")), data__levels=17, **changes)
    made.process = ConfigDict(dict(name="learned_vp", gamma_0=-7.0, gamma_1=5.0, hidden=4))
    made.parameterization = ConfigDict(dict(name="eps", label="log_snr"))
    made.sampling.grid = ConfigDict(dict(name="uniform", t_min=0.0))
    made.data.levels = 17
    return build.reset_unread(made)


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
        solver=solvers.ddim(),
        grid=grids.uniform(t_min=0.0),
        steps=100,
        shape=(2,),
        batch_size=5000,
    )
    return systems.VDM(diffusion=diffusion, levels=levels, **changes)


LEVELS = 4097  # far finer than the density of DATA


@functools.cache
def evaluated():
    """The exact system with a schedule that is not that of the start, examples, and their figures."""
    system = gaussian(LEVELS, num_times=32)
    params = jax.jit(system.init)(jax.random.key(0))
    params["schedule"]["height"] = params["schedule"]["height"].at[0].add(2.0)
    x_0 = jnp.clip(DATA.sample(jax.random.key(1), 4000), -1, 1)
    x_0 = 2 * jnp.round((x_0 + 1) / 2 * (LEVELS - 1)) / (LEVELS - 1) - 1
    return system, params, x_0, jax.jit(system.evaluate)(params, jax.random.key(2), {"x": x_0})


def assert_equal_means(a, b, relative_error):
    """Within 4.5 standard errors, which are at most `relative_error` of the means."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    error = (a.var() / len(a) + b.var() / len(b)) ** 0.5
    assert abs(a.mean() - b.mean()) < 4.5 * error
    assert error < relative_error * abs(b.mean())


def test_the_bound_is_the_negative_log_likelihood_when_the_denoiser_is_exact():
    """On so fine levels log P(k) = log p(x) + d log(2 / (levels - 1)); compared example by example."""
    _, _, x_0, figures = evaluated()
    assert set(figures) == {"bits_per_dim", "reconstruction", "prior", "diffusion"}
    clean = processes.VE(sigma_min=1e-6)  # its x_0 has no noise to speak of
    nats = np.float64(DATA.log_prob(clean, x_0, jnp.float32(0))) + 2 * np.log(2 / (LEVELS - 1))
    difference = np.asarray(figures["bits_per_dim"], np.float64) + nats / (2 * np.log(2))
    error = difference.std() / len(x_0) ** 0.5
    assert abs(difference.mean()) < 4.5 * error
    assert error < 0.05  # of about 9.6 bits
    parts = figures["reconstruction"] + figures["prior"] + figures["diffusion"]
    np.testing.assert_allclose(figures["bits_per_dim"], parts, rtol=1e-5)


def test_a_row_of_the_evaluation_does_not_depend_on_its_batch():
    system, params, x_0, figures = evaluated()
    part = jax.jit(system.evaluate)(params, jax.random.key(2), {"x": x_0[:4]})
    for name, values in part.items():
        np.testing.assert_allclose(values, figures[name][:4], rtol=1e-4, atol=1e-5)


def test_the_loss_has_the_mean_of_the_evaluation():
    system, params, x_0, figures = evaluated()
    loss, metrics = jax.jit(lambda key: system.loss(params, key, {"x": x_0}, None))(jax.random.key(0))
    assert_equal_means(loss, figures["bits_per_dim"], 0.03)
    np.testing.assert_allclose(loss, metrics["reconstruction"] + metrics["prior"] + metrics["diffusion"], rtol=1e-5)


def test_discrete_time_visits_its_own_grid_and_moves_the_whole_schedule_by_the_bound():
    system, params, x_0, figures = evaluated()
    system = dataclasses.replace(system, num_steps=256)
    times = dataclasses.replace(system, num_steps=4)._time(jnp.array([0.0, 0.2, 0.25, 0.5, 0.999999, 1.0]))
    np.testing.assert_allclose(times, [0.25, 0.25, 0.5, 0.75, 1, 1])
    objective = lambda p: (jnp.mean((out := system.loss(p, jax.random.key(0), {"x": x_0}, None))[0]), out[1])
    grads, metrics = jax.jit(jax.grad(objective, has_aux=True))(params)
    assert all(np.abs(g).max() > 0 for g in grads["schedule"].values())
    # 256 steps cost a little more than infinitely many.
    ratio = metrics["diffusion"].mean() / figures["diffusion"].mean()
    assert 1 < ratio < 1.2


def test_samples_and_other_likelihoods_are_those_of_the_learned_process():
    """The network is exact for any schedule, so samples under another one than that of the start have the moments."""
    system, params, _, _ = evaluated()
    assert isinstance(system, System)
    n = 5000
    x = system.sample(params, jax.random.key(1), n)["samples"]
    np.testing.assert_allclose(x.mean(0), DATA.mean, atol=4.5 * (0.06 / n) ** 0.5)
    np.testing.assert_allclose(np.cov(x.T), DATA.covariance, atol=0.06 * (4.5 * (2 / n) ** 0.5 + 0.03))

    def likelihood(process, D, key, x):
        t = jnp.full(len(x), 0.4)
        return {"gamma": process.gamma(t), "error": jnp.abs(D(x, t) - DATA.denoiser(process)(x, t)).max(axis=1)}

    other = dataclasses.replace(system, diffusion=dataclasses.replace(system.diffusion, likelihood=likelihood))
    figures = other.evaluate(params, jax.random.key(0), {"x": jnp.zeros((2, 2))})
    expected = system.process(params).gamma(jnp.float32(0.4))
    assert abs(expected - system.diffusion.process.gamma(jnp.float32(0.4))) > 0.1
    np.testing.assert_allclose(figures["likelihood_gamma"], expected, rtol=1e-5)
    np.testing.assert_allclose(figures["likelihood_error"], 0, atol=1e-4)


def test_labels_reach_the_network():
    def apply(params, x, c_noise, cond, *, key=None):
        return jnp.zeros_like(x) + cond["label"][:, None]

    diffusion = dataclasses.replace(
        gaussian(17).diffusion, apply=apply, network_conditions=Conditions(num_classes=10), steps=1
    )
    system = systems.VDM(diffusion=diffusion, levels=17, num_times=1)
    params = jax.jit(system.init)(jax.random.key(0))
    batch = {"x": jnp.zeros((2, 2)), "label": jnp.array([0, 9])}
    low, high = jax.jit(system.evaluate)(params, jax.random.key(0), batch)["diffusion"]
    assert high > 10 * low
    np.testing.assert_array_equal(system.sample(params, jax.random.key(0), 3)["label"], [0, 1, 2])


def test_parameters_are_the_network_and_the_schedule():
    system, params = built()
    assert set(params) == {"network", "schedule"}
    assert set(params["schedule"]) == {"gamma_0", "gamma_1", "slope", "shift", "height"}
    assert system.process(params).gamma(jnp.float32(1)) == 5.0
    assert params["network"]["linear_in"]["kernel"].shape[0] == 64 * 5  # the image and four Fourier features
    linear = dataclasses.replace(system.diffusion, process=processes.learned_vp(-7.0, 5.0))
    schedule = jax.eval_shape(dataclasses.replace(system, diffusion=linear).init, jax.random.key(0))["schedule"]
    assert set(schedule) == {"gamma_0", "gamma_1"}


def test_training_moves_network_and_schedule_by_their_own_optimizers():
    system, _ = built()
    groups = {"schedule": {"learning_rate": 1e-2}}
    made = config(optimizer__warmup_steps=0)
    made.optimizer.groups = ConfigDict(groups)
    optimizer, _ = parts_of(made).optimizer()
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


def test_refusals():
    system, _ = built()
    with pytest.raises(ValueError, match="the process is VP; VDM learns a LearnedVP"):
        systems.VDM(diffusion=dataclasses.replace(system.diffusion, process=processes.VP()))
    for field in ("num_steps", "levels", "num_times"):
        with pytest.raises(ValueError, match=f"{field}=-1"):
            dataclasses.replace(system, **{field: -1})
    dequantized, unknown, fourier, off = (config() for _ in range(4))
    dequantized.data.dequantize = True
    with pytest.raises(ConfigError, match=r"config\.data\.dequantize=True"):
        build.system(dequantized)
    unknown.system.num_step = 3
    with pytest.raises(ConfigError, match=r"vdm takes no 'num_step' \(did you mean 'num_steps'"):
        build.system(unknown)
    fourier.network.fourier = (7.5,)
    with pytest.raises(ConfigError, match=r"config.network.fourier=\(7.5,\) must hold integers"):
        parts_of(fourier).network()
    off.data.levels = 16
    with pytest.raises(ConfigError, match="levels is 16, but x holds"):
        source_of(off)


def test_numbers_of_guidance_are_read_once_and_outside_of_jit():
    """As parameters of another run are, which need the mesh."""
    loads = []

    def load():
        loads.append(jax.sharding.get_mesh())  # raises under jit
        return jnp.float32(2.0)

    def steer(factor, model):
        return model._replace(D=lambda x, t, cond: factor * model.D(x, t, cond))

    plain = gaussian(17)
    guided = dataclasses.replace(
        plain, diffusion=dataclasses.replace(plain.diffusion, guidance=Guidance(load=load, steer=steer), batch_size=2)
    )
    params = jax.jit(plain.init)(jax.random.key(0))
    samples, ordinary = (system.sample(params, jax.random.key(0), 5)["samples"] for system in (guided, plain))
    assert len(loads) == 1 and np.abs(samples - ordinary).min() > 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A VDM, and a noisy classifier and a diffusion model of its initial schedule, hardly trained, by name."""
    folder = tmp_path_factory.mktemp("runs")
    made = {"vdm": config(), "classifier": classifier_config(), "autoguidance": digits(network__hidden=8)}
    for name, one in made.items():
        one.process, one.parameterization = made["vdm"].process, made["vdm"].parameterization
        train.train(one, folder / name)
    return folder


PROGRAM = """
import pathlib, sys, jax
from ml_collections import ConfigDict
from diffusion_jax.run import sample
from tests.systems.test_vdm import config
folder, devices = pathlib.Path(sys.argv[1]), int(sys.argv[2])
assert jax.device_count() == devices
for name in ("none", "classifier", "autoguidance"):
    made = config(sampling__file=f"{name}_{devices}", sampling__num_samples=4, sampling__batch_size=4)
    made.guidance = ConfigDict(dict(name=name) | (dict(path=str(folder / name), scale=20.0) if name != "none" else {}))
    sample.sample(made, folder / "vdm")
"""


@pytest.mark.slow
def test_the_command_guides_by_another_run(runs):
    """On two devices as on one."""
    for devices in (1, 2):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(runs), str(devices)],
            env=with_devices(devices),
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    drawn = {path.stem: np.load(path)["samples"].astype(int) for path in (runs / "vdm" / "samples").glob("*.npz")}
    for name in ("classifier", "autoguidance"):
        assert np.abs(drawn[f"{name}_2"] - drawn["none_2"]).max() > 1, name
        assert np.abs(drawn[f"{name}_2"] - drawn[f"{name}_1"]).max() <= 1, name
