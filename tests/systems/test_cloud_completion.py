"""Completion of point clouds against closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import solvers
from diffusion_jax.losses import denoising_loss, times, weightings
from diffusion_jax.networks.conditions import NO_CONDITIONS, Condition, Conditions
from diffusion_jax.parameterizations import edm_preconditioning
from diffusion_jax.processes import VP
from diffusion_jax.solvers import grids
from diffusion_jax.systems import CloudCompletion, Diffusion
from diffusion_jax.systems.cloud_completion import first_along, half_space, unknown
from diffusion_jax.types import Spec

N, GIVEN = 4, 2
SHAPE = (N, 3)
KEY = jax.random.key(0)
KNOWN = Conditions({"known": Condition(Spec(SHAPE), np.nan, structure=True)})
PROCESS = VP()


def gaussian(params, x, c_noise, cond, *, key=None):
    """F of the exact denoiser of clouds whose points are one centre m ~ N(0, I) and noise of variance 1/4 around it.

    Given k points the others have the law of m | given: mean k g / (k + 1/4), and of each alone, with all the noisy
    ones as further measurements of m. Here it is that of one unknown point.
    """
    known = cond["known"]
    given = jnp.isfinite(known).all(-1, keepdims=True)
    g = jnp.sum(jnp.where(given, known, 0), 1, keepdims=True) / GIVEN
    mean, variance = GIVEN * g / (GIVEN + 0.25), 0.25 + 0.25 / (GIVEN + 0.25)
    t = c_noise.reshape(-1, 1, 1)
    alpha, sigma = PROCESS.alpha(t), PROCESS.sigma(t)
    gain = alpha * variance / (alpha**2 * variance + sigma**2)
    scale = jnp.sqrt(sigma**2 + (0.5 * alpha) ** 2)
    x_t = x * scale
    D = mean + gain * (x_t - alpha * mean)
    c_skip = alpha * 0.25 / scale**2
    return (D - c_skip * x_t) / (sigma * 0.5 / scale)


def system(apply, **fields) -> CloudCompletion:
    param = edm_preconditioning(0.5, label=lambda process, t: t)
    diffusion = Diffusion(
        init_network=lambda key: {"a": jnp.ones(())},
        apply=apply,
        process=PROCESS,
        param=param,
        loss_fn=denoising_loss(apply, param, PROCESS, weightings.edm(0.5), times.uniform(1e-2)),
        solver=solvers.heun(),
        grid=grids.uniform_log_snr(1e-3, 1.0),
        steps=20,
        shape=SHAPE,
        modality="cloud",
        network_conditions=KNOWN,
        project=unknown,
        **fields,
    )
    return CloudCompletion(diffusion=diffusion, operator=half_space(SHAPE, GIVEN))


def test_a_plane_across_a_direction_gives_the_first_points():
    x = jax.random.normal(KEY, (5, N, 3))
    direction = jax.random.normal(jax.random.key(1), (5, 3))
    given = first_along(x, direction, GIVEN)
    along = jnp.einsum("bnc,bc->bn", x, direction)
    assert (given.sum(1) == GIVEN).all()
    assert (jnp.where(given, along, -jnp.inf).max(1) < jnp.where(given, jnp.inf, along).min(1)).all()
    measured = half_space(SHAPE, GIVEN).measure(np.asarray(x))
    np.testing.assert_array_equal(measured[:2], half_space(SHAPE, GIVEN).measure(np.asarray(x[:2])))
    assert (np.isfinite(measured).all(-1).sum(1) == GIVEN).all()
    np.testing.assert_array_equal(measured[np.isfinite(measured)], np.asarray(x)[np.isfinite(measured)])
    with pytest.raises(ValueError, match="number is 4; it must be at least 1 and less than the 4 points"):
        half_space(SHAPE, N)


@pytest.mark.optimized
def test_given_points_stay_and_the_others_have_the_conditional_law():
    rows = 2000
    known = jnp.full((rows, N, 3), jnp.nan).at[:, :GIVEN].set(jnp.array([[1.0, 0.5, -1.0], [2.0, -0.5, 0.0]]))
    model = system(gaussian, batch_size=rows)
    x = model.sample(model.init(KEY), KEY, rows, {"known": np.asarray(known)})["samples"]
    np.testing.assert_array_equal(x[:, :GIVEN], known[:, :GIVEN])
    mean, variance = 2 * np.array([1.5, 0.0, -0.5]) / 2.25, 0.25 + 0.25 / 2.25
    drawn = x[:, GIVEN:]
    np.testing.assert_allclose(drawn.mean((0, 1)), mean, atol=4 * np.sqrt(variance / rows))
    np.testing.assert_allclose(drawn.var((0, 1)), variance, rtol=0.12)


def test_the_loss_sees_nothing_of_what_is_said_of_given_points():
    def loud(params, x, c_noise, cond, *, key=None):
        given = jnp.isfinite(cond["known"])
        return gaussian(params, x, c_noise, cond) + jnp.where(given, 100.0, 0)

    batch = {"x": jax.random.normal(KEY, (8, N, 3))}
    quiet, noisy = system(gaussian), system(loud)
    params = quiet.init(KEY)
    losses = [model.loss(params, KEY, batch, None)[0] for model in (quiet, noisy)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    off = system(lambda *args, **options: gaussian(*args, **options) + 1.0)
    assert np.abs(off.loss(params, KEY, batch, None)[0] - losses[0]).min() > 1e-3


def test_it_needs_a_network_that_reads_what_is_given():
    model = system(gaussian)
    assert set(model.batch) == {"x"} and model.conditions["known"].operator is model.operator
    with pytest.raises(ValueError, match="must read the condition 'known'"):
        CloudCompletion(
            diffusion=dataclasses.replace(model.diffusion, network_conditions=NO_CONDITIONS), operator=model.operator
        )
