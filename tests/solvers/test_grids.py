import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.processes import EDM, VE, VP, Cosine, DiscreteVP, RectifiedFlow, beta_table, log_snr
from diffusion_jax.solvers import grids
from tests.oracles import PROCESSES

DISCRETE = DiscreteVP.from_betas(beta_table("linear", 1000))

# t_min > 0 and t_max < 1 suit every process.
CONTINUOUS = {
    "uniform": grids.uniform(0.01, 0.98),
    "quadratic": grids.quadratic(0.01, 0.98),
    "cosine": grids.cosine(0.01, 0.98),
    "karras": grids.karras(t_min=0.01, t_max=0.98),
    "uniform_log_snr": grids.uniform_log_snr(0.01, 0.98),
}


@pytest.mark.parametrize("num_steps", [1, 2, 18])
@pytest.mark.parametrize("grid", CONTINUOUS)
@pytest.mark.parametrize("name", PROCESSES)
def test_grids_decrease_between_their_ends(name, grid, num_steps):
    t = np.asarray(CONTINUOUS[grid](PROCESSES[name], num_steps))
    assert t.shape == (num_steps + 1,)
    np.testing.assert_allclose(t[[0, -1]], [0.98, 0.01], rtol=1e-5)
    assert np.all(np.diff(t) < 0)


def test_uniform_and_quadratic_spacing():
    np.testing.assert_allclose(grids.uniform(0.0, 1.0)(VP(), 4), [1, 0.75, 0.5, 0.25, 0], atol=1e-7)
    np.testing.assert_allclose(grids.quadratic(0.0, 1.0)(VP(), 4), [1, 0.5625, 0.25, 0.0625, 0], atol=1e-7)


def test_karras_grid_is_the_formula_of_the_paper():
    """arXiv:2206.00364, eq. 5, at its defaults sigma from 80 to 0.002, rho = 7, 18 sigmas."""
    sigma = EDM().sigma(grids.karras()(EDM(), 17))
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigma, expected, rtol=1e-3)


@pytest.mark.parametrize("grid", [grids.karras, grids.uniform])
def test_denoising_may_count_as_a_step(grid):
    np.testing.assert_array_equal(grid(denoising=True)(EDM(), 18), grid()(EDM(), 17))
    with pytest.raises(ValueError, match=r"steps is 1\b"):
        grid(denoising=True)(EDM(), 1)


@pytest.mark.parametrize("process", [VP(), VE(), Cosine(), RectifiedFlow()], ids=["vp", "ve", "cosine", "flow"])
def test_karras_grid_spaces_the_root_of_sigma_for_every_process(process):
    t = grids.karras(rho=3.0, t_min=0.05, t_max=0.95)(process, 20)
    root = np.exp(-np.asarray(log_snr(process, t)) / 2) ** (1 / 3)
    np.testing.assert_allclose(np.diff(root), (root[-1] - root[0]) / 20, rtol=1e-2)


@pytest.mark.parametrize("process", [VP(), VE(), Cosine(), RectifiedFlow()], ids=["vp", "ve", "cosine", "flow"])
def test_uniform_log_snr_grid_has_equal_differences(process):
    values = np.asarray(log_snr(process, grids.uniform_log_snr(0.01, 0.95)(process, 25)))
    np.testing.assert_allclose(np.diff(values), (values[-1] - values[0]) / 25, rtol=1e-2)


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        # Table 2 of arXiv:2305.08891 for T = 1000 and 10 steps, counted from 1.
        ("leading", [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]),
        ("linspace", [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]),
        ("trailing", [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]),
    ],
)
def test_discrete_grids_take_the_published_timesteps(spacing, expected):
    t = np.asarray(grids.discrete(spacing)(DISCRETE, 10), np.float64)
    np.testing.assert_allclose(t * 1000, [*expected, 0], atol=1e-4)


def test_grid_of_stable_diffusion():
    """As diffusers takes them with steps_offset=1 and set_alpha_to_one=False: 981, ..., 21, 1, then timestep 0."""
    t = np.asarray(grids.discrete("leading", offset=1, end=1)(DISCRETE, 50), np.float64)
    np.testing.assert_allclose(t * 1000, [*np.arange(982, 0, -20), 1], atol=1e-4)
    for grid, steps in ((grids.discrete("leading", offset=1), 1000), (grids.discrete("leading", end=1), 50)):
        with pytest.raises(ValueError, match="must be below 1000"):
            grid(DISCRETE, steps)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_discrete_grids_with_all_steps_are_the_full_grid(spacing):
    t = grids.discrete(spacing)(DISCRETE, 1000)
    np.testing.assert_allclose(t, np.arange(1000, -1, -1) / 1000, rtol=1e-6)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("num_steps", [2, 7, 50, 333, 999])
def test_discrete_grids_hit_distinct_grid_points(spacing, num_steps):
    timesteps = np.asarray(grids.discrete(spacing)(DISCRETE, num_steps), np.float64) * 1000
    assert timesteps.shape == (num_steps + 1,)
    np.testing.assert_allclose(timesteps, timesteps.round(), atol=1e-3)
    assert np.all(np.diff(timesteps) < 0) and timesteps[0] <= 1000.001 and timesteps[-1] == 0


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_one_step_starts_at_pure_noise(spacing):
    np.testing.assert_array_equal(grids.discrete(spacing)(DISCRETE, 1), [1, 0])


def test_discrete_grids_refuse():
    with pytest.raises(ValueError, match=r"steps is 1: .*'leading' .* t = 1 / 1000.*'trailing'"):
        grids.discrete("leading")(DISCRETE, 1)
    with pytest.raises(ValueError, match="'middle'; choose leading, linspace or trailing"):
        grids.discrete("middle")
    for num_steps in (0, 1001):
        with pytest.raises(ValueError, match=f"steps is {num_steps}; a process of 1000 steps allows 1 to 1000"):
            grids.discrete("leading")(DISCRETE, num_steps)


def test_levels_grid_arrives_at_every_level_once():
    t = grids.levels()(VE(), 10)
    assert t.shape == (11,) and float(t[0]) == 1
    expected = np.geomspace(50.0, 0.01, 10)
    np.testing.assert_allclose(VE().sigma(t[1:]), expected, rtol=1e-5)
    assert jnp.array_equal(grids.levels()(VE(), 1), jnp.ones(2))


@pytest.mark.parametrize("name", ["uniform", "quadratic", "karras", "uniform_log_snr", "levels", "discrete"])
def test_no_step_is_refused(name):
    process = DISCRETE if name == "discrete" else VE()
    with pytest.raises(ValueError, match="steps is 0"):
        getattr(grids, name)()(process, 0)


def test_betas_of_another_schedule_are_found_by_their_alpha():
    """DiffWave's fast schedule on its 50 steps; all betas of a process are its own grid."""
    base = DiscreteVP.from_betas(beta_table("linear", 50, beta_start=1e-4, beta_end=0.05))
    fast = (1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5)
    t = grids.betas(fast)(base, 6)
    expected = np.cumprod(1 - np.array(fast))[::-1]
    np.testing.assert_allclose(base.alpha(t[:-1]) ** 2, expected, rtol=1e-5)
    assert t[-1] == 0 and np.all(np.diff(t) < 0)
    np.testing.assert_allclose(expected[0], 0.3758, atol=1e-4)
    own = grids.betas(tuple(np.linspace(1e-4, 0.05, 50).tolist()))(base, 50)
    np.testing.assert_allclose(own, grids.discrete()(base, 50), atol=1e-5)
    with pytest.raises(ValueError, match="num_steps is 5; it must be 6, one for each"):
        grids.betas(fast)(base, 5)
    with pytest.raises(ValueError, match=r"values is \(0.5, 1.0\); it must be in \(0, 1\)"):
        grids.betas((0.5, 1.0))
