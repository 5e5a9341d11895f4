"""Methods for inverse problems against the papers' algorithms, written as plain loops in NumPy, on the same prior.

Both draw thousands of samples of one measurement; means and covariances agree within the error of a Monte-Carlo
estimate. A wrong step size, a noise level off by one or an eps of the other denoiser does not.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax import solvers
from diffusion_jax.config import build
from diffusion_jax.guidance.measurement import METHODS, measured
from diffusion_jax.guidance.operators import Operator
from diffusion_jax.processes import prior
from diffusion_jax.solvers import grids
from diffusion_jax.solvers.sampling import sample
from tests.oracles import PROCESSES, Mixture
from tests.runs import digits

PROCESS, STEPS, NUM = PROCESSES["discrete_vp"], 25, 6000
DATA = Mixture(
    weights=jnp.array([0.3, 0.5, 0.2]),
    means=jnp.array([[1.0, 0, -1, 0.5], [-1, 0.5, 0, -0.5], [0, -1, 1, 0]]),
    variances=jnp.array([0.1, 0.2, 0.15]),
)
MATRIX = np.array([[1.0, 0.5, 0, 0], [0, -0.4, 0.8, 0.2]])
Y = np.array([0.6, -0.3])
TIMES = np.asarray(grids.discrete("linspace")(PROCESS, STEPS))
D = jax.jit(DATA.denoiser(PROCESS))


def operator(noise: float) -> Operator:
    left, values, _ = np.linalg.svd(MATRIX, full_matrices=False)
    left, values = jnp.float32(left), jnp.float32(values)
    gram = lambda v, mask, f: (f(values[None] ** 2) * (v @ left)) @ left.T
    return Operator(shape=(4,), apply=lambda x, mask: x @ jnp.float32(MATRIX).T, gram=gram, noise=noise)


def ours(method, solver, noise: float) -> np.ndarray:
    made, y = operator(noise), jnp.broadcast_to(jnp.float32(Y), (NUM, 2))

    @jax.jit
    def run():
        guided = measured(DATA.denoiser(PROCESS), made, y, method, PROCESS, jnp.asarray(TIMES))
        around = solver if method.around is None else method.around(solver, made, y, None)
        x_T = prior(PROCESS, jax.random.key(0), (NUM, 4))
        return sample(around, PROCESS, guided, jax.random.key(1), x_T, jnp.asarray(TIMES))

    return np.asarray(run())


def levels(t: float) -> tuple[float, float]:
    """(abar, sqrt(1 - abar)) of DDPM's table at t = index / 1000, computed anew."""
    abar = np.prod(1 - np.linspace(1e-4, 0.02, 1000)[: round(1000 * t)])
    return abar, np.sqrt(1 - abar)


def ddnm(rng: np.random.Generator, eta: float) -> np.ndarray:
    """arXiv:2212.00490, algorithm 1, with the noise of its equation 17."""
    x, inverse = rng.standard_normal((NUM, 4)), np.linalg.pinv(MATRIX)
    for t, s in itertools.pairwise(TIMES):
        (abar, sigma), (abar_s, sigma_s) = levels(t), levels(s)
        x_0 = np.asarray(D(jnp.float32(x), jnp.float32(t)))
        eps = (x - np.sqrt(abar) * x_0) / sigma
        x_0 = x_0 - (x_0 @ MATRIX.T - Y) @ inverse.T
        noise = eta * rng.standard_normal(x.shape) + np.sqrt(1 - eta**2) * eps
        x = np.sqrt(abar_s) * x_0 + sigma_s * noise
    return x


def dps(rng: np.random.Generator, scale: float) -> np.ndarray:
    """arXiv:2209.14687, algorithm 1, with the code's gradient of the norm."""
    x = rng.standard_normal((NUM, 4))
    norm = lambda x, t: jnp.sum(jnp.linalg.norm(Y - D(x, t) @ MATRIX.T, axis=-1))
    gradient = jax.jit(jax.grad(norm))
    for t, s in itertools.pairwise(TIMES):
        (abar, _), (abar_s, _) = levels(t), levels(s)
        alpha = abar / abar_s
        x_0 = np.asarray(D(jnp.float32(x), jnp.float32(t)))
        mean = np.sqrt(alpha) * (1 - abar_s) / (1 - abar) * x + np.sqrt(abar_s) * (1 - alpha) / (1 - abar) * x_0
        width = np.sqrt((1 - alpha) * (1 - abar_s) / (1 - abar))
        shift = scale * np.asarray(gradient(jnp.float32(x), jnp.float32(t)))
        x = mean + width * rng.standard_normal(x.shape) - shift
    return x


def ddrm(rng: np.random.Generator, noise: float, eta: float, eta_b: float) -> np.ndarray:
    """arXiv:2201.11793, eq. 7 and 8, in the variables x / sqrt(abar) of a variance-exploding process."""
    left, values, right = np.linalg.svd(MATRIX)
    y, kept = Y @ left / values, np.sqrt(1 - eta**2)
    x = rng.standard_normal((NUM, 4))
    for t, s in itertools.pairwise(TIMES):
        (abar, sigma), (abar_s, sigma_s) = levels(t), levels(s)
        x_0 = np.asarray(D(jnp.float32(x), jnp.float32(t)))
        eps, after = (x - np.sqrt(abar) * x_0) / sigma, sigma_s / np.sqrt(abar_s)
        x_0, eps = x_0 @ right.T, eps @ right.T
        new = x_0 + kept * after * eps + eta * after * rng.standard_normal(x.shape)
        for i, value in enumerate(values):
            z = rng.standard_normal(NUM)
            if after < noise / value:
                far = (y[i] - x_0[:, i]) * value / noise
                new[:, i] = x_0[:, i] + kept * after * far + eta * after * z
            else:
                width = np.sqrt(after**2 - (eta_b * noise / value) ** 2)
                new[:, i] = (1 - eta_b) * x_0[:, i] + eta_b * y[i] + width * z
        x = np.sqrt(abar_s) * new @ right
    return x


def differences(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of means and of second moments, in standard errors."""
    moments = lambda x: np.concatenate([x, (x[:, :, None] * x[:, None]).reshape(len(x), -1)], 1)
    a, b = moments(a), moments(b)
    error = np.sqrt((a.var(0) + b.var(0)) / len(a)) + 1e-4
    return np.abs((a.mean(0) - b.mean(0)) / error).max()


@pytest.mark.parametrize("name", ["ddnm", pytest.param("dps", marks=pytest.mark.slow), "ddrm"])
def test_the_papers_algorithm_has_the_same_law(name):
    rng, churned = np.random.default_rng(0), solvers.renoised(0.85)
    found, wanted, wrong = {
        "ddnm": lambda: (ours(METHODS["ddnm"](), churned, 0.0), ddnm(rng, 0.85), ddnm(rng, 0.2)),
        "dps": lambda: (ours(METHODS["dps"](0.2), solvers.ancestral(), 0.1), dps(rng, 0.2), dps(rng, 0.1)),
        "ddrm": lambda: (ours(METHODS["ddrm"](), churned, 0.3), ddrm(rng, 0.3, 0.85, 1.0), ddrm(rng, 0.3, 0.5, 1.0)),
    }[name]()
    assert differences(found, wanted) < 4.5
    assert differences(found, wrong) > 6


def guided(method: dict, solver: dict, steps: int):
    section = dict(name="measurement", operator=dict(name="average", noise=0.1), method=method)
    config = digits(guidance=ConfigDict(section), network__hidden=8, sampling__steps=steps)
    config.solver = ConfigDict(solver)
    return build.system(config)


@pytest.mark.parametrize("method", ["mmps", "ddrm", "daps"])
def test_one_program_for_all_measurements_whose_size_does_not_grow_with_the_steps(method):
    solver = dict(mmps=dict(name="renoised"), ddrm=dict(name="renoised"), daps=dict(name="ddim"))[method]
    sizes = []
    for steps in (10, 500):
        system = guided(dict(name=method), solver, steps)
        params = jax.eval_shape(system.init, jax.random.key(0))
        cond = {"measurement": jax.ShapeDtypeStruct((2, 4, 4, 1), jnp.float32)}
        ids = jax.ShapeDtypeStruct((2,), jnp.int32)
        program = jax.jit(lambda p, ids, cond, s=system: s.draw(p, jax.random.key(0), ids, cond, {}))
        sizes.append(program.lower(params, ids, cond).as_text().count("\n"))
    assert sizes[1] < 1.05 * sizes[0]


def test_another_measurement_is_not_compiled_again():
    system = guided(dict(name="ddrm"), dict(name="renoised"), 3)
    params, rng = jax.jit(system.init)(jax.random.key(0)), np.random.default_rng(0)
    for _ in range(2):
        system.sample(params, jax.random.key(0), 2, {"measurement": rng.uniform(-1, 1, (2, 4, 4, 1))})
    assert system._draw._cache_size() == 1
