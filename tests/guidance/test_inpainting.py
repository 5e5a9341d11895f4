"""Inpainting, RePaint and colourisation by replacement in a system: what is kept, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from benchmarks import priors
from diffusion_jax import data, solvers, systems
from diffusion_jax.config import build
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.guidance import editing, inpainting
from diffusion_jax.guidance.inpainting import grey_of
from diffusion_jax.solvers.sampling import sample
from tests.oracles import PROCESSES, Gaussian
from tests.runs import digits, source_of
from tests.systems.test_latent_diffusion import exact_stage

RNG = np.random.default_rng(0)
IMAGES = np.float32(RNG.uniform(-1, 1, (3, 8, 8, 1)))
MASK = np.where(RNG.uniform(size=(3, 8, 8, 1)) < 0.4, 1, -1).astype(np.float32)
COND = {"image": IMAGES, "mask": MASK}
CORRECTED = solvers.predictor_corrector(solvers.reverse_diffusion(), solvers.langevin_corrector())
# Of a system of digits: another editing, and other fields.
CASES = {
    "none": (editing.none(), {}),
    "replacement": (inpainting.replacement(), {}),
    "repaint": (inpainting.repaint(2, 3), {}),
    "repaint once": (inpainting.repaint(2, 1), {}),
    "denoised": (inpainting.replacement(), {"denoise": True}),
    "multistep": (inpainting.replacement(), {"solver": solvers.dpm_solver_pp(order=2)}),
    "corrected": (inpainting.replacement(), {"solver": CORRECTED}),
}
REPLACEMENT, REPAINT = (CASES[name][0] for name in ("replacement", "repaint"))


@pytest.fixture(scope="module")
def system():
    """A small network, whose last layer is not zero."""
    made = build.system(digits(network__hidden=8, sampling__steps=6))
    params = jax.jit(made.init)(jax.random.key(0))
    moved = lambda p: p + jnp.asarray(0.2 * RNG.standard_normal(p.shape), p.dtype)
    return made, jax.tree.map(moved, params)


@pytest.fixture(scope="module")
def drawn(system):
    """Samples of one of `CASES` under `cond`; every case is compiled once."""
    made, params = system
    draws = {
        name: jax.jit(dataclasses.replace(made, editing=editor, **fields).draw)
        for name, (editor, fields) in CASES.items()
    }
    return lambda name, cond=COND, ids=range(3): np.asarray(
        draws[name](params, jax.random.key(1), jnp.asarray(ids), cond)["samples"]
    )


@pytest.mark.parametrize(
    "name",
    [
        "replacement",
        "repaint",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("denoised", "multistep", "corrected")),
    ],
)
def test_known_pixels_are_those_of_the_image_exactly(drawn, name):
    x = drawn(name)
    np.testing.assert_array_equal(x[MASK < 0], IMAGES[MASK < 0])
    assert np.isfinite(x).all() and np.abs(x - IMAGES)[MASK >= 0].min() > 1e-6


def test_a_mask_of_everything_is_the_unconditional_sample_and_one_repeat_is_replacement(drawn):
    everything = COND | {"mask": np.ones_like(MASK)}
    np.testing.assert_array_equal(drawn("replacement", everything), drawn("none"))
    np.testing.assert_array_equal(drawn("repaint once"), drawn("replacement"))
    assert np.abs(drawn("repaint") - drawn("replacement")).max() > 1e-2


def test_a_row_depends_on_its_own_image_mask_and_key_only(drawn):
    """The same row among other rows: in another place, and next to other images."""
    others = {name: np.stack([-value[2], value[0], value[1]]) for name, value in COND.items()}
    np.testing.assert_allclose(drawn("repaint", others, [7, 0, 1])[2], drawn("repaint")[1], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_repaint_is_a_decibel_above_replacement_on_real_digits():
    """With the exact denoiser of the training digits, at about equal evaluations of it; PSNR of painted pixels."""
    train, test = (data.arrays(source_of(digits(), evaluation=evaluation)) for evaluation in (False, True))
    prior = priors.Prior(priors.exact_prior(train["x"]), {"network": {}}, train, test)
    image = np.repeat(test["x"][:100], 4, axis=0)
    mask = np.where(np.arange(8)[:, None, None] >= 4, 1, -1) * np.ones_like(image)

    def psnr(editor, steps):
        x = prior.drawn(editor, steps, {"image": image, "mask": mask})
        return 10 * np.log10(4 / np.square(x - image)[mask > 0].mean())

    assert psnr(inpainting.repaint(5, 5), 50) > psnr(inpainting.replacement(), 250) + 1


def rotation(weights) -> np.ndarray:
    """An orthonormal matrix whose first column is along `weights`."""
    columns = np.column_stack([weights, RNG.standard_normal((3, 2))])
    q, r = np.linalg.qr(columns)
    return np.float32(q * np.sign(np.diag(r)))


@pytest.mark.parametrize("weights", [(0.299, 0.587, 0.114), pytest.param((1.0, 1.0, 1.0), marks=pytest.mark.slow)])
def test_colorization_is_replacement_of_one_channel_in_rotated_colours(weights):
    """Both solve the same problem with the same noise, one of them in coordinates that begin with the grey value."""
    rows, process = 20, PROCESSES["discrete_vp"]
    turn = rotation(weights)
    covariance = np.array([[1.0, 0.6, 0.3], [0.6, 0.8, 0.2], [0.3, 0.2, 0.5]])
    colours = Gaussian(mean=jnp.zeros(3), covariance=jnp.asarray(covariance))
    turned = Gaussian(mean=jnp.zeros(3), covariance=jnp.asarray(turn.T @ covariance @ turn))
    image, at = jnp.asarray(RNG.uniform(-1, 1, (rows, 3)), jnp.float32), jnp.linspace(1, 0, 21)
    x_T = jnp.asarray(RNG.standard_normal((rows, 3)), jnp.float32)
    unit = tuple(np.array(weights) / np.linalg.norm(weights))
    first = lambda x, known: jnp.where(jnp.array([True, False, False]), known, x)
    noiseless = solvers.ddim()  # noise of the solver would have other coordinates

    def run(keep, D, x_T):
        solver = solvers.replaced(noiseless, image, keep)
        return jax.jit(lambda x: sample(solver, process, D, jax.random.key(3), x, at))(x_T)

    direct = run(grey_of(unit), colours.denoiser(process), x_T)
    by_rotation = run(lambda x, known: first(x, known @ turn), turned.denoiser(process), x_T @ turn)
    np.testing.assert_allclose(direct @ turn, by_rotation, rtol=1e-3, atol=1e-4)
    free = run(lambda x, known: x, colours.denoiser(process), x_T)
    assert np.abs(direct - free).max() > 0.1


def test_the_grey_value_of_a_coloured_picture_is_the_given_one():
    editor = inpainting.colorization()
    image, x = (jnp.asarray(RNG.uniform(-1, 1, (2, 4, 4, 3)), jnp.float32) for _ in range(2))
    grey = lambda x: np.asarray(x) @ np.float32([0.299, 0.587, 0.114])
    finished = editor.finish(x, {"image": image})
    np.testing.assert_allclose(grey(finished), grey(image), atol=1e-6)
    assert np.abs(grey(x) - grey(image)).max() > 0.1
    np.testing.assert_allclose(editor.finish(image, {"image": image}), image, atol=1e-6)


def test_in_latent_diffusion_a_latent_is_painted_if_any_of_its_pixels_is_and_known_pixels_are_exact(system):
    made, _ = system
    quiet = dataclasses.replace(made, editing=REPLACEMENT)
    turn, _ = np.linalg.qr(RNG.standard_normal((8, 8)))
    latent = systems.LatentDiffusion(diffusion=quiet, first_stage=exact_stage(turn))
    params = jax.jit(latent.init)(jax.random.key(0))
    x = latent.sample(params, jax.random.key(1), 3, COND)["samples"]
    np.testing.assert_array_equal(x[MASK < 0], IMAGES[MASK < 0])
    # What is painted is not encoded: other content there gives the same sample.
    other = np.where(MASK >= 0, -IMAGES, IMAGES)
    y = latent.sample(params, jax.random.key(1), 3, COND | {"image": other})["samples"]
    np.testing.assert_array_equal(x, y)
    coarse = systems.latent_diffusion.edited_conditions(
        REPLACEMENT, COND, lambda x: x.reshape(3, 4, 2, 4, 2).mean((2, 4))[..., None]
    )
    expected = np.where(MASK[..., 0].reshape(3, 4, 2, 4, 2).max((2, 4)) >= 0, 1, -1)[..., None]
    np.testing.assert_array_equal(coarse["mask"], expected)


def repaint(**options) -> ConfigDict:
    return ConfigDict(dict(name="repaint", mask="box") | options)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(editing=repaint(length=8, repeats=2), sampling__steps=8), ["length is 8", "config.sampling.steps=8"]),
        (dict(editing=repaint(length=0)), ["config.editing", "length is 0"]),
        (dict(editing=repaint(repeats=0)), ["config.editing", "repeats is 0"]),
        (
            dict(editing=repaint(length=2), sampling__steps=8, solver=ConfigDict(dict(name="dpm_solver_pp", order=2))),
            ["config.editing.name='repaint'", "config.solver.name='dpm_solver_pp'", "without memory"],
        ),
        (dict(editing=ConfigDict(dict(name="colorization"))), ["config.editing.name='colorization'", "(8, 8, 1)"]),
        (dict(editing=ConfigDict(dict(name="colorization", weights=(1.0, -1.0)))), ["weights=(1.0, -1.0)"]),
        (dict(editing=ConfigDict(dict(name="sdedit", repeats=0))), ["repeats=0"]),
    ],
)
def test_what_does_not_fit_is_refused_before_it_compiles(changes, words):
    with pytest.raises(ConfigError) as refusal:
        build.system(digits(**changes))
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_a_mask_of_another_size_is_refused(system):
    made, params = system
    painting = dataclasses.replace(made, editing=REPAINT)
    with pytest.raises(ValueError, match=r"'mask' has shape \(3, 4, 4, 1\); it must be \[number, 8, 8, 1\]"):
        painting.sample(params, jax.random.key(0), 3, COND | {"mask": MASK[:, ::2, ::2]})
