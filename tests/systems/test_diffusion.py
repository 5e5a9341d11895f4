"""The diffusion system: samples that depend on nothing but their index, conditions, dropout, clipping."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax import solvers
from diffusion_jax.config import build
from diffusion_jax.guidance import thresholding
from diffusion_jax.types import System, Train
from tests.oracles import Gaussian
from tests.runs import digits, toy


@functools.cache
def _system(make=toy, **changes):
    """A system and parameters whose output layer, zero at the start, is random."""
    system = build.system(make(**changes))

    @jax.jit
    def start(key):
        params = system.init(key)
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        noisy = [x + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, noisy)

    return system, start(jax.random.key(0))


def test_is_a_system():
    assert isinstance(_system()[0], System)


@pytest.mark.few(1)
@pytest.mark.parametrize("solver", ["ancestral", "ddim"])
def test_a_sample_depends_on_its_index_alone(solver):
    system, params = _system(solver__name=solver)
    key = jax.random.key(3)
    whole = system.sample(params, key, 7)["samples"]
    assert whole.shape == (7, 2)
    assert np.isfinite(whole).all()
    assert len(np.unique(whole[:, 0])) == 7
    for batch_size, num in ((1, 7), (3, 7), (100, 7), (4, 5)):
        drawn = dataclasses.replace(system, batch_size=batch_size).sample(params, key, num)["samples"]
        assert drawn.shape == (num, 2)
        np.testing.assert_allclose(drawn, whole[:num], rtol=0, atol=1e-6 * np.abs(whole).max())


def test_another_seed_gives_other_samples():
    system, params = _system()
    a, b = (system.sample(params, jax.random.key(seed), 4)["samples"] for seed in (0, 1))
    assert np.abs(a - b).min() > 1e-4


def test_labels_go_round_unless_they_are_given():
    system, params = _system(network__num_classes=8)
    drawn = system.sample(params, jax.random.key(0), 10)
    np.testing.assert_array_equal(drawn["label"], [0, 1, 2, 3, 4, 5, 6, 7, 0, 1])
    given = {"label": jnp.array([5, 5, 2])}
    chosen = system.sample(params, jax.random.key(0), 3, given)
    np.testing.assert_array_equal(chosen["label"], given["label"])
    assert np.abs(chosen["samples"][0] - drawn["samples"][0]).max() > 1e-4, "the label reaches the network"
    scale = np.abs(drawn["samples"]).max()
    np.testing.assert_allclose(chosen["samples"][2], drawn["samples"][2], atol=1e-6 * scale)
    assert "label" not in _system()[0].sample(_system()[1], jax.random.key(0), 2)


def test_the_loss_sees_the_labels():
    system, params = _system(network__num_classes=8)
    x, key = jax.random.normal(jax.random.key(0), (4, 2)), jax.random.key(1)
    a, b = (system.loss(params, key, {"x": x, "label": jnp.full(4, c)}, None)[0] for c in (0, 1))
    assert a.shape == (4,)
    assert np.abs(a - b).min() > 1e-6


def test_an_unconditional_network_ignores_labels():
    system, params = _system()
    x, key = jax.random.normal(jax.random.key(0), (4, 2)), jax.random.key(1)
    a = system.loss(params, key, {"x": x, "label": jnp.zeros(4, jnp.int32)}, None)[0]
    np.testing.assert_array_equal(a, system.loss(params, key, {"x": x}, None)[0])


def test_denoise_ends_with_the_denoiser():
    system, params = _system()
    plain = system.sample(params, jax.random.key(0), 4)["samples"]
    t_min = system.grid(system.process, system.steps)[-1]
    expected = system.denoiser(params)(jnp.asarray(plain), t_min)
    denoised = dataclasses.replace(system, denoise=True).sample(params, jax.random.key(0), 4)["samples"]
    np.testing.assert_allclose(denoised, expected, atol=1e-5)
    assert np.abs(denoised - plain).max() > 1e-5


def test_the_threshold_limits_the_denoiser():
    system, params = _system()
    x, t = 30 * jax.random.normal(jax.random.key(0), (16, 2)), jnp.float32(0.9)
    limits = (lambda D: D, thresholding.static())
    free, limited = (dataclasses.replace(system, threshold=limit).denoiser(params)(x, t) for limit in limits)
    assert jnp.abs(free).max() > 1
    np.testing.assert_allclose(limited, jnp.clip(free, -1, 1), atol=1e-6)


def test_evaluation_has_no_dropout_and_training_has():
    with_dropout, params = _system(network__dropout=0.5)
    without, _ = _system(network__dropout=0.0)
    batch, key = {"x": jax.random.normal(jax.random.key(0), (8, 2))}, jax.random.key(1)
    held_out = jax.jit(with_dropout.evaluate)(params, key, batch)["loss"]
    assert held_out.shape == (8,)
    np.testing.assert_array_equal(held_out, jax.jit(without.evaluate)(params, key, batch)["loss"])
    trained = jax.jit(lambda p: with_dropout.loss(p, key, batch, Train(jnp.int32(0), 1))[0])(params)
    assert jnp.abs(trained - held_out).min() > 1e-5


def test_images():
    system, params = _system(digits)
    drawn = system.sample(params, jax.random.key(0), 3)["samples"]
    assert drawn.shape == (3, 8, 8, 1)
    batch = {"x": jnp.zeros((2, 8, 8, 1))}
    assert system.evaluate(params, jax.random.key(0), batch)["loss"].shape == (2,)


@pytest.mark.parametrize("t_max", [1.0, 0.5, 0.1])
def test_samples_start_with_the_noise_of_the_first_time(t_max):
    system = build.system(toy(process__name="edm", sampling__grid__name="karras", sampling__grid__t_max=t_max))
    data = Gaussian(mean=jnp.zeros(2), covariance=0.25 * jnp.eye(2))
    system = dataclasses.replace(system, steps=40, denoise=False, solver=solvers.heun())
    D = data.denoiser(system.process)
    draw = jax.jit(lambda ids: system.solve(D, *jax.random.split(jax.random.key(0)), ids, None))
    assert float(draw(jnp.arange(2000)).std()) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(
    ("method", "solver", "wanted"),
    [
        (dict(name="mmps"), dict(name="ancestral"), 4),
        (dict(name="ddrm"), dict(name="renoised"), 4),
        (dict(name="daps", steps=3), dict(name="heun"), 24),
        (dict(name="ddnm"), dict(name="adaptive_ode"), None),
    ],
)
def test_the_evaluations_of_the_network_for_one_sample(method, solver, wanted):
    section = dict(name="measurement", operator=dict(name="average"), method=method)
    config = digits(guidance=ConfigDict(section), network__hidden=8, sampling__steps=4)
    config.solver = ConfigDict(solver)
    assert build.system(config).evaluations() == wanted
