"""Editing: SDEdit starts from a noised image, in every system of images, and is refused where it cannot."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax import solvers, systems
from diffusion_jax.config import build
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.guidance import editing, inversion
from diffusion_jax.processes import VP, row_keys, row_normal
from diffusion_jax.solvers import grids
from diffusion_jax.solvers.sampling import sample
from tests.oracles import PROCESSES, Gaussian
from tests.runs import digits, toy
from tests.systems.test_latent_diffusion import exact_stage

SDEDIT = ConfigDict(dict(name="sdedit", strength=0.5))
identity = lambda x, t: x
IMAGES = np.float32(np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 1)))


@pytest.fixture(scope="module")
def pixels():
    """A model of the digits whose network gives zeros, so that a sample shows what it started from."""
    system = build.system(digits(network__hidden=8, editing=SDEDIT, sampling__steps=8))
    return system, jax.jit(system.init)(jax.random.key(0))


def test_the_start_is_the_image_with_the_noise_of_a_later_time():
    process, keys, times = VP(), jax.random.split(jax.random.key(0), 3), jnp.linspace(1, 0, 11)
    x, left = editing.sdedit(0.35).start(process, identity, keys, jnp.zeros_like(IMAGES), times, {"image": IMAGES})
    np.testing.assert_allclose(left, times[7:])
    noise = row_normal(keys, jnp.zeros_like(IMAGES))
    np.testing.assert_allclose(x, process.alpha(times[7]) * IMAGES + process.sigma(times[7]) * noise, rtol=1e-5)
    _, whole = editing.sdedit(1.0).start(process, identity, keys, jnp.zeros_like(IMAGES), times, {"image": IMAGES})
    np.testing.assert_array_equal(whole, times)


def test_a_diffusion_system_starts_from_the_image(pixels):
    system, params = pixels
    key = jax.random.key(1)
    drawn = system.sample(params, key, 3, {"image": IMAGES})
    np.testing.assert_array_equal(drawn["image"], IMAGES)
    prior_key, noise_key = jax.random.split(key)
    times = system.grid(system.process, 8)[4:]
    noise = row_normal(row_keys(prior_key, jnp.arange(3)), jnp.asarray(IMAGES))
    x = system.process.alpha(times[0]) * IMAGES + system.process.sigma(times[0]) * noise
    by_hand = sample(system.solver, system.process, system.denoiser(params), noise_key, x, times)
    np.testing.assert_allclose(drawn["samples"], by_hand, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "editor",
    [
        editing.sdedit(0.5),
        pytest.param(inversion.inversion(), marks=pytest.mark.slow),
        pytest.param(inversion.between("lerp"), marks=pytest.mark.slow),
    ],
    ids=["sdedit", "inversion", "between"],
)
def test_latent_diffusion_starts_from_the_latents_of_the_image(pixels, editor):
    """With a first stage that turns pixels, pixels are turned back; the noise is that of the latents."""
    system, _ = pixels
    fields = dict(solver=solvers.ddim(), grid=grids.uniform(t_min=0.01), editing=editor)
    quiet = dataclasses.replace(system, **fields, apply=lambda params, x, *rest, key=None: 0 * x)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((8, 8)))
    latent = systems.LatentDiffusion(diffusion=quiet, first_stage=exact_stage(rotation))
    params = jax.jit(latent.init)(jax.random.key(0))
    turn = lambda x: np.einsum("bhwc,hk->bkwc", x, rotation).astype(np.float32)
    cond = {"image": IMAGES} | ({"other": IMAGES[::-1].copy(), "weight": np.float32([0, 0.5, 1])})
    cond = {name: value for name, value in cond.items() if name in latent.conditions}
    drawn = latent.sample(params, jax.random.key(1), 3, cond)
    turned = {name: value if name == "weight" else turn(value) for name, value in cond.items()}
    latents = quiet.sample(params, jax.random.key(1), 3, turned)
    np.testing.assert_allclose(turn(drawn["samples"]), latents["samples"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (lambda: toy(editing=SDEDIT), ["config.editing.name='sdedit'", "config.data.name='toy'"]),
        (
            lambda: digits(editing=SDEDIT, sampling__steps=1),
            ["config.editing.strength=0.5", "config.sampling.steps=1", "none of the 1 steps"],
        ),
        (
            lambda: digits(editing=ConfigDict(dict(name="sdedit", strength=1.5))),
            ["config.editing", "strength=1.5 must be in [0, 1]"],
        ),
        (lambda: digits(editing=ConfigDict(dict(name="sdedt"))), ["config.editing.name='sdedt'", "'sdedit'"]),
    ],
)
def test_what_cannot_be_edited_is_refused(config, words):
    with pytest.raises(ConfigError) as refusal:
        build.system(config())
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


GAUSSIAN, LINEAR = Gaussian(mean=jnp.zeros(1), covariance=jnp.array([[2.0]])), PROCESSES["discrete_vp"]


def edited(editor, solver, given, rows: int) -> np.ndarray:
    """`rows` edits of the number `given` under the Gaussian prior of variance 2, on the 1000 steps of DDPM."""
    cond = {"image": jnp.full((rows, 1), given), "mask": jnp.ones((rows, 1))}
    times, D = jnp.linspace(1, 0, 1001), GAUSSIAN.denoiser(LINEAR)

    @jax.jit
    def run(key):
        prior_key, noise_key = jax.random.split(key)
        keys = row_keys(prior_key, jnp.arange(rows))
        x, at = editor.start(LINEAR, lambda x, times: x, keys, jnp.zeros((rows, 1)), times, cond)
        return editor.finish(sample(editor.around(solver, cond), LINEAR, D, noise_key, x, at), cond)

    return np.asarray(run(jax.random.key(0)), np.float64)


@pytest.mark.few(1)
@pytest.mark.parametrize(("strength", "repeats"), [(0.3, 1), (0.5, 1), (0.3, 3)])
def test_the_law_of_sdedit_is_the_closed_form(strength, repeats):
    """Noising is x -> a u + s z; denoising draws from the posterior N(g x, v s^2 / (a^2 v + s^2)), g its gain."""
    rows, u, v = 20_000, 1.5, 2.0
    a, s = (float(f(jnp.float32(strength))) for f in (LINEAR.alpha, LINEAR.sigma))
    gain, posterior = a * v / (a**2 * v + s**2), v * s**2 / (a**2 * v + s**2)
    mean, variance = u, 0.0
    for _ in range(repeats):
        mean, variance = gain * a * mean, posterior + gain**2 * (a**2 * variance + s**2)
    x = edited(editing.sdedit(strength, repeats), solvers.ancestral(), u, rows)
    assert abs(x.mean() - mean) < 4 * np.sqrt(variance / rows) + 0.005
    assert abs(x.var() / variance - 1) < 4 * np.sqrt(2 / rows) + 0.01  # the solver's own error at 1000 steps
    unrepeated = u * gain * a
    assert repeats == 1 or abs(x.mean() - unrepeated) > 0.1


@pytest.mark.parametrize("strength", [0.3, 0.5])
def test_the_law_of_sdedit_by_the_ode_is_the_closed_form(strength):
    rows, u, v = 20_000, 1.5, 2.0
    a, s = (float(f(jnp.float32(strength))) for f in (LINEAR.alpha, LINEAR.sigma))
    k = np.sqrt(v / (a**2 * v + s**2))
    x = edited(editing.sdedit(strength), solvers.ddim(), u, rows)
    assert abs(x.mean() - k * a * u) < 4 * k * s / np.sqrt(rows) + 0.005
    assert abs(x.std() / (k * s) - 1) < 4 / np.sqrt(2 * rows) + 0.005


def test_a_region_keeps_the_rest_of_the_image_exactly(pixels):
    system, params = pixels
    mask = np.float32(np.where(np.arange(8)[:, None, None] < 3, 1, -1)) * np.ones((3, 8, 8, 1), np.float32)
    whole = np.ones_like(mask)
    sample_of = lambda editor, mask: dataclasses.replace(system, editing=editor).sample(
        params, jax.random.key(1), 3, {"image": IMAGES, "mask": mask}
    )["samples"]
    region = sample_of(editing.sdedit(0.5, region=True), mask)
    np.testing.assert_array_equal(region[:, 3:], IMAGES[:, 3:])
    assert not np.allclose(region[:, :3], IMAGES[:, :3], atol=0.05)
    plain = system.sample(params, jax.random.key(1), 3, {"image": IMAGES})["samples"]
    np.testing.assert_array_equal(sample_of(editing.sdedit(0.5, mask="box"), whole), plain)
