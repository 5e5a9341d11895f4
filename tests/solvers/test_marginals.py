import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import solvers
from diffusion_jax.processes import VE, VP, DiscreteVP, RectifiedFlow, SubVP, beta_table, rescale_zero_terminal_snr
from diffusion_jax.solvers import grids
from diffusion_jax.solvers.sampling import sample
from tests.oracles import Mixture
from tests.solvers.cases import CASES

N = 4000
pytestmark = pytest.mark.optimized  # most of the time goes into running


def mixture(dimension=2):
    """Two separated components, told apart in the first two dimensions."""
    means = np.zeros((2, dimension))
    means[:, :2] = [[-1.0, 0.5], [1.0, 0.0]]
    return Mixture(weights=np.array([0.3, 0.7]), means=means, variances=np.array([0.04, 0.02]))


DATA = mixture()


def assert_samples_of(mixture, x, bias):
    """Weights, means and variances per component within 4.5 standard errors plus a relative discretisation bias."""
    x = np.asarray(x, np.float64)
    assert np.all(np.isfinite(x))
    nearest = np.argmin(((x[:, None] - np.asarray(mixture.means)) ** 2).sum(-1), axis=1)
    for k, (weight, mean, variance) in enumerate(
        zip(np.asarray(mixture.weights), np.asarray(mixture.means), np.asarray(mixture.variances), strict=True)
    ):
        rows = x[nearest == k]
        assert len(rows) / len(x) == pytest.approx(weight, abs=4.5 * (weight * (1 - weight) / len(x)) ** 0.5 + bias)
        deviation = variance**0.5
        np.testing.assert_allclose(rows.mean(0), mean, atol=deviation * (4.5 / len(rows) ** 0.5 + bias))
        np.testing.assert_allclose(rows.std(0), deviation, rtol=4.5 / (2 * len(rows)) ** 0.5 + 2 * bias)


def start(process, t, data=DATA):
    """Samples of x_t, so that the solver's error is all that is seen."""
    x_0 = data.sample(jax.random.key(1), N)
    return process.alpha(t) * x_0 + process.sigma(t) * jax.random.normal(jax.random.key(2), x_0.shape)


def run(solver, process, times, x, data=DATA):
    D = data.denoiser(process)
    return jax.jit(lambda x: sample(solver, process, D, jax.random.key(0), x, times))(x)


@pytest.mark.few(4)
@pytest.mark.parametrize("name", CASES)
def test_every_solver_reaches_the_mixture(name):
    case = CASES[name]
    data = mixture(case.dimension)
    times = case.grid(case.process, case.num_steps)
    x = run(case.solver, case.process, times, start(case.process, times[0], data), data)
    assert_samples_of(data.at(case.process, times[-1]), x, case.bias)


OTHER_PROCESSES = {"sub_vp": SubVP(), "ve": VE(), "rectified_flow": RectifiedFlow()}
STEPPERS = ["ddim", "heun", "ancestral_beta_tilde", "euler_maruyama", "reverse_diffusion"]


@pytest.mark.slow
@pytest.mark.parametrize("process", OTHER_PROCESSES)
@pytest.mark.parametrize("name", STEPPERS)
def test_solvers_suit_every_process(name, process):
    process = OTHER_PROCESSES[process]
    times = grids.uniform_log_snr(1e-2, 0.98)(process, 400)
    x = run(CASES[name].solver, process, times, start(process, times[0]))
    assert_samples_of(DATA.at(process, times[-1]), x, bias=0.03)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("table", ["linear", "cosine"])
def test_ddim_walks_any_subsequence_of_a_table_to_the_data(table, spacing):
    """t = 0 included, where sigma = 0."""
    process = DiscreteVP.from_betas(beta_table(table))
    times = grids.discrete(spacing)(process, 100)
    x = run(solvers.ddim(), process, times, start(process, times[0]))
    assert_samples_of(DATA, x, bias=0.06)


@pytest.mark.parametrize("name", ["ddim", "ancestral_beta_tilde", "ancestral_beta", "ddim_eta_one"])
def test_a_table_with_zero_terminal_snr_is_sampled_from_pure_noise(name):
    process = DiscreteVP.from_betas(rescale_zero_terminal_snr(beta_table("linear")))
    times = grids.discrete("trailing")(process, 200)
    x_T = jax.random.normal(jax.random.key(3), (N, 2))
    assert_samples_of(DATA, run(CASES[name].solver, process, times, x_T), bias=0.06)


@pytest.mark.slow
def test_predictor_corrector_ends_at_the_data():
    """The last step ends where sigma = 0 and there is no score to correct with."""
    process, case = DiscreteVP.from_betas(beta_table("linear")), CASES["predictor_corrector"]
    data = mixture(case.dimension)
    times = grids.discrete("leading")(process, 200)
    assert_samples_of(data, run(case.solver, process, times, start(process, times[0], data), data), bias=0.06)


@pytest.mark.few(1)
@pytest.mark.parametrize("dimension", [1, 2, 64])
def test_predictor_corrector_has_no_heavy_tails_in_few_dimensions(dimension):
    """Data N(0, 0.25 I): the predictor alone gives a standard deviation of 0.517."""
    process = VP()
    D = lambda x, t: 0.25 * process.alpha(t) / (0.25 * process.alpha(t) ** 2 + process.sigma(t) ** 2) * x
    solver = solvers.predictor_corrector(solvers.reverse_diffusion(), solvers.langevin_corrector(0.16))
    x_T = jax.random.normal(jax.random.key(3), (N, dimension))
    x = jax.jit(lambda x: sample(solver, process, D, jax.random.key(0), x, grids.uniform()(process, 100)))(x_T)
    assert float(x.std()) == pytest.approx(0.51, abs=0.03)
    assert float(jnp.abs(x).max()) < 6 * 0.52


def test_the_corrector_takes_a_score_of_zero():
    process, t = VP(), jnp.float32(0.5)
    D = lambda x, t: x / process.alpha(t)
    moved = solvers.langevin_corrector(0.16)(process, D, jax.random.split(jax.random.key(0), N), jnp.zeros((N, 1)), t)
    assert float(moved.std()) == pytest.approx(2 * 0.16 * float(process.sigma(t)), rel=0.05)


def test_the_corrector_alone_reaches_the_marginal():
    """From a wrong variance, Langevin steps at one time lead to the density of that time.

    With steps e = 2 (snr sigma)^2 the balance of E|x|^2 for a Gaussian of variance V is at V / (1 - e / 2 V).
    """
    process, t, snr, d = VP(), jnp.float32(0.5), 0.15, 64
    data = Mixture(weights=np.ones(1), means=np.full((1, d), 0.5), variances=np.array([0.04]))
    D = data.denoiser(process)
    correct = solvers.langevin_corrector(snr=snr, num_steps=200)
    keys = jax.random.split(jax.random.key(0), N)
    x = jax.jit(lambda x: correct(process, D, keys, x, t))(0.5 * start(process, t, data))
    target = data.at(process, t)
    deviation = float(target.variances[0]) ** 0.5
    np.testing.assert_allclose(x.mean(0), target.means[0], atol=4.5 * 1.05 * deviation / N**0.5)
    inflation = 1 / (1 - float((snr * process.sigma(t)) ** 2 / target.variances[0]))
    assert float(x.var(0).mean()) == pytest.approx(deviation**2 * inflation, rel=4.5 * (2 / (N * d)) ** 0.5 + 0.002)
