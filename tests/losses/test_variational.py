"""Learned variances and the losses of the bound, against their formulas written for a table of betas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import norm

from diffusion_jax import solvers
from diffusion_jax.config import build
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.guidance.thresholding import static
from diffusion_jax.losses import denoising_loss, hybrid_loss, vlb_loss
from diffusion_jax.losses.times import discrete, loss_second_moment
from diffusion_jax.losses.variational import bound_term
from diffusion_jax.losses.weightings import simple
from diffusion_jax.parameterizations import LearnedVariance, bound_to, eps_prediction
from diffusion_jax.processes import VP, DiscreteVP, beta_table, row_normal
from diffusion_jax.solvers import grids
from diffusion_jax.training.step import init_state, make_train_step
from tests.runs import digits

T = 20
BETAS = beta_table("cosine", T)
PROCESS = DiscreteVP.from_betas(BETAS)
LEVELS = 17


def table(betas):
    """The posterior of every step of a table: coefficients of x_t and x_0, and the variances with the first clipped."""
    bar = np.cumprod(1 - betas)
    before = np.append(1.0, bar[:-1])
    tilde = betas * (1 - before) / (1 - bar)
    tilde[0] = tilde[1]
    return np.sqrt(1 - betas) * (1 - before) / (1 - bar), np.sqrt(before) * betas / (1 - bar), tilde


@pytest.mark.parametrize("i", [1, 2, 11, T])
def test_a_term_of_the_bound_is_that_of_the_table(i):
    rng = np.random.default_rng(0)
    x_0 = 2 * rng.integers(0, LEVELS, (5, 3, 2)) / (LEVELS - 1) - 1
    x_hat, v = x_0 + 0.2 * rng.standard_normal(x_0.shape), rng.random(x_0.shape)
    _, b, tilde = table(BETAS)
    variance = np.exp(v * np.log(BETAS[i - 1]) + (1 - v) * np.log(tilde[i - 1]))
    if i == 1:
        low = np.where(x_0 < -0.99, -np.inf, x_0 - 1 / (LEVELS - 1))
        high = np.where(x_0 > 0.99, np.inf, x_0 + 1 / (LEVELS - 1))
        nats = -np.log(norm.cdf(high, x_hat, variance**0.5) - norm.cdf(low, x_hat, variance**0.5))
    else:
        squares = (b[i - 1] * (x_0 - x_hat)) ** 2
        nats = 0.5 * (tilde[i - 1] / variance - 1 + np.log(variance / tilde[i - 1]) + squares / variance)
    arrays = [jnp.asarray(a, jnp.float32) for a in (x_0, x_hat, v)]
    bits = jax.jit(bound_term, static_argnums=5)(PROCESS, *arrays, jnp.full(5, i / T, jnp.float32), LEVELS)
    np.testing.assert_allclose(bits, nats.reshape(5, -1).sum(1) / (6 * np.log(2)), rtol=2e-4)


@pytest.mark.parametrize("num_steps", [T, 5])
def test_a_respaced_chain_has_the_variances_of_its_own_table(num_steps):
    """Steps over a subsequence are those of the table of betas that skips the times between."""
    times = grids.discrete("linspace")(PROCESS, num_steps)
    bar = np.cumprod(1 - BETAS)[np.round(np.asarray(times[:-1]) * T).astype(int) - 1][::-1]
    betas = 1 - bar / np.append(1.0, bar[:-1])
    a, b, tilde = table(betas)
    keys = jax.random.split(jax.random.key(0), 4)
    x, v = jax.random.normal(jax.random.key(1), (4, 3)), jax.random.uniform(jax.random.key(2), (4, 3))
    D = LearnedVariance(lambda x, t, cond=None: (0.3 * x, v))
    z = row_normal(keys, x)
    step = jax.jit(lambda t, s: solvers.ancestral("learned").step(PROCESS, D, keys, x, t, s, ())[0])
    for i in range(num_steps):
        out = step(times[num_steps - 1 - i], times[num_steps - i])
        width = np.exp(0.5 * (v * np.log(betas[i]) + (1 - v) * np.log(tilde[i]))) if i else 0.0
        np.testing.assert_allclose(out, (a[i] + 0.3 * b[i]) * x + width * z, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(("v", "kind"), [(0.0, "beta_tilde"), (1.0, "beta")])
def test_the_ends_of_the_interpolation_are_the_fixed_variances(v, kind):
    keys, x = jax.random.split(jax.random.key(0), 4), jnp.ones((4, 3))
    D = LearnedVariance(lambda x, t, cond=None: (0.3 * x, jnp.full_like(x, v)))
    for t, s in ((0.9, 0.5), (1 / T, 0.0)):
        learned, fixed = (
            solvers.ancestral(variance).step(PROCESS, D, keys, x, jnp.float32(t), jnp.float32(s), ())[0]
            for variance in ("learned", kind)
        )
        np.testing.assert_allclose(learned, fixed, rtol=1e-5)


def test_clipping_and_conditions_keep_the_variance():
    D = LearnedVariance(lambda x, t, cond: (3 * x + cond["shift"], 0 * x + 0.25))
    bound = bound_to(static()(D), {"shift": jnp.float32(0.1)})
    x_0, v = bound.both(jnp.array([[0.1, 2.0]]), jnp.float32(0.5))
    np.testing.assert_allclose(x_0, [[0.4, 1.0]], rtol=1e-6)
    np.testing.assert_allclose(bound(jnp.array([[0.1, 2.0]]), jnp.float32(0.5)), x_0)
    np.testing.assert_allclose(v, 0.25)


def test_an_ordinary_denoiser_has_no_learned_variance():
    keys, x = jax.random.split(jax.random.key(0), 2), jnp.ones((2, 1))
    with pytest.raises(ValueError, match="variance is 'learned'"):
        solvers.ancestral("learned").step(PROCESS, lambda x, t: x, keys, x, jnp.float32(0.5), jnp.float32(0.4), ())


def network(params, x, c_noise, cond=None, *, key=None):
    """F = a x + b and v = tanh(c x), of twice the channels."""
    return jnp.concatenate([params["a"] * x + params["b"], jnp.tanh(params["c"] * x)], axis=-1)


PARAMS = {"a": jnp.float32(0.8), "b": jnp.float32(0.1), "c": jnp.float32(0.3)}
X_0 = 2 * jax.random.randint(jax.random.key(3), (64, 2), 0, LEVELS) / (LEVELS - 1) - 1


def test_the_hybrid_loss_moves_the_mean_as_the_simple_one_and_the_variance_as_the_bound():
    key, param, times = jax.random.key(0), eps_prediction(), discrete(T)
    mean_only = lambda *a, **k: network(*a, **k)[..., :2]
    losses = {
        "simple": denoising_loss(mean_only, param, PROCESS, simple(), times),
        "vlb": vlb_loss(network, param, PROCESS, times, LEVELS),
        "hybrid": hybrid_loss(network, param, PROCESS, simple(), times, LEVELS, vlb_weight=0.01),
    }
    value, gradient = {}, {}
    for name, loss in losses.items():
        compute = jax.jit(jax.value_and_grad(lambda p, loss=loss: loss(p, key, X_0)[0].mean()))
        value[name], gradient[name] = compute(PARAMS)
    assert value["hybrid"] == pytest.approx(float(value["simple"] + 0.01 * value["vlb"]), rel=1e-5)
    for name in ("a", "b"):
        assert gradient["hybrid"][name] == pytest.approx(float(gradient["simple"][name]), rel=1e-4)
        assert abs(float(gradient["vlb"][name])) > 1e-3
    assert gradient["hybrid"]["c"] == pytest.approx(0.01 * float(gradient["vlb"]["c"]), rel=1e-4)
    assert abs(float(gradient["vlb"]["c"])) > 1e-3


def test_times_by_importance_leave_the_loss_unbiased():
    """Under drawn times the mean of weighted losses is the sum over the table of the same losses."""
    resampler = loss_second_moment(T, history=2)
    seen = jnp.arange(1, T + 1) / T
    state = resampler.init()
    for _ in range(2):
        state = resampler.update(state, seen, 1 / seen)
    t, weight = jax.jit(lambda key: resampler.draw(state)(PROCESS, key, 20_000))(jax.random.key(0))
    p = 1 / np.arange(1, T + 1)
    counts = np.bincount(np.round(np.asarray(t) * T).astype(int), minlength=T + 1)[1:] / len(t)
    np.testing.assert_allclose(counts, 0.999 * p / p.sum() + 0.001 / T, atol=4.5 * 0.5 / len(t) ** 0.5)
    values = np.asarray(weight) * np.cos(3 * np.asarray(t))
    error = float(4.5 * values.std() / len(values) ** 0.5)
    assert values.mean() == pytest.approx(float(np.cos(3 * np.asarray(seen)).mean()), abs=error)
    loss = vlb_loss(network, eps_prediction(), PROCESS, discrete(T), LEVELS)
    key = jax.random.key(1)
    drawn, aux = loss(PARAMS, key, X_0, times=resampler.draw(state))
    np.testing.assert_allclose(drawn / aux["vlb"], resampler.draw(state)(PROCESS, jax.random.split(key, 3)[0], 64)[1])


def test_the_history_is_a_ring_per_time_and_times_are_uniform_until_it_is_full():
    resampler = loss_second_moment(3, history=2)
    state = resampler.update(resampler.init(), jnp.array([1, 1, 1, 2]) / 3, jnp.array([5.0, 6.0, 7.0, 8.0]))
    np.testing.assert_array_equal(state["losses"], [[7, 6], [8, 0], [0, 0]])
    np.testing.assert_array_equal(state["count"], [3, 1, 0])
    _, weight = resampler.draw(state)(PROCESS, jax.random.key(0), 10)
    np.testing.assert_allclose(weight, 1, rtol=1e-6)


@pytest.mark.few(1)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_resampler_follows_the_training(accumulate):
    system = build.system(iddpm("vlb", times__name="loss_second_moment"))
    optimizer = optax.sgd(1e-3)
    state = init_state(system, optimizer, (0.9,), jax.random.key(0))
    step = jax.jit(make_train_step(system, optimizer, num_steps=4, ema_rates=(0.9,), accumulate=accumulate))
    batch = {"x": 2 * jax.random.randint(jax.random.key(1), (8, 8, 8, 1), 0, LEVELS) / (LEVELS - 1) - 1}
    for seen in (8, 16):
        state, metrics = step(state, batch)
        history = state.params["frozen"]["resampler"]
        assert int(history["count"].sum()) == seen
        assert np.count_nonzero(history["losses"]) > 0
        assert np.isfinite(metrics["loss"])
    assert "frozen" not in state.ema["0.9"]


def iddpm(loss="hybrid", **changes):
    given = dict(
        process__name="discrete_vp",
        process__num_steps=T,
        parameterization__label="index",
        loss__name=loss,
        times__name="discrete",
        times__num_steps=T,
        network__out_channels=2,
        solver__name="ancestral",
        solver__variance="learned",
        sampling__grid__name="discrete",
        sampling__steps=4,
    )
    config = digits(**given)
    config.data.levels = LEVELS
    if "t_min" in config.times:
        del config.times["t_min"]
    for name, value in changes.items():
        section, key = name.split("__")
        config[section][key] = value
    return config


def test_a_configured_model_samples_and_reports_its_bound():
    config = iddpm()
    config.evaluation.likelihood = dict(name="bound", variance="learned")
    system = build.system(config)
    params = jax.jit(system.init)(jax.random.key(0))
    assert system.sample(params, jax.random.key(0), 3)["samples"].shape == (3, 8, 8, 1)
    batch = {"x": 2 * jax.random.randint(jax.random.key(1), (4, 8, 8, 1), 0, LEVELS) / (LEVELS - 1) - 1}
    figures = jax.jit(system.evaluate)(params, jax.random.key(0), batch)
    assert np.all(np.isfinite(figures["bits_per_dim"]))
    np.testing.assert_allclose(figures["bits_per_dim"], figures["rate"] + figures["distortion"], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(network__out_channels=1), "out_channels=1 must be 2 .* learns variances"),
        (dict(loss="denoising"), "out_channels=2 must be 1"),
        (dict(loss="denoising", network__out_channels=1), "config.solver.variance='learned' needs a config.loss.name"),
        (dict(process__name="vp"), "label='index' needs a discrete process"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    config = iddpm(**changes)
    if config.process.name == "vp":
        del config.process["num_steps"]
        config.sampling.grid.name = "uniform"
    with pytest.raises(ConfigError, match=message):
        build.system(config)


def test_a_continuous_process_has_no_terms():
    with pytest.raises(ValueError, match="VP is continuous"):
        vlb_loss(network, eps_prediction(), VP(), discrete(T))
