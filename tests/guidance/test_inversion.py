"""Inversion and interpolation: two Gaussian classes, under which encoding and decoding are closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax import parameterizations, solvers, systems
from diffusion_jax.config import build
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.guidance import inversion, steering
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.processes import VP
from diffusion_jax.solvers import grids
from diffusion_jax.solvers.interpolation import lerp, slerp
from tests.oracles import Gaussian
from tests.runs import digits

PROCESS, T_MIN = VP(), 1e-2
MEANS = np.float32([[1.0, -0.5, 0.3], [-1.0, 0.8, 0.1], [0.0, 0.0, 0.0]])  # of two classes, and without a class
COVARIANCE = jnp.array([[0.5, 0.3, 0.0], [0.3, 0.4, 0.1], [0.0, 0.1, 0.2]])
X = np.float32(np.random.default_rng(0).standard_normal((5, 3)))


def apply(params, x, c_noise, cond, *, key=None):
    """The exact denoiser of the class of each row."""
    mean = jnp.asarray(MEANS)[cond["label"]].reshape(-1, 3)
    centred = Gaussian(mean=jnp.zeros(3), covariance=COVARIANCE).denoiser(PROCESS)
    t = c_noise / 999
    return mean + centred(x - PROCESS.alpha(t)[:, None] * mean, t)


def system(editor, solver, steps):
    return systems.Diffusion(
        init_network=lambda key: {},
        apply=apply,
        process=PROCESS,
        param=parameterizations.x0_prediction(),
        loss_fn=lambda *arrays: (jnp.zeros(1), {}),
        solver=solver,
        grid=grids.uniform_log_snr(t_min=T_MIN),
        steps=steps,
        shape=(3,),
        network_conditions=Conditions(num_classes=2),
        editing=editor,
    )


def edited(source, target, solver, steps, editor=None):
    cond = {"image": X, "label": np.full(5, target), "source_label": np.full(5, source)}
    made = system(editor or inversion.inversion(), solver, steps)
    return made.sample({"network": {}}, jax.random.key(0), 5, cond)["samples"]


def test_the_conditions_are_those_of_the_network_twice_and_the_image():
    made = system(inversion.inversion(), solvers.ddim(), 4)
    assert set(made.conditions) == {"label", "image", "source_label"}
    assert made.conditions["source_label"].spec == made.conditions["label"].spec
    assert not made.conditions["source_label"].separator


def test_under_another_class_an_image_moves_by_the_difference_of_the_means():
    """The flow keeps standardised coordinates, here those around the mean of a class: the style of the image."""
    a = float(PROCESS.alpha(jnp.float32(T_MIN)))
    moved = edited(0, 1, solvers.dpm_solver(order=2), 40)
    np.testing.assert_allclose(moved, a * (X - MEANS[0] + MEANS[1]), atol=0.01)
    assert np.abs(edited(1, 1, solvers.dpm_solver(order=2), 40) - moved).max() > 1


@pytest.mark.slow
def test_reconstruction_has_the_order_of_the_solver():
    a = float(PROCESS.alpha(jnp.float32(T_MIN)))
    error = lambda solver, steps: np.abs(edited(0, 0, solver, steps) - a * X).max()
    first, second = solvers.ddim(), solvers.dpm_solver(order=2)
    assert 1.6 < error(first, 20) / error(first, 40) < 2.6
    assert error(second, 20) / error(second, 40) > 3.2 and error(second, 20) < error(first, 20) / 4


@pytest.mark.slow
def test_a_part_of_the_way_keeps_more_of_the_image():
    """Encoded under one class to the time t only and decoded under another, it moves less than by the whole way."""
    solver, whole = solvers.dpm_solver(order=2), np.abs(MEANS[1] - MEANS[0]).sum()
    shift = lambda strength: np.abs(edited(0, 1, solver, 40, inversion.inversion(strength)) - X).sum(1).mean()
    assert shift(0.3) < shift(0.6) < shift(1.0) < 1.05 * whole and shift(0.3) < 0.7 * whole


@pytest.mark.parametrize("path", ["slerp", pytest.param("lerp", marks=pytest.mark.slow)])
def test_interpolation_is_that_of_the_latents_of_the_exact_flow(path):
    class_0 = Gaussian(mean=jnp.asarray(MEANS[0]), covariance=COVARIANCE)
    a, t, end = PROCESS.alpha(jnp.float32(T_MIN)), jnp.float32(T_MIN), jnp.float32(1)
    weights, other = jnp.array([0, 0.25, 0.5, 1, 0.5]), X[::-1].copy()
    other[4] = X[4]  # equal images: the path stays there
    flow = lambda x, s, t: class_0.flow(PROCESS, x, s, t)
    z, z_other = flow(a * X, t, end), flow(a * other, t, end)
    curve = {"slerp": slerp, "lerp": lerp}[path]
    exact = jnp.stack([flow(curve(z[i : i + 1], z_other[i : i + 1], w), end, t)[0] for i, w in enumerate(weights)])
    made = system(inversion.between(path), solvers.dpm_solver(order=2), 40)
    cond = {"image": X, "other": other, "weight": weights, "label": np.zeros(5, int)}
    x = made.sample({"network": {}}, jax.random.key(0), 5, cond)["samples"]
    np.testing.assert_allclose(x, exact, atol=0.015)
    np.testing.assert_allclose(x[[0, 4]], a * X[[0, 4]], atol=0.015)
    np.testing.assert_allclose(x[3], a * other[3], atol=0.015)


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(editing=dict(name="inversion"), solver=dict(name="ancestral")), ["'ancestral'", "probability-flow ODE"]),
        (dict(editing=dict(name="between"), solver=dict(name="ddim", eta=0.5)), ["'between'", "probability-flow ODE"]),
        (dict(editing=dict(name="between", path="line")), ["path is 'line'", "slerp or lerp"]),
        (dict(editing=dict(name="inversion", strength=2.0)), ["strength=2.0"]),
        (
            dict(
                editing=dict(name="inversion"),
                process=dict(name="discrete_vp"),
                times=dict(name="discrete", num_steps=1000),
                sampling__grid=dict(name="discrete"),
            ),
            ["config.editing.name='inversion'", "sigma > 0"],
        ),
    ],
)
def test_what_does_not_invert_is_refused(changes, words):
    changes = {name: ConfigDict(section) for name, section in changes.items()}
    with pytest.raises(ConfigError) as refusal:
        build.system(digits(**changes))
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_unguided_encoding_does_not_depend_on_the_guidance_of_decoding():
    """The latents, seen with a solver that decodes nothing: one whose steps to less noise change nothing."""
    inverting = solvers.ddim()

    def step(process, D, keys, x, t, s, carry):
        there, carry = inverting.step(process, D, keys, x, t, s, carry)
        return jnp.where(s > t, there, x), carry

    cond = {"image": X, "label": np.ones(5, int), "source_label": np.zeros(5, int)}
    made = system(inversion.inversion(), inverting._replace(step=step), 100)
    guided = dataclasses.replace(made, guidance=steering.classifier_free(scale=3.0))
    run = lambda made: made.sample({"network": {}}, jax.random.key(0), 5, cond)["samples"]
    np.testing.assert_allclose(run(guided), run(made), rtol=1e-6)
    exact = Gaussian(mean=jnp.asarray(MEANS[0]), covariance=COVARIANCE).flow(
        PROCESS, PROCESS.alpha(jnp.float32(T_MIN)) * X, jnp.float32(T_MIN), jnp.float32(1)
    )
    assert np.abs(run(made) - exact).max() < 0.05 * np.abs(exact).max()  # order 1
