import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import solvers
from diffusion_jax.processes import VE


def variance_after(ratio, a, num_steps):
    """Langevin steps x - a x + sqrt(2 a) z on a unit Gaussian, from variance ratio^2."""
    variance = ratio**2
    for _ in range(num_steps):
        variance = (1 - a) ** 2 * variance + 2 * a
    return variance


@pytest.mark.parametrize(
    ("sigma_max", "num_levels", "num_steps", "published"),
    [(50, 232, 5, 6.2e-6), (90, 500, 5, 3.3e-6), (190, 1086, 3, 1.8e-6), (348, 2311, 3, 0.9e-6)],
    ids=["cifar10", "celeba64", "lsun128", "ffhq256"],
)
def test_ncsnv2_step_sizes_are_the_published_ones(sigma_max, num_levels, num_steps, published):
    """The paper's rule moves by eps score + sqrt(2 eps) z, ours by a / 2 score: a = 2 eps."""
    sigmas = np.geomspace(sigma_max, 0.01, num_levels)
    assert solvers.ncsnv2_step_size(sigmas, num_steps) == pytest.approx(2 * published, rel=0.03)


@pytest.mark.parametrize(("num_levels", "num_steps"), [(10, 5), (10, 100), (232, 5)])
def test_ncsnv2_step_size_is_the_best_of_the_simulated_recursion(num_levels, num_steps):
    sigmas = np.geomspace(50.0, 0.01, num_levels)
    ratio = sigmas[0] / sigmas[1]
    best = solvers.ncsnv2_step_size(sigmas, num_steps) / sigmas[-1] ** 2 / 2
    reached = variance_after(ratio, best, num_steps)
    for a in best * np.array([0.5, 0.9, 0.98, 1.02, 1.1]):
        assert abs(variance_after(ratio, a, num_steps) - 1) > abs(reached - 1)


def test_ncsnv2_step_size_does_not_depend_on_the_order_of_the_levels():
    sigmas = np.geomspace(1.0, 0.01, 10)
    assert solvers.ncsnv2_step_size(sigmas, 5) == solvers.ncsnv2_step_size(sigmas[::-1], 5)


@pytest.mark.parametrize("sigmas", [[1.0], [0.0, 1.0], []])
def test_ncsnv2_step_size_refuses(sigmas):
    with pytest.raises(ValueError, match="at least two positive noise levels"):
        solvers.ncsnv2_step_size(np.array(sigmas), 5)


@pytest.mark.parametrize("level", [0.0, 0.5])
def test_annealed_langevin_follows_the_variance_recursion(level):
    """Data at 0 gives the score -x / sigma^2, with which each level is linear."""
    process, n, num_steps = VE(sigma_min=0.1, sigma_max=10.0), 20_000, 7
    a = 0.1
    solver = solvers.annealed_langevin(step_size=2 * a * 0.1**2, num_steps=num_steps)
    s = jnp.asarray(level)
    sigma = float(process.sigma(s))
    x = 3 * sigma * jax.random.normal(jax.random.key(1), (n, 1))
    keys = jax.random.split(jax.random.key(0), n)
    out, _ = solver.step(process, lambda x, t: 0 * x, keys, x, jnp.asarray(1.0), s, solver.init(x))
    expected = variance_after(3, a, num_steps) * sigma**2
    assert float(out.var()) == pytest.approx(expected, rel=4.5 * (2 / n) ** 0.5)
