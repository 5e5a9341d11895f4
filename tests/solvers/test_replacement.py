"""Replacement and time travel: Gaussian priors, under which their law follows from a recursion of moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import solvers
from diffusion_jax.processes import DiscreteVP, beta_table, prior
from diffusion_jax.solvers import grids
from diffusion_jax.solvers.replacement import has_memory
from diffusion_jax.solvers.sampling import sample
from tests.oracles import Gaussian

PROCESS = DiscreteVP.from_betas(beta_table("linear"))
RHO = 0.9
PRIOR = Gaussian(mean=jnp.zeros(2), covariance=jnp.array([[1.0, RHO], [RHO, 1.0]]))
D = PRIOR.denoiser(PROCESS)
KNOWN = jnp.array([1.0, 0.0])
ROWS = 4_000
keep_first = lambda x, known: jnp.where(jnp.array([True, False]), known, x)


def times(num_steps: int):
    return grids.discrete("linspace")(PROCESS, num_steps)


def drawn(solver, at, rows=ROWS, seed=0):
    prior_key, key = jax.random.split(jax.random.key(seed))
    x_T = prior(PROCESS, prior_key, (rows, 2))
    return jax.jit(lambda x: sample(solver, PROCESS, D, key, x, at))(x_T)


def inpainter(travel: bool = True):
    solver = solvers.replaced(solvers.ancestral(), jnp.broadcast_to(KNOWN, (ROWS, 2)), keep_first)
    return solvers.travelling(solver) if travel else solver


def moments(at, snr: float = 0.0, between: bool = True) -> tuple[float, float]:
    """Mean and variance of the unknown x_2 by the recursion of moments, in float64.

    The state is x = m + C^(1/2) z throughout: replacement, the ancestral step, the forward step and the Langevin step
    of a corrector, if `snr` is not 0, are affine in x. `between`: x_1 is replaced before the corrector too.
    """
    at = np.asarray(at, np.float64)
    alpha, sigma = (np.asarray(f(jnp.float32(at)), np.float64) for f in (PROCESS.alpha, PROCESS.sigma))
    covariance = np.array([[1, RHO], [RHO, 1]])
    m, c = np.zeros(2), np.eye(2) * sigma[0] ** 2
    unknown = np.diag([0.0, 1.0])

    def known_at(m, c, a, s):
        return unknown @ m + a * np.array([1.0, 0.0]), unknown @ c @ unknown + s**2 * np.diag([1.0, 0.0])

    for i in range(len(at) - 1):
        a_t, s_t, a_s, s_s = alpha[i], sigma[i], alpha[i + 1], sigma[i + 1]
        if at[i + 1] > at[i]:
            ratio = a_s / a_t
            m, c = ratio * m, ratio**2 * c + (s_s**2 - ratio**2 * s_t**2) * np.eye(2)
            continue
        m, c = known_at(m, c, a_t, s_t)
        gain = a_t * covariance @ np.linalg.inv(a_t**2 * covariance + s_t**2 * np.eye(2))  # D = gain x
        ratio = a_t / a_s
        v = s_t**2 - ratio**2 * s_s**2
        step = ratio * s_s**2 / s_t**2 * np.eye(2) + a_s * v / s_t**2 * gain
        m, c = step @ m, step @ c @ step.T + v * s_s**2 / s_t**2 * np.eye(2)
        if snr and s_s:
            m, c = known_at(m, c, a_s, s_s) if between else (m, c)
            size = 2 * (snr * s_s) ** 2
            langevin = np.eye(2) - size * np.linalg.inv(a_s**2 * covariance + s_s**2 * np.eye(2))
            m, c = langevin @ m, langevin @ c @ langevin.T + 2 * size * np.eye(2)
    return m[1], c[1, 1]


def test_the_grid_of_repaint_is_that_of_the_authors():
    """Falling steps, which evaluate D, and noised levels, counted in the schedule of the authors' code."""
    for steps, length, repeats, evaluations, noised in [
        (250, 10, 10, 2410, 2160),
        (50, 5, 5, 230, 180),
        (50, 10, 10, 410, 360),
        (250, 1, 10, 2491, 2241),
        (250, 10, 20, 4810, 4560),
    ]:
        levels = np.asarray(grids.time_travel(jnp.arange(float(steps), -1, -1), length, repeats))
        change = np.diff(levels)
        assert (change == -1).sum() == evaluations
        assert change[change > 0].sum() == noised and set(change[change > 0]) == {length}
        assert levels[0] == steps and levels[-1] == 0 and levels.max() == steps
    np.testing.assert_array_equal(
        grids.time_travel(jnp.arange(7.0, -1, -1), 3, 2), [7, 6, 5, 4, 7, 6, 5, 4, 3, 2, 1, 4, 3, 2, 1, 0]
    )


def test_jumps_of_a_grid_and_what_they_refuse():
    grid = grids.discrete("linspace")
    np.testing.assert_array_equal(grids.jumps(grid, 3, 1)(PROCESS, 20), grid(PROCESS, 20))
    np.testing.assert_array_equal(grids.jumps(grid, 1, 1)(PROCESS, 20), grid(PROCESS, 20))
    assert grids.jumps(grid, 5, 5).needs == grid.needs
    for length, repeats, words in [(0, 2, "length is 0"), (2, 0, "repeats is 0"), (20, 2, "less than the 20 steps")]:
        with pytest.raises(ValueError, match=words):
            grids.jumps(grid, length, repeats)(PROCESS, 20)


def test_the_recursion_gives_the_known_bias():
    """Where E x_2 = .9 and Var x_2 = .19 are exact; the values were computed apart from this code, by the same law."""
    for steps, mean, variance in [(50, 0.602, 0.274), (100, 0.615, 0.288), (250, 0.622, 0.300), (1000, 0.626, 0.308)]:
        np.testing.assert_allclose(moments(times(steps)), (mean, variance), atol=2e-3)
    for steps, length, repeats, mean, variance in [
        (50, 5, 5, 0.826, 0.173),
        (50, 10, 10, 0.771, 0.227),
        (250, 10, 2, 0.761, 0.229),
        (250, 10, 10, 0.875, 0.177),
        (250, 10, 20, 0.886, 0.171),
    ]:
        at = grids.time_travel(times(steps), length, repeats)
        np.testing.assert_allclose(moments(at), (mean, variance), atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "length", "repeats"),
    [
        (50, 1, 1),
        (50, 5, 5),
        pytest.param(50, 10, 10, marks=pytest.mark.slow),
        pytest.param(250, 10, 2, marks=pytest.mark.slow),
        pytest.param(250, 10, 10, marks=pytest.mark.slow),
    ],
)
def test_samples_have_the_moments_of_the_recursion(steps, length, repeats):
    at = grids.time_travel(times(steps), length, repeats)
    x = np.asarray(drawn(inpainter(), at), np.float64)[:, 1]
    mean, variance = moments(at)
    assert abs(x.mean() - mean) < 4 * np.sqrt(variance / ROWS)
    assert abs(x.var() - variance) < 4 * variance * np.sqrt(2 / ROWS)


def test_with_a_corrector_known_values_are_replaced_before_it_too_at_its_own_time():
    """A corrector at every level draws x_2 again given x_1, which makes replacement less biased."""
    corrected = solvers.predictor_corrector(solvers.ancestral(), solvers.langevin_corrector(snr=0.5))
    solver = solvers.replaced(corrected, jnp.broadcast_to(KNOWN, (ROWS, 2)), keep_first)
    x = np.asarray(drawn(solver, times(20)), np.float64)[:, 1]
    mean, variance = moments(times(20), snr=0.5)
    assert abs(x.mean() - mean) < 4 * np.sqrt(variance / ROWS)
    assert abs(x.var() - variance) < 4 * variance * np.sqrt(2 / ROWS)
    alone, plain = moments(times(20), snr=0.5, between=False)[0], moments(times(20))[0]
    assert plain + 0.05 < alone < mean - 6 * np.sqrt(variance / ROWS) and mean < RHO
    for steps, snr, bias in [(50, 0.16, 0.263), (250, 0.16, 0.170), (1000, 0.16, 0.085), (1000, 0.3, 0.038)]:
        np.testing.assert_allclose(moments(times(steps), snr)[0], RHO - bias, atol=2e-3)


def test_the_network_is_evaluated_on_falling_steps_only():
    calls = []

    def counted(x, t, cond=None):
        jax.debug.callback(lambda: calls.append(0), ordered=True)
        return D(x, t)

    at = grids.time_travel(times(50), 5, 5)
    solver = solvers.travelling(solvers.replaced(solvers.ancestral(), KNOWN[None], keep_first))
    jax.block_until_ready(jax.jit(lambda x: sample(solver, PROCESS, counted, jax.random.key(0), x, at))(KNOWN[None]))
    jax.effects_barrier()
    assert len(calls) == 230


def test_nothing_known_is_the_solver_itself_and_travel_without_jumps_changes_nothing():
    rows, nothing = 64, lambda x, known: x
    plain = drawn(solvers.ancestral(), times(20), rows)
    replaced = solvers.replaced(solvers.ancestral(), jnp.zeros((rows, 2)), nothing)
    np.testing.assert_array_equal(drawn(replaced, times(20), rows), plain)
    np.testing.assert_allclose(drawn(solvers.travelling(replaced), times(20), rows), plain, rtol=1e-5, atol=1e-6)


def test_a_row_does_not_depend_on_the_others():
    at = grids.time_travel(times(20), 3, 2)
    image = jnp.stack([KNOWN, 2 * KNOWN, -KNOWN])

    def run(image, ids):
        solver = solvers.travelling(solvers.replaced(solvers.ancestral(), image, keep_first))
        x_T = prior(PROCESS, jax.random.key(1), (len(ids), 2), ids=ids)
        return sample(solver, PROCESS, D, jax.random.key(2), x_T, at, ids=ids)

    run = jax.jit(run)
    whole = run(image, jnp.arange(3))
    np.testing.assert_allclose(run(image[1:2], jnp.array([1]))[0], whole[1], rtol=1e-5, atol=1e-6)


def test_solvers_that_do_not_fit_are_refused():
    multistep = solvers.dpm_solver_pp(order=2)
    assert has_memory(multistep) and not has_memory(solvers.dpm_solver(order=2))
    with pytest.raises(ValueError, match="multistep"):
        solvers.travelling(multistep)
    with pytest.raises(ValueError, match="annealed Langevin"):
        solvers.replaced(solvers.annealed_langevin(), KNOWN[None], keep_first)
    # The grid itself, without the solver around it, is refused by a solver that needs falling times.
    with pytest.raises(ValueError, match="times that fall"):
        sample(solvers.ancestral(), PROCESS, D, jax.random.key(0), KNOWN[None], grids.time_travel(times(20), 3, 2))
