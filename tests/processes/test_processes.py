import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion_jax.processes import (
    EDM,
    VE,
    VP,
    Cosine,
    DiscreteVP,
    RectifiedFlow,
    SubVP,
    beta_table,
    discrete_vp,
    drift_and_diffusion,
    log_snr,
    perturb,
    prior,
    prior_log_prob,
    rescale_zero_terminal_snr,
    time_of_log_snr,
)
from tests.oracles import PROCESSES

VARIANCE_PRESERVING = ("vp", "cosine", "discrete_vp")


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def beta(t):
    return 0.1 + 19.9 * t


def integral_of_beta(t):
    return 0.1 * t + 19.9 * t**2 / 2


def cosine_drift(t):
    """d/dt log cos(pi/2 (t + s) / (1 + s))."""
    rate = np.pi / 2 / 1.008
    return -rate * np.tan(rate * (t + 0.008))


# f and g as the papers write them. For a variance-preserving process g^2 = -2 f; for alpha = 1, g^2 = d sigma^2 / dt.
CLOSED_FORMS = {
    "vp": (VP(), lambda t: -beta(t) / 2, lambda t: np.sqrt(beta(t))),
    "sub_vp": (
        SubVP(),
        lambda t: -beta(t) / 2,
        lambda t: np.sqrt(beta(t) * (1 - np.exp(-2 * integral_of_beta(t)))),
    ),
    "ve": (VE(), lambda t: 0 * t, lambda t: 0.01 * 5000.0**t * np.sqrt(2 * np.log(5000.0))),
    "cosine": (Cosine(), cosine_drift, lambda t: np.sqrt(-2 * cosine_drift(t))),
    "edm": (EDM(), lambda t: 0 * t, lambda t: np.sqrt(2 * 79.998 * (0.002 + 79.998 * t))),
    "rectified_flow": (RectifiedFlow(), lambda t: -1 / (1 - t), lambda t: np.sqrt(2 * t / (1 - t))),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_drift_and_diffusion_equal_the_closed_forms(name):
    process, drift, diffusion = CLOSED_FORMS[name]
    t = np.linspace(0.01, 0.99, 50)
    f, g = drift_and_diffusion(process, jnp.asarray(t))
    np.testing.assert_allclose(f, drift(t), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(g, diffusion(t), rtol=1e-9)


def test_drift_and_diffusion_of_one_discrete_step_transport_the_variance():
    """Between grid points d sigma^2 = (2 f sigma^2 + g^2) dt, whatever the interpolation."""
    process = PROCESSES["discrete_vp"]
    t = (jnp.arange(1, 1000) + 0.5) / 1000
    f, g = drift_and_diffusion(process, t)
    d_variance = 1000 * jnp.diff(process.sigma_squared.astype(jnp.float64))[1:]
    # The table is float32 and sums to one up to its rounding.
    np.testing.assert_allclose(2 * f * process.sigma(t) ** 2 + g**2, d_variance, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PROCESSES)
def test_log_snr_decreases_and_time_of_log_snr_inverts_it(name):
    process = PROCESSES[name]
    t = jnp.linspace(0.001, 0.999, 300)
    values = log_snr(process, t)
    assert np.all(np.diff(values) < 0)
    np.testing.assert_allclose(time_of_log_snr(process, values), t, atol=1e-6)


def test_time_of_log_snr_clamps_targets_out_of_reach():
    t = time_of_log_snr(VE(), jnp.array([1e3, -1e3]))
    np.testing.assert_allclose(t, [0, 1], atol=1e-12)


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_variance_is_preserved(name):
    t = jnp.linspace(0, 1, 1001)
    process = PROCESSES[name]
    np.testing.assert_allclose(process.alpha(t) ** 2 + process.sigma(t) ** 2, 1, atol=1e-7)


@pytest.mark.parametrize("name", PROCESSES)
def test_ends_of_time(name):
    process = PROCESSES[name]
    assert float(process.alpha(jnp.asarray(0.0))) == 1
    sigma_0 = {"ve": 0.01, "edm": 0.002}.get(name, 0.0)
    np.testing.assert_allclose(process.sigma(jnp.asarray(0.0)), sigma_0, rtol=1e-12)
    sigma_1 = {"ve": 50.0, "edm": 80.0}.get(name, 1.0)
    np.testing.assert_allclose(process.sigma(jnp.asarray(1.0)), sigma_1, rtol=1e-4)


def test_sub_vp_sigma_is_the_square_of_that_of_vp():
    t = jnp.linspace(0, 1, 101)
    np.testing.assert_allclose(SubVP().sigma(t), VP().sigma(t) ** 2, rtol=1e-12)


BETAS = {
    "linear": np.linspace(1e-4, 0.02, 1000),
    "scaled_linear": np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2,
    "cosine": beta_table("cosine"),
    "sqrt": beta_table("sqrt"),
    "zero_terminal_snr": rescale_zero_terminal_snr(np.linspace(1e-4, 0.02, 1000)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", BETAS)
def test_discrete_vp_is_exact_at_the_grid_points(kind, dtype):
    betas = BETAS[kind]
    alpha_bar = np.cumprod(1 - betas)
    process = DiscreteVP.from_betas(betas)
    assert process.num_steps == 1000
    t = jnp.arange(1, 1001, dtype=dtype) / 1000
    np.testing.assert_allclose(process.alpha(t), np.sqrt(alpha_bar), rtol=3e-7, atol=1e-12)
    np.testing.assert_allclose(process.sigma(t), np.sqrt(1 - alpha_bar), rtol=3e-7)
    assert float(process.alpha(jnp.asarray(0.0))) == 1 and float(process.sigma(jnp.asarray(0.0))) == 0


def test_beta_tables_equal_the_definitions():
    np.testing.assert_allclose(beta_table("linear"), BETAS["linear"], rtol=1e-12)
    scaled = beta_table("scaled_linear", beta_start=0.00085, beta_end=0.012)
    np.testing.assert_allclose(scaled, BETAS["scaled_linear"], rtol=1e-12)
    # Below the cap of 0.999 the cumulative products telescope to alpha_bar(t) / alpha_bar(0).
    t = np.arange(1, 1000) / 1000
    cosine = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(np.cumprod(1 - beta_table("cosine"))[:-1], cosine, rtol=1e-9)
    sqrt = (1 - np.sqrt(t + 1e-4)) / (1 - np.sqrt(1e-4))
    np.testing.assert_allclose(np.cumprod(1 - beta_table("sqrt"))[:-1], sqrt, rtol=1e-9)
    assert beta_table("cosine")[-1] == beta_table("sqrt")[-1] == 0.999


def test_cosine_table_follows_the_continuous_cosine_process():
    process = DiscreteVP.from_betas(beta_table("cosine"))
    t = jnp.arange(1, 1000) / 1000
    np.testing.assert_allclose(process.alpha(t), Cosine().alpha(t), rtol=1e-6)
    np.testing.assert_allclose(process.sigma(t), Cosine().sigma(t), rtol=1e-6)


def test_zero_terminal_snr_keeps_the_start_and_ends_at_zero():
    betas = np.linspace(1e-4, 0.02, 1000)
    rescaled = rescale_zero_terminal_snr(betas)
    assert rescaled[-1] == 1
    assert rescaled[0] == pytest.approx(1e-4, rel=1e-9)
    root, before = np.sqrt(np.cumprod(1 - rescaled)), np.sqrt(np.cumprod(1 - betas))
    # The map from old to new square roots is affine.
    np.testing.assert_allclose(np.diff(root) / np.diff(before), root[0] / (before[0] - before[-1]), rtol=1e-6)


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([], "non-empty"),
        ([[0.1, 0.2]], r"shape \(1, 2\)"),
        ([0.0, 0.1], "0.0 to 0.1"),
        ([0.1, 1.5], "0.1 to 1.5"),
        ([1.0, 0.5], "the last in"),
        ([0.1, np.nan], "betas must lie"),
    ],
)
def test_from_betas_refuses(betas, message):
    with pytest.raises(ValueError, match=message):
        DiscreteVP.from_betas(np.array(betas))


def test_beta_table_refuses():
    with pytest.raises(ValueError, match="'square' is unknown; choose linear"):
        beta_table("square")
    with pytest.raises(ValueError, match="num_steps is 0"):
        beta_table("linear", 0)


@pytest.mark.parametrize("name", PROCESSES)
def test_perturb_has_the_moments_of_the_transition(name):
    process = PROCESSES[name]
    n = 100_000
    x_0 = jnp.full((n, 1), 0.7)
    t = jnp.full(n, 0.4)
    x_t, eps = perturb(process, jax.random.key(0), x_0, t)
    alpha, sigma = float(process.alpha(t[0])), float(process.sigma(t[0]))
    assert float(x_t.mean()) == pytest.approx(alpha * 0.7, abs=4 * sigma / n**0.5)
    assert float(x_t.std()) == pytest.approx(sigma, rel=4 / (2 * n) ** 0.5)
    np.testing.assert_allclose(x_t, alpha * x_0 + sigma * eps, rtol=1e-6, atol=1e-6 * sigma)


def test_perturb_takes_one_time_per_row():
    x_0 = jnp.ones((3, 2, 2, 1))
    t = jnp.array([0.1, 0.5, 0.9])
    together, eps = perturb(VP(), jax.random.key(0), x_0, t)
    for r in range(3):
        expected = VP().alpha(t[r]) * x_0[r] + VP().sigma(t[r]) * eps[r]
        np.testing.assert_allclose(together[r], expected, rtol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_prior_has_the_last_sigma_and_the_density_of_scipy(name):
    process = PROCESSES[name]
    x = prior(process, jax.random.key(0), (4000, 3, 2))
    sigma = float(process.sigma(jnp.asarray(1.0)))
    assert stats.kstest(np.ravel(x) / sigma, "norm").pvalue > 1e-3
    expected = stats.norm(scale=sigma).logpdf(np.asarray(x)).sum((1, 2))
    np.testing.assert_allclose(prior_log_prob(process, x), expected, rtol=1e-5)


def test_rows_of_the_prior_depend_on_their_ids_only():
    x = prior(VE(), jax.random.key(3), (8, 2))
    np.testing.assert_array_equal(prior(VE(), jax.random.key(3), (2, 2), ids=jnp.array([6, 1])), x[jnp.array([6, 1])])
    assert len(np.unique(x)) == x.size


def test_schedules_are_differentiable_and_batchable():
    t = jnp.asarray(0.5)
    gradient = jax.grad(lambda process: process.alpha(t))(VP())
    # log alpha = -(beta_min t + (beta_max - beta_min) t^2 / 2) / 2
    assert float(gradient.beta_max) == pytest.approx(float(VP().alpha(t)) * -(0.5**2) / 4)
    assert float(gradient.beta_min) == pytest.approx(float(VP().alpha(t)) * -(0.5 - 0.5**2 / 2) / 2)
    sweep = jax.vmap(lambda beta_max: VP(beta_max=beta_max).sigma(t))(jnp.array([5.0, 20.0]))
    np.testing.assert_allclose(sweep, [VP(beta_max=5.0).sigma(t), VP(beta_max=20.0).sigma(t)], rtol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_processes_are_arguments_of_jax_transformations(name):
    process, t = PROCESSES[name], jnp.linspace(0.1, 0.9, 3)
    stacked = jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * 2), process)
    if jax.tree.leaves(stacked):
        swept = jax.vmap(lambda process, t: process.sigma(t), in_axes=(0, None))(stacked, t)
        np.testing.assert_allclose(swept[1], process.sigma(t), rtol=1e-6)
    assert jax.eval_shape(lambda process: process.alpha(t), process).shape == (3,)
    np.testing.assert_allclose(jax.jit(log_snr)(process, t), log_snr(process, t), rtol=1e-5, atol=1e-9)


def test_a_table_is_linear_between_its_points_up_to_rounding():
    """alpha and sigma of other times are not those of the nearest point of the table."""
    process = discrete_vp("linear", 100, 1e-3, 0.2)
    assert float(process.sigma(jnp.float32(1e-5))) == pytest.approx((1e-5 * 100 * 1e-3) ** 0.5, rel=1e-3)
    for center in (0.1, 0.5, 0.98):
        t = center + np.float32([-8e-6, -4e-6, 4e-6, 8e-6])
        assert np.all(np.diff(np.asarray(process.alpha(jnp.asarray(t)))) < 0)


@pytest.mark.parametrize("name", ["ve", "edm", "rectified_flow"])
def test_a_prior_below_one_has_the_spread_of_its_time(name):
    process, t = PROCESSES[name], 0.3
    x = prior(process, jax.random.key(0), (4000, 2), t=t)
    assert float(x.std()) == pytest.approx(float(process.sigma(jnp.float32(t))), rel=0.04)
    scale = float(process.sigma(jnp.float32(t)))
    expected = stats.norm.logpdf(np.float64(x[:5]), scale=scale).sum(-1)
    np.testing.assert_allclose(prior_log_prob(process, x[:5], t), expected, rtol=1e-4)
