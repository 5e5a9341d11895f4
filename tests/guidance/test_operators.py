"""Measurement operators: adjoints, pseudo-inverses, singular values, known small cases, and what is refused."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config import names
from diffusion_jax.config.sections import ConfigError, construct
from diffusion_jax.guidance import filters, jpeg, scans
from diffusion_jax.guidance.operators import Operator, compose, half, pinv_error
from diffusion_jax.guidance.scans import matrix_of

GREY, RGB = (8, 8, 1), (8, 8, 3)
CASES = {
    "box": (RGB, dict(size=3, margin=1)),
    "random": (RGB, dict(missing=(0.3, 0.7))),
    "half": (GREY, dict(side="left")),
    "average": (RGB, dict(factor=2)),
    "bicubic": (RGB, dict(factor=2)),
    "gaussian_blur": (GREY, dict(size=5, std=0.7)),
    "motion_blur": (GREY, dict(size=5, seed=2)),
    "grey": (RGB, dict()),
    "compressed": (GREY, dict(num=16)),
    "tomography": (RGB, dict(angles=5)),
    "k_space": (GREY, dict(acceleration=2)),
    "low_pass": ((32, 2), dict(keep=0.4)),
}
FAST = ("random", "motion_blur", "tomography")
NONLINEAR = {"phase": (GREY, dict()), "jpeg": (GREY, dict(quality=20))}


def made(name: str, noise: float = 0.0) -> Operator:
    shape, section = (CASES | NONLINEAR)[name]
    return construct(names.OPERATORS, "operator", dict(name=name, noise=noise, **section), shape=shape)


def mask_of(operator: Operator, num: int = 1):
    rngs = [np.random.default_rng(i) for i in range(num)]
    return jnp.stack([jnp.asarray(operator.draw(rng)) for rng in rngs]) if operator.draw else None


def examples(operator: Operator, num: int = 2):
    return jax.random.uniform(jax.random.key(0), (num, *operator.shape), minval=-1)


def test_every_operator_is_tested():
    assert names.OPERATORS.keys() == CASES.keys() | NONLINEAR.keys()


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in CASES])
def test_a_linear_operator_its_adjoint_pseudo_inverse_and_singular_values(name):
    """<A x, v> = <x, A^T v>; A A^+ A = A; A^+ A symmetric; f(A A^T) as by an eigendecomposition of the matrix."""
    operator = made(name)
    x, mask = examples(operator), mask_of(operator, 2)
    y = operator(x, mask)
    v = jax.random.normal(jax.random.key(1), y.shape)
    np.testing.assert_allclose(jnp.vdot(y, v), jnp.vdot(x, operator.transpose(v, mask)), rtol=1e-4, atol=1e-4)
    projected = operator.pinv(y, mask)
    np.testing.assert_allclose(operator(projected, mask), y, atol=2e-3)
    w = jax.random.normal(jax.random.key(2), x.shape)
    there = jnp.vdot(operator.pinv(operator(w, mask), mask), x)
    np.testing.assert_allclose(jnp.vdot(w, projected), there, rtol=1e-3, atol=1e-2)
    matrix = np.asarray(matrix_of(operator, None if mask is None else mask[:1]), np.float64)
    within = (matrix @ np.asarray(x[0], np.float64).ravel()).reshape(1, *y.shape[1:])
    f = lambda e: 1 / (0.3 + 0.7 * e)
    solved = np.linalg.solve(0.3 * np.eye(len(matrix)) + 0.7 * matrix @ matrix.T, within.ravel())
    gram = operator.gram(jnp.asarray(within, jnp.float32), None if mask is None else mask[:1], f)
    np.testing.assert_allclose(np.ravel(gram), solved, atol=1e-3)
    assert operator.entry == (*y.shape[1:-1], y.shape[-1] + (mask is not None))


@pytest.mark.parametrize("name", ["random", *(pytest.param(n, marks=pytest.mark.slow) for n in ("phase", "jpeg"))])
def test_measurements_of_a_row_do_not_depend_on_the_others(name):
    operator = made(name, noise=0.0 if name == "jpeg" else 0.1)
    x = np.asarray(examples(operator, 4))
    whole, part = operator.measure(x), operator.measure(x[:2])
    np.testing.assert_allclose(whole[:2], part, atol=1e-5)
    assert whole.shape == (4, *operator.entry)


def test_noise_has_its_standard_deviation_where_something_is_measured():
    operator = construct(names.OPERATORS, "operator", dict(name="half", noise=0.25), shape=(64, 64, 1))
    y, mask = operator.split(jnp.asarray(operator.measure(np.zeros((1, 64, 64, 1), np.float32))))
    np.testing.assert_allclose(jnp.std(y[0, :32]), 0.25, rtol=0.1)
    assert not y[0, 32:].any() and not mask[0, 32:].any() and mask[0, :32].all()


def test_known_small_cases():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1) / 16
    np.testing.assert_allclose(filters.average((4, 4, 1))(x)[0, ..., 0] * 16, [[2.5, 4.5], [10.5, 12.5]])
    grey = filters.grey((1, 1, 3))
    np.testing.assert_allclose(grey(jnp.array([[[[1.0, 0, -1]]]])).item(), 0.299 - 0.114, rtol=1e-6)
    for factor in (2, 3, 4):  # constants, and straight lines away from the border, stay
        matrix = filters.cubic_matrix(8 * factor, factor)
        np.testing.assert_allclose(matrix.sum(1), 1)
        middles = (np.arange(8) + 0.5) * factor - 0.5
        np.testing.assert_allclose((matrix @ np.arange(8 * factor))[2:-2], middles[2:-2])
    kernel = filters.path_kernel(9, 0.5, 0)
    assert kernel.min() >= 0 and np.isclose(kernel.sum(), 1) and (kernel > 0).sum() > 8
    straight = filters.path_kernel(9, 0.0, 0)
    assert np.linalg.matrix_rank(np.cov(np.argwhere(straight > 1e-3).T), tol=1.0) == 1
    blur = filters.gaussian_blur((9, 9, 1), 5, 1.0, "circular")
    impulse = blur(jnp.zeros((1, 9, 9, 1)).at[0, 0, 4, 0].set(1.0))[0, ..., 0]
    np.testing.assert_allclose(impulse[0, 4] / impulse[1, 4], np.exp(0.5), rtol=1e-5)
    np.testing.assert_allclose(impulse[8, 4], impulse[1, 4], rtol=1e-6)
    y = scans.walsh_hadamard(jnp.eye(4))
    np.testing.assert_allclose(2 * y, [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], atol=1e-6)


@pytest.mark.slow
def test_a_disc_has_the_chords_of_geometry():
    """The integral along a ray at distance p from the middle of a disc of radius R is 2 sqrt(R^2 - p^2)."""
    side, radius = 32, 10.0
    fine = (np.arange(8 * side) + 0.5) / 8 - side / 2
    disc = (fine[:, None] ** 2 + fine**2 < radius**2).reshape(side, 8, side, 8).mean((1, 3))
    y = scans.tomography((side, side, 1), angles=6)(jnp.asarray(disc[None, ..., None], jnp.float32))
    p = np.arange(side) - (side - 1) / 2
    chord = 2 * np.sqrt(np.maximum(radius**2 - p**2, 0))
    assert np.abs(side * np.asarray(y[0, ..., 0]) - chord).mean() < 0.02 * chord.max()
    assert np.abs(side * np.asarray(y[0, ..., 0]) - chord)[:, np.abs(p) < 8].max() < 0.05 * chord.max()


@pytest.mark.slow
def test_k_space_of_all_rows_keeps_length_and_zero_filling_inverts_it():
    operator = scans.k_space((8, 8, 1), acceleration=1)
    x = examples(operator)
    np.testing.assert_allclose(jnp.linalg.norm(operator(x)), jnp.linalg.norm(x), rtol=1e-5)
    np.testing.assert_allclose(operator.pinv(operator(x)), x, atol=1e-5)
    fewer = scans.measured_rows(32, 4, 0.1, 0)
    assert set(fewer) == {-k % 32 for k in fewer} and 8 <= len(fewer) <= 10 and 0 in fewer


def test_phase_does_not_see_rotations_and_shifts():
    operator = scans.phase((8, 8, 1), pad=4)
    x = examples(operator, 1)
    inner = jnp.zeros_like(x).at[:, 2:6, 2:6].set(x[:, 2:6, 2:6])
    y = operator(inner)
    np.testing.assert_allclose(operator(inner[:, ::-1, ::-1]), y, atol=1e-4)
    np.testing.assert_allclose(operator(jnp.roll(inner, (2, -1), (1, 2))), y, atol=1e-4)
    assert jnp.abs(operator(inner[:, ::-1]) - y).max() > 0.1


def test_jpeg_is_what_pillow_decodes_and_idempotent():
    """Pillow rounds its coefficients and its pixels, so that single levels differ."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(60, 200, (16, 16)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=30)
    decoded = np.asarray(Image.open(file), np.float32)
    operator = jpeg.jpeg((16, 16, 1), quality=30)
    y = operator(jnp.asarray(pixels[None, ..., None] / 127.5 - 1, jnp.float32))
    assert np.abs((np.asarray(y)[0, ..., 0] + 1) * 127.5 - decoded).max() < 2
    np.testing.assert_allclose(operator(y), y, atol=1e-4)
    colour = jpeg.jpeg((8, 8, 3), quality=15)
    once = colour(examples(colour))
    np.testing.assert_allclose(colour(once), once, atol=1e-4)
    assert jnp.abs(once - examples(colour)).max() > 0.1


def test_a_composition_has_a_pseudo_inverse_only_if_the_product_is_one():
    shape = (8, 8, 3)
    good = compose(filters.average((8, 8, 1)), filters.grey(shape))
    assert good.has_pinv and pinv_error(good) < 1e-5 and good.out == (4, 4, 1)
    # Half of the frequencies: measured redundantly, so that zero filling of a half is not the least of all.
    k_space = scans.k_space((8, 8, 1), acceleration=2)
    bad = compose(half(k_space.out, "left"), k_space)
    assert not bad.has_pinv and bad.linear
    hidden = compose(half((4, 4, 1), noise=0.1), filters.average(GREY))
    assert hidden.has_pinv and hidden.entry == (4, 4, 2) and hidden.noise == 0.1
    with pytest.raises(ValueError, match="the first operator of a composition has a mask"):
        compose(filters.average(GREY), half(GREY))


@pytest.mark.parametrize(
    ("section", "shape", "words"),
    [
        (dict(name="average", factor=3), GREY, "factor=3 must divide the sides of images, which are 8 x 8"),
        (dict(name="average", noise=-0.1), GREY, "noise is -0.1; it must be at least 0, in the units of x"),
        (dict(name="average"), (2,), r"it measures images; examples have the shape \(2,\)"),
        (dict(name="box", size=9), GREY, "size=9 with margin=-1 does not fit into images of 8 x 8"),
        (dict(name="random", missing=(0.5, 1.0)), GREY, r"missing is \(0.5, 1.0\)"),
        (dict(name="half", side="top"), GREY, "side is 'top'; it must be one of lower, upper, left, right"),
        (dict(name="grey"), GREY, "weights='luma' are those of red, green and blue; images have 1 channels"),
        (dict(name="gaussian_blur", size=4), GREY, "size is 4; it must be odd"),
        (dict(name="motion_blur", intensity=2.0), GREY, "intensity is 2.0"),
        (dict(name="compressed", num=65), GREY, r"num is 65; it must be in 1\.\.64"),
        (dict(name="compressed", rows="hadamard"), (6, 6, 1), "which is no power of 2"),
        (dict(name="tomography"), (8, 4, 1), "square images of at most 4096 pixels; they are 8 x 4"),
        (dict(name="k_space", acceleration=9), GREY, r"acceleration is 9; it must be in 1\.\.8"),
        (dict(name="phase", pad=-2), GREY, "pad is -2"),
        (dict(name="jpeg", quality=0), GREY, "quality is 0"),
        (dict(name="jpeg", noise=0.1), GREY, "noise is 0.1; it must be 0"),
        (dict(name="jpeg"), (12, 8, 1), "8 must divide the sides"),
        (dict(name="blur"), GREY, "operator.name='blur' is unknown"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(section, shape, words):
    with pytest.raises(ConfigError, match=words):
        construct(names.OPERATORS, "guidance.operator", section, shape=shape)
