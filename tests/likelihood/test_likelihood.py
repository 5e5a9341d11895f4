"""log_prob against exact densities of mixtures and Gaussians, and rows that do not depend on each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax import processes
from diffusion_jax.config import build
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.likelihood import ode
from diffusion_jax.likelihood.ode import log_prob
from diffusion_jax.solvers import odes
from tests.oracles import PROCESSES, Gaussian, Mixture
from tests.runs import digits, parts_of, source_of, toy

KEY = jax.random.key(0)
T_MIN = 1e-5
FEW = ("vp", "ve", "rectified_flow", "discrete_vp")


def mixture(dim: int) -> Mixture:
    means = jax.random.normal(jax.random.key(1), (3, dim))
    return Mixture(weights=jnp.array([0.5, 0.3, 0.2]), means=means, variances=jnp.array([0.05, 0.2, 0.5]))


def on_mixture(process, dim: int, t_max: float = 1.0, **options):
    """A jitted log_prob with the exact denoiser and the exact density at t_max."""
    data = mixture(dim)
    end = functools.partial(data.log_prob, process, t=jnp.float32(t_max))
    options = dict(t_min=T_MIN, t_max=t_max, prior_log_prob=end) | options
    D = data.denoiser(process)
    return jax.jit(lambda x, ids=None: log_prob(process, D, KEY, x, ids=ids, **options))


@pytest.mark.parametrize(
    ("name", "dim"),
    [
        *(pytest.param(name, 2, marks=[] if name in FEW else [pytest.mark.slow]) for name in PROCESSES),
        ("vp", 16),
        pytest.param("rectified_flow", 16, marks=pytest.mark.slow),
    ],
)
def test_exact_trace_gives_the_true_density(name, dim):
    process = PROCESSES[name]
    x = mixture(dim).sample(jax.random.key(2), 64)
    result = on_mixture(process, dim, trace="exact", rtol=1e-6, atol=1e-6)(x)
    true = mixture(dim).log_prob(process, x, jnp.full(64, T_MIN))
    np.testing.assert_allclose(result.nats, true, rtol=0, atol=1e-3)
    assert result.latent.shape == x.shape


@pytest.mark.slow
def test_float64_reaches_the_tolerance():
    with jax.enable_x64(True):
        x = jnp.asarray(np.asarray(mixture(2).sample(jax.random.key(2), 16)), jnp.float64)
        result = on_mixture(processes.VP(), 2, trace="exact", rtol=1e-9, atol=1e-9, method="dopri8")(x)
        true = mixture(2).log_prob(processes.VP(), x, jnp.full(16, T_MIN, jnp.float64))
        assert result.nats.dtype == jnp.float64
        # What is left is the float32 of the mixture's own parameters at t_max, far below the tolerance of float32.
        np.testing.assert_allclose(result.nats, true, rtol=0, atol=1e-6)


@pytest.mark.few(2)
@pytest.mark.parametrize("method", odes.METHODS)
def test_methods_agree_and_count_their_evaluations(method):
    process, calls = processes.VP(), []
    data = mixture(2)
    exact = data.denoiser(process)

    def D(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return exact(x, t)

    x = data.sample(jax.random.key(2), 1)
    result = log_prob(
        process,
        D,
        KEY,
        x,
        trace="exact",
        t_min=1e-3,
        method=method,
        rtol=1e-4,
        atol=1e-4,
        prior_log_prob=lambda y: data.log_prob(process, y, jnp.float32(1)),
    )
    jax.effects_barrier()
    assert len(calls) == result.nfe[0]
    np.testing.assert_allclose(result.nats, data.log_prob(process, x, jnp.float32(1e-3)), atol=2e-2)


def test_the_latent_is_where_the_exact_flow_ends():
    data = Gaussian(mean=jnp.array([0.5, -1.0]), covariance=jnp.array([[0.5, 0.2], [0.2, 0.1]]))
    process, t_max = processes.Cosine(), 0.9
    x = data.sample(jax.random.key(3), 8)
    options = dict(t_max=t_max, rtol=1e-6, atol=1e-6)
    latent = jax.jit(lambda x: log_prob(process, data.denoiser(process), KEY, x, **options).latent)(x)
    expected = data.flow(process, x, jnp.float32(T_MIN), jnp.float32(t_max))
    np.testing.assert_allclose(latent, expected, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_hutchinson_is_unbiased():
    x = mixture(16).sample(jax.random.key(2), 1)
    process, num = processes.VP(), 2048
    copies = jnp.tile(x, (num, 1))
    options = dict(rtol=1e-5, atol=1e-5, t_min=1e-3)
    exact = on_mixture(process, 16, trace="exact", **options)(x).nats[0]
    for probe in ("rademacher", "gaussian"):
        draws = on_mixture(process, 16, probe=probe, **options)(copies).nats
        error = jnp.std(draws) / jnp.sqrt(num)
        assert error > 1e-3  # the probes matter
        assert abs(jnp.mean(draws) - exact) < 4 * error
    several = on_mixture(process, 16, probe="gaussian", num_probes=4, **options)(copies[: num // 4]).nats
    assert 0.35 < jnp.std(several) / jnp.std(draws) < 0.65  # 1 / sqrt(4)
    assert abs(jnp.mean(several) - exact) < 4 * jnp.std(several) / jnp.sqrt(num // 4)


def test_rademacher_has_no_variance_for_a_diagonal_jacobian():
    data = Gaussian(mean=jnp.zeros(8), covariance=jnp.diag(jnp.linspace(0.1, 2.0, 8)))
    process = processes.SubVP()
    x = jnp.tile(data.sample(jax.random.key(3), 1), (16, 1))

    @jax.jit
    def spread(x):
        results = [log_prob(process, data.denoiser(process), KEY, x, probe=p).nats for p in ("rademacher", "gaussian")]
        return jnp.stack([jnp.std(nats) for nats in results])

    rademacher, gaussian = spread(x)
    assert rademacher < 1e-4 < 0.1 < gaussian


@pytest.mark.slow
def test_a_row_does_not_depend_on_its_batch():
    """In double precision: whether a step is accepted must not hang on the rounding of one batch size's program."""
    with jax.enable_x64(True):
        compute, ids = on_mixture(processes.VP(), 2), jnp.arange(8)
        x = mixture(2).sample(jax.random.key(2), 8)
        alone = compute(x, ids)
        assert alone.nats.dtype == jnp.float64
        # Very far away the flow is nearly straight; at some distance a row takes more steps.
        easy, hard = (compute(x.at[3].set(jnp.array(row)), ids) for row in ((100.0, 100.0), (8.0, -6.0)))
        others = np.delete(np.arange(8), 3)
        assert hard.nfe[3] > 1.2 * easy.nfe[3]
        for batch in (easy, hard):
            np.testing.assert_array_equal(alone.nfe[others], batch.nfe[others])
            np.testing.assert_array_equal(alone.nats[others], batch.nats[others])
        order = jnp.array([5, 2, 7, 1, 0, 3, 6, 4])
        mixed = compute(x[order], order)
        np.testing.assert_allclose(mixed.nats, alone.nats[order], rtol=0, atol=1e-9)
        np.testing.assert_array_equal(mixed.nfe, alone.nfe[order])
        part = compute(x[4:6], jnp.arange(4, 6))
        np.testing.assert_allclose(part.nats, alone.nats[4:6], rtol=0, atol=1e-9)
        np.testing.assert_array_equal(part.nfe, alone.nfe[4:6])


def test_conditions_bound_into_the_denoiser_keep_their_rows():
    process = processes.VP()
    means = jnp.array([-1.0, 0.0, 2.0])

    def D(x, t):  # row r is N(means[r], 0.25), as a label per row would have it
        a, s = processes.bcast(process.alpha(t), x), processes.bcast(process.sigma(t), x)
        mean = means[:, None]
        return mean + a * 0.25 / (a**2 * 0.25 + s**2) * (x - a * mean)

    x = jnp.zeros((3, 1))

    def normal(x, mean, variance):
        return -0.5 * (x[:, 0] - mean) ** 2 / variance - 0.5 * jnp.log(2 * jnp.pi * variance)

    def end(x):
        one = jnp.float32(1.0)
        return normal(x, process.alpha(one) * means, process.alpha(one) ** 2 * 0.25 + process.sigma(one) ** 2)

    options = dict(trace="exact", rtol=1e-6, atol=1e-6, prior_log_prob=end)
    nats = jax.jit(lambda x: log_prob(process, D, KEY, x, **options).nats)(x)
    np.testing.assert_allclose(nats, normal(x, means, 0.25), rtol=0, atol=1e-3)


def test_inside_a_scan():
    compute = on_mixture(processes.VP(), 2)
    x = mixture(2).sample(jax.random.key(2), 8)
    _, nats = jax.jit(lambda x: jax.lax.scan(lambda c, part: (c, compute(part).nats), 0, x))(x.reshape(2, 4, 2))
    # Two programs round differently, which may change a step: they agree as well as the integration is accurate.
    np.testing.assert_allclose(nats[0], compute(x[:4]).nats, rtol=0, atol=1e-3)


def test_a_row_that_does_not_arrive_is_nan():
    x = mixture(2).sample(jax.random.key(2), 4)
    assert np.isnan(on_mixture(processes.VP(), 2, max_steps=3)(x).nats).all()


def test_not_finite_examples_do_not_spread():
    compute = on_mixture(processes.VP(), 2)
    x = mixture(2).sample(jax.random.key(2), 8)
    nats = compute(x.at[0, 0].set(jnp.nan)).nats
    assert np.isnan(nats[0])
    np.testing.assert_array_equal(nats[1:], compute(x).nats[1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(trace="full"), "trace is 'full'; choose hutchinson or exact"),
        (dict(probe="sphere"), "probe is 'sphere'"),
        (dict(num_probes=0), "num_probes is 0"),
        (dict(method="rk4"), "method is 'rk4'; choose one of heun, bosh3, tsit5, dopri5, dopri8"),
        (dict(rtol=0.0), "rtol is 0.0; it must be positive"),
        (dict(atol=-1.0), "atol is -1.0"),
        (dict(max_steps=0), "max_steps is 0"),
        (dict(t_min=-0.1), "0 <= t_min < t_max <= 1"),
        (dict(t_min=0.5, t_max=0.5), "0 <= t_min < t_max <= 1"),
        (dict(t_max=1.5), "t_max is 1.5"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        log_prob(processes.VP(), lambda x, t: x, KEY, jnp.zeros((2, 2)), **options)
    with pytest.raises(ValueError, match=message):
        ode.ode_likelihood(**options)


def test_refuses_no_examples():
    with pytest.raises(ValueError, match=r"x_0 must hold examples, got shape \(0, 2\)"):
        log_prob(processes.VP(), lambda x, t: x, KEY, jnp.zeros((0, 2)))
    with pytest.raises(ValueError, match="x_0 has 1 NaN or infinite values"):
        log_prob(processes.VP(), lambda x, t: x, KEY, jnp.array([[0.0, jnp.nan]]))
    with pytest.raises(ValueError, match="dequantization is 'flow'"):
        ode.ode_likelihood(dequantization="flow")


def test_metrics_of_evaluation():
    process, data = processes.VP(), Gaussian(mean=jnp.zeros(4), covariance=0.1 * jnp.eye(4))
    x = jnp.linspace(-1, 1, 5)[:, None] * jnp.ones(4)

    @jax.jit
    def compute(x):
        continuous = ode.ode_likelihood(dequantization="none", trace="exact")(process, data.denoiser(process), KEY, x)
        return continuous, ode.ode_likelihood(levels=5, trace="exact")(process, data.denoiser(process), KEY, x)

    continuous, discrete = compute(x)
    assert continuous.keys() == {"bits_per_dim", "nats", "nfe"}
    true = data.log_prob(process, x, jnp.float32(T_MIN))
    np.testing.assert_allclose(continuous["nats"], true, rtol=0, atol=2e-3)
    np.testing.assert_allclose(continuous["bits_per_dim"], -continuous["nats"] / (4 * np.log(2)), rtol=1e-5)
    np.testing.assert_allclose(discrete["bits_per_dim"], -discrete["nats"] / (4 * np.log(2)) + np.log2(2.5), rtol=1e-5)


def configured(likelihood, make=toy, **changes):
    config = make(**changes)
    config.evaluation.likelihood = ConfigDict(likelihood)
    return config


@pytest.mark.parametrize(
    ("likelihood", "make", "changes", "names"),
    [
        (dict(name="ode", dequantization="none", rtol=1e-3, atol=1e-3), toy, {}, {"nats", "nfe"}),
        (
            dict(name="bound", steps=3),
            digits,
            dict(data__levels=17, sampling__grid=ConfigDict(dict(name="uniform"))),
            {"rate", "distortion", "prior", "rmse"},
        ),
    ],
)
def test_a_config_gives_the_metrics(likelihood, make, changes, names):
    config = configured(likelihood, make)
    for name, value in changes.items():
        section, key = name.split("__")
        config[section][key] = value
    system = build.system(config)
    x = jnp.asarray(source_of(config).batch(np.arange(4))["x"])
    evaluate = jax.jit(lambda key, x: system.evaluate(system.init(key), key, {"x": x}))
    metrics = evaluate(jax.random.key(0), x)
    assert metrics.keys() == {"loss", "bits_per_dim"} | names
    assert all(value.shape == (4,) and np.isfinite(value).all() for value in metrics.values())


@pytest.mark.parametrize(
    ("likelihood", "changes", "message"),
    [
        (dict(name="odes"), {}, r"evaluation\.likelihood\.name='odes' is unknown.*choose one of none, ode, bound"),
        (dict(name="ode", rtl=1.0), {}, "takes no 'rtl'"),
        (dict(name="ode", trace="full"), {}, "trace is 'full'"),
        (dict(name="bound"), {}, "steps=0.*'vp' is continuous"),
        (dict(name="bound", variance="gamma"), {}, "variance is 'gamma'"),
        (
            dict(name="ode", dequantization="none"),
            dict(
                process__name="cosine",
                times__t_max=0.99,
                sampling__grid=ConfigDict(dict(name="uniform", t_max=0.99)),
            ),
            r"process\.name='cosine'.* t = 1",
        ),
    ],
)
def test_a_config_is_refused(likelihood, changes, message):
    with pytest.raises(ConfigError, match=message):
        build.system(configured(likelihood, **changes))


def test_levels_that_are_not_those_of_the_data_are_refused():
    config = configured(dict(name="ode"), digits)
    config.data.levels = 5
    with pytest.raises(ConfigError, match=r"evaluation\.likelihood \(ode\): levels is 5, but x holds"):
        source_of(config)
    config.data.levels = 17
    assert source_of(config).facts["levels"] == 17
    config.evaluation.likelihood.dequantization = "none"
    assert parts_of(config).likelihood_levels == 0
