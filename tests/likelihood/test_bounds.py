"""The discrete variational bound, term by term, against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from diffusion_jax import processes
from diffusion_jax.likelihood import bounds
from diffusion_jax.parameterizations import LearnedVariance
from diffusion_jax.solvers import grids
from tests.oracles import PROCESSES, Gaussian

KEY = jax.random.key(0)
VARIANCES = ("beta", "beta_tilde")
DATA = Gaussian(mean=jnp.array([0.3, -0.2]), covariance=jnp.array([[0.3, 0.1], [0.1, 0.2]]))


def discrete_vp(num_steps: int = 20) -> processes.DiscreteVP:
    return processes.DiscreteVP.from_betas(processes.beta_table("linear", num_steps, beta_start=5e-3, beta_end=0.5))


def closed_form(process, times, variance: str) -> tuple[np.ndarray, float]:
    """E[L_{t-1}] for every step but the last, and E[L_T], of Gaussian data with its exact denoiser, in nats.

    Products of float64 numbers that share nothing with the library but alpha and sigma at the times.
    """
    alpha, sigma = np.float64(process.alpha(times)), np.float64(process.sigma(times))
    variances = np.linalg.eigvalsh(np.float64(DATA.covariance))
    terms = []
    for a_t, s_t, a_s, s_s in zip(alpha[:-2], sigma[:-2], alpha[1:-1], sigma[1:-1], strict=True):
        beta = s_t**2 - (a_t / a_s) ** 2 * s_s**2
        beta_tilde = beta * s_s**2 / s_t**2
        p = beta if variance == "beta" else beta_tilde
        # Posterior variance of every principal axis; the means differ by a_s beta / s_t^2 times the error of D.
        error = np.sum(variances * s_t**2 / (a_t**2 * variances + s_t**2))
        kl = 0.5 * 2 * (np.log(p / beta_tilde) + beta_tilde / p - 1)
        terms.append(kl + (a_s * beta / s_t**2) ** 2 * error / (2 * p))
    second_moment = np.sum(variances) + np.sum(np.float64(DATA.mean) ** 2)
    return np.array(terms), 0.5 * alpha[0] ** 2 * second_moment / sigma[0] ** 2  # the prior has the sigma of times[0]


GRIDS = {
    "discrete_vp": (discrete_vp(), grids.discrete(), 20),
    "respaced": (discrete_vp(), grids.discrete("trailing"), 7),
    "vp": (PROCESSES["vp"], grids.uniform_log_snr(t_min=1e-2), 12),
    "ve": (PROCESSES["ve"], grids.uniform(t_min=0.0), 12),
    "rectified_flow": (PROCESSES["rectified_flow"], grids.uniform(t_max=0.95), 12),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", GRIDS)
def test_terms_equal_their_closed_form_on_gaussian_data(name):
    process, grid, steps = GRIDS[name]
    times, n = grid(process, steps), 20_000
    x_0 = DATA.sample(jax.random.key(1), n)

    @jax.jit
    def compute(x_0):
        D = DATA.denoiser(process)
        return [bounds.discrete_bound(process, D, KEY, x_0, times, variance=v) for v in VARIANCES]

    for variance, result in zip(VARIANCES, compute(x_0), strict=True):
        expected, prior = closed_form(process, times, variance)
        terms = np.asarray(result["terms"], np.float64)
        assert terms.shape == (steps - 1, n)
        error = terms.std(axis=1) / np.sqrt(n)
        np.testing.assert_array_less(np.abs(terms.mean(axis=1) - expected), 4.5 * error + 2e-4 * expected)
        assert (error < 0.02 * expected + 1e-6).all()  # so that the comparison has teeth
        drawn = np.asarray(result["prior"], np.float64)
        np.testing.assert_allclose(drawn.mean(), prior, rtol=0, atol=5 * drawn.std() / np.sqrt(n) + 1e-5)


def test_a_term_is_the_kl_of_its_two_gaussians():
    """posterior_kl against the integral of q (log q - log p), by quadrature in one dimension."""
    process, t, s = discrete_vp(), jnp.float32(0.6), jnp.float32(0.3)
    a, b, v = (float(c) for c in bounds.posterior(process, t, s))
    x_t, x_0, x_hat, variance = 0.4, 0.7, -0.2, 0.05
    x = np.linspace(-6, 6, 200_001)
    q = norm.logpdf(x, a * x_t + b * x_0, np.sqrt(v))
    p = norm.logpdf(x, a * x_t + b * x_hat, np.sqrt(variance))
    expected = np.sum(np.exp(q) * (q - p)) * (x[1] - x[0])
    row = lambda value: jnp.full((1, 1), value)
    result = bounds.posterior_kl(process, t, s, row(x_0), row(x_hat), jnp.float32(variance))
    assert result.shape == (1,)
    assert float(result[0]) == pytest.approx(float(expected), rel=1e-4)
    # A variance per row and per value is the same number; three equal dimensions triple it.
    three = jnp.ones((1, 3))
    for form in (jnp.full(1, variance), jnp.full((1, 3), variance)):
        kl = bounds.posterior_kl(process, t, s, x_0 * three, x_hat * three, form)
        np.testing.assert_allclose(kl, 3 * result, rtol=1e-5)
    times = jnp.full(1, t), jnp.full(1, s)
    np.testing.assert_allclose(
        bounds.posterior_kl(process, *times, row(x_0), row(x_hat), jnp.float32(variance)), result, rtol=1e-6
    )


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_decoder_is_a_distribution_over_the_levels(levels):
    x = jnp.asarray(2 * np.arange(levels) / (levels - 1) - 1, jnp.float32)[:, None]
    for mean, std in ((0.13, 0.2), (-0.9, 0.01), (3.0, 0.5)):
        nats = bounds.decoder_nats(x, jnp.full_like(x, mean), jnp.float32(std**2), levels)
        np.testing.assert_allclose(np.exp(-np.asarray(nats, np.float64)).sum(), 1, rtol=0, atol=1e-4)


def test_decoder_in_the_far_tail():
    """Where both distribution functions round to 1: compared with the density times the width, and with symmetry."""
    x = jnp.array([[0.5]])
    far = bounds.decoder_nats(x, jnp.array([[-0.5]]), jnp.float32(0.01**2))
    with jax.enable_x64(True):
        width, z = 1 / 255, (1.0 - np.linspace(-1, 1, 2001) / 255) / 0.01
        expected = -(np.log(np.mean(np.exp(-(z**2) / 2 + 5000))) - 5000 + np.log(2 * width / 0.01 / np.sqrt(2 * np.pi)))
    assert float(far[0]) == pytest.approx(expected, rel=1e-3)
    mirrored = bounds.decoder_nats(-x, jnp.array([[0.5]]), jnp.float32(0.01**2))
    np.testing.assert_allclose(mirrored, far, rtol=1e-5)


LEVELS, PROBABILITY = 5, np.array([0.1, 0.35, 0.05, 0.3, 0.2])
POINTS = jnp.asarray(2 * np.arange(LEVELS) / (LEVELS - 1) - 1, jnp.float32)


def level_denoiser(process):
    """E[x_0 | x_t] of independent dimensions that take LEVELS values with PROBABILITY."""

    def D(x, t):
        alpha, sigma = process.alpha(t), process.sigma(t)
        logits = jnp.log(PROBABILITY) - (x[..., None] - alpha * POINTS) ** 2 / (2 * sigma**2)
        return jax.nn.softmax(logits, axis=-1) @ POINTS

    return D


def test_is_a_bound_and_tightens_with_the_number_of_steps():
    """The exact denoiser of discrete data: the mean stays above the entropy and comes to it as T grows."""
    entropy = -np.sum(PROBABILITY * np.log2(PROBABILITY))
    k = np.random.default_rng(0).choice(LEVELS, (2000, 4), p=PROBABILITY)
    x_0 = POINTS[k]
    process = processes.VP()
    gaps = []
    for steps in (32, 128, 512):
        likelihood = bounds.bound_likelihood(grid=grids.uniform_log_snr(t_min=1e-3), steps=steps, levels=LEVELS)
        metrics = jax.jit(functools.partial(likelihood, process, level_denoiser(process), KEY))(x_0)
        bits = np.asarray(metrics["bits_per_dim"], np.float64)
        # Compared with the code length of the same examples, which removes most of the sampling noise.
        code = -np.log2(PROBABILITY[k]).mean(axis=1)
        gap, error = (bits - code).mean(), (bits - code).std() / np.sqrt(len(bits))
        assert gap > -4 * error
        gaps.append(gap)
    assert gaps[2] < 0.03 * entropy
    assert 3 < gaps[1] / gaps[2] < 6  # in proportion to 1 / T
    np.testing.assert_allclose(metrics["bits_per_dim"], metrics["rate"] + metrics["distortion"], rtol=1e-5)
    assert (np.asarray(metrics["prior"]) <= np.asarray(metrics["rate"])).all()


def test_rate_distortion_and_rmse():
    process = discrete_vp()
    x_0 = POINTS[np.random.default_rng(0).choice(LEVELS, (64, 4), p=PROBABILITY)]
    off = 0.25  # a denoiser that is off by half a level everywhere
    likelihood = bounds.bound_likelihood(grid=grids.discrete(), levels=LEVELS)
    metrics = jax.jit(lambda x: likelihood(process, lambda x_t, t: x + off, KEY, x))(x_0)
    np.testing.assert_allclose(metrics["rmse"], 0.25 * (LEVELS - 1) / 2, rtol=1e-5)
    times = grids.discrete()(process, 20)
    _, _, variance = bounds.posterior(process, times[-3], times[-2])
    decoder = bounds.decoder_nats(x_0, x_0 + off, variance, LEVELS)
    np.testing.assert_allclose(metrics["distortion"], decoder / (4 * np.log(2)), rtol=1e-5)
    # Every L_{t-1} is b^2 off^2 / (2 beta_tilde) per dimension.
    _, b, v = jax.vmap(functools.partial(bounds.posterior, process))(times[:-2], times[1:-1])
    rate = np.sum(b**2 * off**2 / (2 * v)) / np.log(2) + np.asarray(metrics["prior"])
    np.testing.assert_allclose(metrics["rate"], rate, rtol=1e-4)


def learned(D, v):
    """A denoiser with learned variances that do not vary: v everywhere."""
    return LearnedVariance(lambda x, t, cond=None: (D(x, t), jnp.full_like(x, v)))


@pytest.mark.slow
def test_learned_variances_at_their_ends_are_the_fixed_ones():
    process, x_0 = discrete_vp(), DATA.sample(jax.random.key(1), 16)
    times = grids.discrete()(process, 20)

    @jax.jit
    def compute(x_0):
        D = DATA.denoiser(process)
        fixed = {v: bounds.discrete_bound(process, D, KEY, x_0, times, variance=v) for v in VARIANCES}
        return fixed, [
            bounds.discrete_bound(process, learned(D, v), KEY, x_0, times, variance="learned") for v in (0.0, 1.0, 0.5)
        ]

    fixed, (low, high, middle) = compute(x_0)
    np.testing.assert_allclose(low["terms"], fixed["beta_tilde"]["terms"], rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(high["terms"], fixed["beta"]["terms"], rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(low["decoder"], fixed["beta_tilde"]["decoder"], rtol=1e-5)
    assert (np.abs(middle["terms"] - low["terms"]) > 1e-6).any()


def test_continuous_bound_is_tight_for_the_exact_denoiser():
    """On average over a row's own randomness it is -log p of that row; p_0 is blurred by less than 1e-3 in variance."""
    process, n = processes.VP(), 65_536
    rows = jnp.array([[0.3, -0.2], [1.2, -1.0], [-0.5, 0.6]])
    x_0 = jnp.repeat(rows, n, axis=0)
    compute = jax.jit(lambda x: bounds.continuous_bound(process, DATA.denoiser(process), KEY, x, t_min=1e-3))
    nats = np.asarray(compute(x_0), np.float64).reshape(3, n)
    true = -np.asarray(DATA.log_prob(process, rows, jnp.zeros(3)))
    error = nats.std(axis=1) / np.sqrt(n)
    assert (error < 0.1).all()
    np.testing.assert_array_less(np.abs(nats.mean(axis=1) - true), 4 * error + 5e-3)
    worse = jax.jit(lambda x: bounds.continuous_bound(process, lambda x, t: 0 * x, KEY, x, t_min=1e-3))(x_0)
    assert worse.mean() > nats.mean() + 1
    np.testing.assert_allclose(compute(x_0[:n])[:16], nats[0, :16], rtol=1e-4, atol=1e-4)


def test_a_row_does_not_depend_on_its_batch():
    process, x_0 = discrete_vp(), DATA.sample(jax.random.key(1), 6)
    compute = jax.jit(
        functools.partial(bounds.bound_likelihood(grid=grids.discrete()), process, DATA.denoiser(process), KEY)
    )
    whole, part = compute(x_0), compute(x_0[:4])
    for name, values in whole.items():
        np.testing.assert_allclose(part[name], values[:4], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(variance="gamma"), "variance is 'gamma'; choose beta, beta_tilde or learned"),
        (dict(levels=1), "levels is 1; it must be at least 2"),
        (dict(steps=1), "steps is 1; it must be at least 2"),
        (dict(steps=-3), "steps is -3"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        bounds.bound_likelihood(grid=grids.discrete(), **options)


def test_refuses_what_does_not_fit():
    process, x_0 = discrete_vp(), jnp.zeros((2, 2))
    times = grids.discrete()(process, 20)
    with pytest.raises(ValueError, match="variance is 'learned'"):
        bounds.discrete_bound(process, DATA.denoiser(process), KEY, x_0, times, variance="learned")
    with pytest.raises(ValueError, match="times has 2 entries"):
        bounds.discrete_bound(process, DATA.denoiser(process), KEY, x_0, times[:2])


def test_a_step_from_a_time_to_itself_adds_nothing():
    process, times = processes.VP(), jnp.array([1.0, 1.0, 0.6, 0.3, 0.0])  # as of the grid `levels`
    x_0 = DATA.sample(jax.random.key(3), 4)
    terms = bounds.discrete_bound(process, DATA.denoiser(process), KEY, x_0, times)["terms"]
    np.testing.assert_array_equal(terms[0], 0)
    assert np.isfinite(terms).all() and (terms[1:] > 0).all()
