"""Methods that change the solver (DDRM, DAPS, MCG) against closed forms of Gaussian data, with their biases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax import solvers
from diffusion_jax.config import build
from diffusion_jax.config.parts import Parts
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.guidance import scans
from diffusion_jax.guidance.filters import average
from diffusion_jax.guidance.measurement import METHODS, measured
from diffusion_jax.guidance.operators import Operator, isotropic
from diffusion_jax.processes import prior, row_keys, row_normal
from diffusion_jax.solvers import grids
from diffusion_jax.solvers.replacement import replaced
from diffusion_jax.solvers.sampling import sample
from diffusion_jax.types import Spec
from tests.oracles import PROCESSES, Gaussian
from tests.runs import digits

SLOW = pytest.mark.slow
PROCESS = PROCESSES["discrete_vp"]
PAIR = Gaussian(mean=jnp.zeros(2), covariance=jnp.array([[1.0, 0.9], [0.9, 1.0]]))
WHITE = Gaussian(mean=jnp.zeros(2), covariance=jnp.eye(2))
first = lambda noise=0.0: Operator(shape=(2,), apply=lambda x, _: x[:, :1], gram=isotropic(1.0), noise=noise)
whole = lambda noise: Operator(shape=(2,), apply=lambda x, _: x, gram=isotropic(1.0), noise=noise)


def drawn(data, operator, y, method, solver, steps, num=8000, process=PROCESS):
    """Samples of the exact denoiser under the same y in every row."""
    times = grids.discrete("linspace")(process, steps) if process is PROCESS else steps
    rows = jnp.broadcast_to(jnp.asarray(y, jnp.float32), (num, len(y)))

    @jax.jit
    def run():
        D = measured(data.denoiser(process), operator, rows, method, process, times)
        x_T = prior(process, jax.random.key(0), (num, *operator.shape), t=times[0])
        return sample(method.around(solver, operator, rows, None), process, D, jax.random.key(1), x_T, times)

    return np.asarray(run())


@pytest.mark.parametrize(
    ("steps", "mean", "deviation"),
    [(20, 0.780, 0.268), (100, 0.846, 0.215), pytest.param(1000, 0.939, 0.130, marks=SLOW)],
)
def test_ddrm_drifts_from_the_posterior_with_the_number_of_steps(steps, mean, deviation):
    """Prior N(0, 1), q = 0.5, y = (1, -0.5): exact mean 0.8 y, standard deviation 0.447."""
    num = 8000 if steps < 1000 else 4000
    x = drawn(WHITE, whole(0.5), [1.0, -0.5], METHODS["ddrm"](), solvers.renoised(0.85), steps, num)
    np.testing.assert_allclose(x.mean(0), [mean, -0.5 * mean], atol=1.2e-2)
    np.testing.assert_allclose(x.std(0), deviation, atol=8e-3)


def test_ddrm_without_noise_gives_back_what_was_measured():
    """A = I: y exactly. Of a pair: the solver's own law for what was not measured, which has a part of y's shift."""
    x = drawn(WHITE, whole(0.0), [1.0, -0.5], METHODS["ddrm"](), solvers.renoised(0.85), 5, num=4)
    np.testing.assert_allclose(x, [[1.0, -0.5]] * 4, atol=1e-6)
    x = drawn(PAIR, first(), [1.0], METHODS["ddrm"](), solvers.renoised(0.85), 50)
    np.testing.assert_allclose(x[:, 0], 1, atol=1e-6)
    assert 0.6 < x[:, 1].mean() < 0.9


@pytest.mark.parametrize("operator", [average((4, 4, 1), 2, 0.3), scans.tomography((4, 4, 1), 3, 0.1)])
def test_a_step_of_ddrm_in_the_singular_basis(operator):
    """arXiv:2201.11793, eq. 8, by the singular value decomposition of the matrix, one direction at a time."""
    process, t, s, eta, eta_b = PROCESSES["vp"], jnp.float32(0.4), jnp.float32(0.3), 0.7, 0.9
    x, y = jax.random.normal(jax.random.key(0), (2, 4, 4, 1)), operator.measure(np.ones((2, 4, 4, 1), np.float32))
    D, keys = lambda x, t: jnp.tanh(x), jax.random.split(jax.random.key(1), 2)
    inner = solvers.renoised(eta)
    made = METHODS["ddrm"](eta, eta_b).around(inner, operator, jnp.asarray(y), None)
    step = made.step(process, D, keys, x, t, s, ())[0].reshape(2, 16)
    matrix = np.asarray(scans.matrix_of(operator), np.float64)
    left, values, right = np.linalg.svd(matrix)
    noise = np.asarray(row_normal(row_keys(keys, 2**31 - 3), x)).reshape(2, 16) @ right.T
    predicted, seen = np.asarray(D(x, t)).reshape(2, 16) @ right.T, y.reshape(2, -1) @ left
    alpha, r = float(process.alpha(s)), float(process.sigma(s) / process.alpha(s))
    found, branches = np.asarray(step) @ right.T, set()
    for i, value in enumerate(values):
        if value < 1e-3 * values[0]:
            continue
        q, y_i = operator.noise / value, seen[:, i] / value
        branches.add(bool(r < q))
        if r < q:
            wanted = predicted[:, i] + np.sqrt(1 - eta**2) * r / q * (y_i - predicted[:, i]) + eta * r * noise[:, i]
        else:
            wanted = (1 - eta_b) * predicted[:, i] + eta_b * y_i + np.sqrt(r**2 - (eta_b * q) ** 2) * noise[:, i]
        np.testing.assert_allclose(found[:, i], alpha * wanted, atol=2e-3)
    assert branches
    unseen = right[np.count_nonzero(values >= 1e-3 * values[0]) :]
    other = np.asarray(inner.step(process, D, keys, x, t, s, ())[0]).reshape(2, 16)
    np.testing.assert_allclose(np.asarray(step) @ unseen.T, other @ unseen.T, atol=1e-4)


def law_of_daps(v, q, levels, y):
    """Mean and standard deviation of DAPS for N(0, v) and the exact solution of the ODE, by one recursion."""
    mean, variance = 0.0, levels[0] ** 2
    for s, after in zip(levels, [*levels[1:], 0.0], strict=True):
        carried, gain = np.sqrt(v / (v + s**2)), s**2 / (s**2 + q**2)
        mean = (1 - gain) * carried * mean + gain * y
        variance = ((1 - gain) * carried) ** 2 * variance + gain * q**2 + after**2
    return mean, np.sqrt(variance)


def test_the_law_of_daps_as_published():
    """sigma from 100 to 0.1 at sigma^(1/7) evenly spaced, 200 levels: the numbers of an independent computation."""
    levels = np.linspace(100 ** (1 / 7), 0.1 ** (1 / 7), 200) ** 7
    np.testing.assert_allclose(law_of_daps(1.0, 0.5, levels, 1.0), (0.891, 0.471), atol=6e-4)
    np.testing.assert_allclose(law_of_daps(0.25, 0.5, levels, 1.0), (0.684, 0.408), atol=6e-4)
    np.testing.assert_allclose(law_of_daps(1.0, 0.01 / 2**0.5, levels, 1.0), (1.0, 0.007), atol=6e-4)


@pytest.mark.parametrize(
    "solver",
    [solvers.heun(), pytest.param(solvers.ddim(), marks=SLOW), pytest.param(solvers.dpm_solver(2), marks=SLOW)],
)
def test_daps_has_its_law(solver):
    """On a few levels, with as many inner steps as the solver needs to solve the ODE; exact would be 0.8, 0.447."""
    process = PROCESSES["edm"]
    levels = np.linspace(10 ** (1 / 7), 0.1 ** (1 / 7), 8) ** 7
    times = jnp.append(grids.time_of_log_snr(process, -2 * jnp.log(jnp.float32(levels))), 0.0)
    method = METHODS["daps"](steps=12 if solver.needs != solvers.ddim().needs else 80)
    x = drawn(WHITE, whole(0.5), [1.0, -0.5], method, solver, times, process=process)
    mean, deviation = law_of_daps(1.0, 0.5, levels, 1.0)
    np.testing.assert_allclose(x.mean(0), [mean, -0.5 * mean], atol=2e-2)
    np.testing.assert_allclose(x.std(0), deviation, atol=1.5e-2)
    assert mean > 0.88


@pytest.mark.parametrize("steps", [1, pytest.param(20, marks=SLOW)])
def test_daps_is_exact_for_white_data_of_a_known_variance(steps):
    """One inner step is D, with r^2 the variance of x_0 given x_t: the exact posterior, for any number of levels."""
    x = drawn(WHITE, whole(0.5), [1.0, -0.5], METHODS["daps"](steps=1, variance=1.0), solvers.ddim(), steps)
    np.testing.assert_allclose(x.mean(0), [0.8, -0.4], atol=2e-2)
    np.testing.assert_allclose(x.std(0), 0.447, atol=1.2e-2)


def test_langevin_steps_of_daps_have_their_stationary_law():
    """Of one level, where r is large: N(y, q^2 I), whose variance Langevin steps of rate c widen by 1 / (1 - c / 2)."""
    linear = whole(0.2)
    operator = Operator(shape=(2,), apply=lambda x, _: x, noise=0.2, linear=False)
    for rate in (0.1, 1.0):
        method = METHODS["daps"](steps=1, langevin=150, rate=rate)
        x = drawn(WHITE, operator, [1.0, -0.5], method, solvers.ddim(), 1)
        np.testing.assert_allclose(x.mean(0), [1.0, -0.5], atol=1e-2)
        np.testing.assert_allclose(x.std(0), 0.2 / np.sqrt(1 - rate / 2), rtol=0.03)
    exact = drawn(WHITE, linear, [1.0, -0.5], METHODS["daps"](steps=1), solvers.ddim(), 1)
    np.testing.assert_allclose(exact.std(0), 0.2, rtol=0.03)


@pytest.mark.slow
def test_mcg_is_replacement_and_the_gradient_of_dps():
    """Without the gradient it has the law of replacement, .622 and .300 for .9 and .19; with it more of the shift."""
    x = drawn(PAIR, first(), [1.0], METHODS["mcg"](0.0), solvers.ancestral(), 250, num=3000)
    np.testing.assert_allclose([x[:, 1].mean(), x[:, 1].var()], [0.622, 0.300], atol=3e-2)
    more = drawn(PAIR, first(), [1.0], METHODS["mcg"](0.05), solvers.ancestral(), 250, num=3000)
    assert more[:, 1].mean() > x[:, 1].mean() + 0.05
    np.testing.assert_allclose([x[:, 0], more[:, 0]], 1, atol=1e-6)
    # One step: what is measured as by `replaced`, what is not shifted by the gradient of the norm.
    process, times = PROCESSES["vp"], jnp.linspace(1, 0, 11)
    state, y = jax.random.normal(jax.random.key(0), (3, 2)), jnp.ones((3, 1))
    method, keys = METHODS["mcg"](0.7), jax.random.split(jax.random.key(1), 3)
    D = measured(PAIR.denoiser(process), first(), y, method, process, times)
    step = method.around(solvers.ancestral(), first(), y, None).step(process, D, keys, state, times[4], times[5], ())[0]
    keep = lambda x, known: jnp.concatenate([known[:, :1], x[:, 1:]], 1)
    image = jnp.concatenate([y, jnp.zeros_like(y)], 1)
    plain = replaced(solvers.ancestral(), image, keep)
    other = plain.step(process, PAIR.denoiser(process), keys, state, times[4], times[5], ())[0]
    known = process.alpha(times[4]) * image + process.sigma(times[4]) * row_normal(row_keys(keys, 2**31 - 1), state)
    norm = lambda x: jnp.sum(jnp.abs(y - PAIR.denoiser(process)(x, times[4])[:, :1]))
    np.testing.assert_allclose((step - other)[:, 1], -0.7 * jax.grad(norm)(keep(state, known))[:, 1], atol=1e-4)


@pytest.mark.parametrize("name", ["ddrm", "daps", "mcg"])
def test_a_system_samples_by_it_and_rows_are_independent(name):
    solver = dict(ddrm=dict(name="renoised"), daps=dict(name="ddim"), mcg=dict(name="ancestral"))[name]
    config = digits(guidance=ConfigDict(guided(name)), network__hidden=8, sampling__steps=4)
    config.solver, config.sampling.grid.t_min = ConfigDict(solver), 0.0
    system = build.system(config)
    params = jax.jit(system.init)(jax.random.key(0))
    images = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 1)).astype(np.float32)
    operator = system.conditions["measurement"].operator
    entry = operator.measure(images)
    x = system.sample(params, jax.random.key(1), 3, {"measurement": entry})["samples"]
    np.testing.assert_allclose(
        operator(jnp.asarray(x), jnp.asarray(entry[..., 1:])), entry[..., :1], atol=0.05 if name == "daps" else 1e-4
    )
    alone = system.sample(params, jax.random.key(1), 1, {"measurement": entry[:1]})["samples"]
    np.testing.assert_allclose(alone, x[:1], atol=1e-4)


def guided(method, **operator):
    return dict(name="measurement", operator=dict(name="half") | operator, method=dict(name=method))


@pytest.mark.parametrize(
    ("section", "solver", "words"),
    [
        (guided("daps"), dict(name="ancestral"), ["config.solver.name='ancestral'", "daps", "probability-flow ODE"]),
        (guided("daps"), dict(name="dpm_solver_pp"), ["config.solver.name='dpm_solver_pp'", "memory"]),
        (guided("ddrm", name="phase"), dict(name="renoised"), ["name='ddrm'", "linear operator"]),
        (guided("mcg", name="phase"), dict(name="ancestral"), ["name='mcg'", "linear operator"]),
        (guided("daps", name="jpeg"), dict(name="ddim"), ["name='daps'", "differentiable"]),
        (guided("daps", name="phase"), dict(name="ddim"), ["operator.noise=0"]),
        (
            guided("ddrm", name="k_space", acceleration=2, then=dict(name="half", side="left")),
            dict(name="renoised"),
            ["name='ddrm'", "known singular values"],
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(section, solver, words):
    config = digits(guidance=ConfigDict(section))
    config.solver = ConfigDict(solver)
    with pytest.raises(ConfigError) as refusal:
        build.system(config)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_latents_are_refused():
    """Operators are those of images, whatever the shape of latents."""
    parts = Parts(digits(guidance=ConfigDict(guided("ddrm"))), Spec((4, 4, 4), modality="latents"), lambda config: None)
    with pytest.raises(ConfigError, match=r"guidance.name='measurement' needs a model of the data itself"):
        _ = parts.guidance
