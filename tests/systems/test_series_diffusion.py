"""Imputation and forecasting of series whose conditional laws are known exactly, and what must not matter."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax import parameterizations, solvers
from diffusion_jax.config import build
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.guidance.measurement import METHODS
from diffusion_jax.guidance.observation import interpolation, known_values, observation, observed
from diffusion_jax.losses import denoising_loss, targets, weightings
from diffusion_jax.modalities import series as modality
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.networks.csdi import CSDI
from diffusion_jax.networks.functional import functional
from diffusion_jax.processes import VP
from diffusion_jax.run import evaluate, sample, train
from diffusion_jax.solvers import grids
from diffusion_jax.systems import Diffusion, SeriesDiffusion
from diffusion_jax.systems.scaling import REFERENCES, SCALINGS
from tests.config.test_configs import read
from tests.oracles import Gaussian, network_of
from tests.runs import changed

SHAPE, PROCESS = (6, 2), VP()
PARAM = parameterizations.eps_prediction()
GAPS = np.zeros(SHAPE, bool)
GAPS[[1, 2, 4], [0, 1, 0]] = True
FUTURE = np.zeros(SHAPE, bool)
FUTURE[-2:] = True


def process_of_series() -> Gaussian:
    """A Gaussian process: an exponential kernel in time, a correlation of 0.8 between two channels, a level."""
    times = np.arange(SHAPE[0])
    kernel = np.kron(np.exp(-np.abs(times[:, None] - times) / 6), [[1.0, 0.8], [0.8, 1.0]])
    mean = np.tile([0.5, -0.3], SHAPE[0])
    return Gaussian(mean=jnp.float32(mean), covariance=jnp.float32(kernel + 0.05 * np.eye(len(kernel))))


LAW = process_of_series()


def conditional(hidden: np.ndarray, known: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean [batch, n], covariance [n, n]) of the hidden values given the known ones [batch, *SHAPE]."""
    at = np.flatnonzero(hidden)
    there = np.flatnonzero(~hidden)
    gain = jnp.linalg.solve(LAW.covariance[np.ix_(there, there)], LAW.covariance[np.ix_(there, at)]).T
    values = known.reshape(len(known), -1)[:, there]
    mean = LAW.mean[at] + (values - LAW.mean[there]) @ gain.T
    return mean, LAW.covariance[np.ix_(at, at)] - gain @ LAW.covariance[np.ix_(there, at)]


def exact_network(hidden: np.ndarray, reference: str = "none"):
    """The network whose denoiser is exact under the condition "known"; it is NaN if it reads what is hidden there."""
    at = np.flatnonzero(hidden)

    def apply(params, x_in, c_noise, cond, *, key=None):
        mean, covariance = conditional(hidden, cond["known"])
        mean = mean - REFERENCES[reference](cond["known"]).reshape(len(mean), -1)[:, at]

        def D(x, t, cond=None):
            x_t = x.reshape(len(x), -1)[:, at]
            exact = Gaussian(mean=jnp.zeros(len(at)), covariance=covariance).denoiser(PROCESS)
            shifted = x_t - PROCESS.alpha(t)[:, None] * mean
            return jnp.zeros((len(x), math.prod(SHAPE))).at[:, at].set(mean + exact(shifted, t)).reshape(x.shape)

        return network_of(D, PARAM, PROCESS)(x_in, c_noise)

    return apply


def system(
    apply, conditions=None, solver=None, steps=40, scaling="none", reference="none", operator=None, **fields
) -> SeriesDiffusion:
    operator = operator or observed(SHAPE, horizon=2)
    conditions = Conditions({"known": known_values(operator)}) if conditions is None else conditions
    diffusion = Diffusion(
        init_network=lambda key: {},
        apply=apply,
        process=PROCESS,
        param=PARAM,
        loss_fn=denoising_loss(apply, PARAM, PROCESS, weightings.simple()),
        solver=solver or solvers.sde_dpm_solver_pp(),
        grid=grids.quadratic(t_min=1e-4),
        steps=steps,
        shape=SHAPE,
        modality="series",
        network_conditions=conditions,
        batch_size=8192,
        **fields,
    )
    return SeriesDiffusion(
        diffusion=diffusion,
        operator=operator,
        targets=targets.forecast(2),
        scaling=SCALINGS[scaling],
        reference=REFERENCES[reference],
    )


def drawn(model: SeriesDiffusion, hidden: np.ndarray, num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(samples, known): `num` samples under the known values of one draw of the process."""
    x = np.asarray(LAW.sample(jax.random.key(seed), 1)).reshape(1, *SHAPE)
    known = np.repeat(np.where(hidden, np.nan, x), num, axis=0).astype(np.float32)
    return model.sample({"network": {}}, jax.random.key(1), num, {"known": known})["samples"], known


def errors(samples: np.ndarray, known: np.ndarray, hidden: np.ndarray) -> tuple[float, float]:
    """The largest errors of mean and covariance of samples of the hidden values."""
    mean, covariance = conditional(hidden, known[:1])
    found = samples.reshape(len(samples), -1)[:, np.flatnonzero(hidden)]
    return float(np.abs(found.mean(0) - mean[0]).max()), float(np.abs(np.cov(found.T) - covariance).max())


@pytest.mark.parametrize(
    ("hidden", "solver", "reference"),
    [
        (GAPS, solvers.heun(), "none"),
        (GAPS, solvers.heun(), "interpolation"),
        (FUTURE, solvers.sde_dpm_solver_pp(), "none"),
    ],
    ids=["gaps-heun", "gaps-heun-interpolation", "future-sde_dpm_solver_pp"],
)
def test_the_exact_denoiser_draws_the_conditional_law(hidden, solver, reference):
    model = system(exact_network(hidden, reference), solver=solver, reference=reference)
    samples, known = drawn(model, hidden, 4096)
    np.testing.assert_array_equal(samples[:, ~hidden], known[:, ~hidden])
    off, spread = errors(samples, known, hidden)
    assert off < 0.06 and spread < 0.06


def test_interpolation_is_that_of_numpy():
    """With gaps at both ends, a series with one known value, and one with none."""
    rng = np.random.default_rng(0)
    known = rng.standard_normal((3, 9, 4)).astype(np.float32)
    known[rng.uniform(size=known.shape) < 0.5] = np.nan
    known[0, :, 0] = np.nan
    known[0, :, 1] = np.where(np.arange(9) == 4, 2.5, np.nan)
    steps = np.arange(9)
    rows = (a.swapaxes(1, 2).reshape(-1, 9) for a in (known, interpolation(known)))
    for series, found in zip(*rows, strict=True):
        there = np.isfinite(series)
        expected = np.interp(steps, steps[there], series[there]) if there.any() else np.zeros(9)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_loss_is_that_of_what_is_left_of_the_reference(network):
    """A line with gaps is its interpolation: x_0 = 0 there, whatever its slope. Without a reference it is not."""
    apply, params = network
    lines = jnp.arange(6.0)[None, :, None] * jnp.array([1.0, 5.0])[:, None, None] * jnp.ones((2, *SHAPE))
    blind = lambda params, x, c_noise, cond, *, key=None: apply(params, x, c_noise, None, key=key)
    inside = lambda key, present: present & ~GAPS
    found = {}
    for reference in REFERENCES:
        model = dataclasses.replace(system(blind, reference=reference), targets=inside)
        loss = jax.jit(lambda x, model=model: model.loss({"network": params}, jax.random.key(1), {"x": x}, None)[0])
        found[reference] = np.abs(loss(lines) - loss(3 * lines)).max()
    assert found["interpolation"] < 1e-5 < 1e-2 < found["none"]


def test_forecasts_of_the_exact_denoiser_have_the_exact_scores():
    """CRPS is the mean standard deviation over sqrt(pi) and 90 % of the true values lie in the interval of 90 %."""
    num, m = 256, 32
    truth = np.asarray(LAW.sample(jax.random.key(2), num)).reshape(num, *SHAPE)
    model = system(exact_network(FUTURE))
    known = np.tile(model.operator.measure(truth), (m, 1, 1))
    samples = model.sample({"network": {}}, jax.random.key(3), m * num, {"known": known})["samples"]
    scores = modality.scores(samples.reshape(m, num, *SHAPE), truth, known[:num], 2, 1)
    _, covariance = conditional(FUTURE, jnp.asarray(known[:1]))
    assert scores["crps"] == pytest.approx(np.sqrt(np.diag(covariance)).mean() / math.sqrt(math.pi), abs=0.03)
    assert scores["coverage_90"] == pytest.approx(0.9, abs=0.04)
    assert scores["num_windows"] == num and scores["samples_per_window"] == m
    wide = modality.scores(2 * samples.reshape(m, num, *SHAPE), truth, known[:num], 2, 1)
    assert wide["crps"] > 1.1 * scores["crps"]


def guided(guidance, solver=None) -> SeriesDiffusion:
    """The exact unconditional model, steered by known values."""
    flat = LAW.denoiser(PROCESS)
    D = lambda x, t, cond=None: flat(x.reshape(len(x), -1), t).reshape(x.shape)
    net = network_of(D, PARAM, PROCESS)
    return system(
        lambda params, *inputs, **options: net(*inputs, **options),
        Conditions(),
        solver=solver,
        guidance=guidance,
        steps=60,
    )


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [GAPS, FUTURE], ids=["gaps", "future"])
def test_guidance_with_the_exact_likelihood_draws_the_conditional_law(hidden):
    method = METHODS["mmps"](iterations=12)
    samples, known = drawn(guided(observation(SHAPE, method=method, noise=0.02)), hidden, 4096)
    off, spread = errors(samples, known, hidden)
    assert off < 0.06 and spread < 0.07


@pytest.mark.slow
def test_replacement_is_not_the_conditional_law():
    """The negative control of the tests above: known values that are noised anew in every step say too little."""
    x = np.asarray(LAW.sample(jax.random.key(0), 1)).reshape(1, *SHAPE)
    known = np.where(FUTURE, np.nan, x)
    seen = jnp.asarray(np.nan_to_num(known))
    keep = lambda x, given: jnp.where(FUTURE, x, given)
    D = guided(observation(SHAPE)).diffusion.denoiser({"network": {}})
    image = jnp.repeat(seen[:1], 4096, 0)
    solver = solvers.replaced(solvers.ancestral(), image, keep)
    x_T = jax.random.normal(jax.random.key(0), image.shape)
    times = grids.quadratic(t_min=1e-4)(PROCESS, 100)
    found = np.asarray(jax.jit(lambda x: solvers.sampling.sample(solver, PROCESS, D, jax.random.key(1), x, times))(x_T))
    off, spread = errors(np.where(FUTURE, found, known[:1]), known, FUTURE)
    assert max(off, spread) > 0.12


@pytest.mark.slow
def test_self_guidance_pulls_samples_to_the_known_values():
    """Both losses; the scale 0 is the unconditional law."""
    far = []
    for guidance in (observation(SHAPE, scale=0.0), observation(SHAPE, scale=4.0), observation(SHAPE, loss="mse")):
        model = guided(guidance)
        x = np.asarray(LAW.sample(jax.random.key(0), 1)).reshape(1, *SHAPE)
        cond = {"known": np.repeat(np.where(FUTURE, np.nan, x), 512, axis=0).astype(np.float32)}
        inner = model.diffusion.denoiser({"network": {}}, {**cond, "level": jnp.linspace(0.01, 0.99, 512)})
        drawn = model.diffusion.solve(inner, jax.random.key(0), jax.random.key(1), jnp.arange(512), cond)
        far.append(float(np.abs(np.asarray(drawn)[:, ~FUTURE] - x[:, ~FUTURE]).mean()))
    assert far[0] > 0.7 and far[1] < 0.5 * far[0] and far[2] < 0.5 * far[0]
    with pytest.raises(ValueError, match="loss is 'l1'; choose quantile or mse"):
        observation(SHAPE, loss="l1")


@pytest.fixture(scope="module")
def network():
    from flax import nnx

    net = CSDI(shape=SHAPE, channels=8, num_layers=2, num_heads=2, diffusion_dim=8, time_dim=4, rngs=nnx.Rngs(0))
    apply, params = functional(net)
    key = jax.random.key(1)
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.fold_in(key, p.size), p.shape), params)
    return apply, params


def test_hidden_values_and_noisy_known_ones_do_not_matter(network):
    """The loss depends on neither what is missing nor, through the network, on targets, nor D on known x_t."""
    apply, params = network
    model = system(apply)
    x = jax.random.normal(jax.random.key(0), (3, *SHAPE))
    hole = x.at[0, 1, 0].set(jnp.nan).at[1, 5, 1].set(jnp.nan)
    loss = jax.jit(lambda x: model.loss({"network": params}, jax.random.key(1), {"x": x}, None)[0])
    assert np.isfinite(loss(hole)).all()
    np.testing.assert_array_equal(loss(hole)[2], loss(x)[2])
    gradient = jax.jit(jax.grad(lambda x: loss(x).sum()))(hole)
    assert gradient[0, 1, 0] == 0 and gradient[1, 5, 1] == 0 and jnp.all(jnp.isfinite(gradient))

    known = jnp.where(FUTURE, jnp.nan, x)
    D = jax.jit(model.denoiser({"network": params}, {"known": known}))
    through = lambda y: D(y, jnp.full(3, 0.5))[:, -2:]
    y = jax.random.normal(jax.random.key(2), x.shape)
    np.testing.assert_array_equal(through(y), through(y.at[:, :-2].add(5.0)))
    np.testing.assert_array_equal(D(y, jnp.full(3, 0.5))[:, :-2], x[:, :-2])
    assert np.abs(np.asarray(through(y) - through(y.at[:, -1].add(1.0)))).max() > 1e-3


def test_a_window_without_targets_has_the_loss_zero(network):
    apply, params = network
    x = jnp.ones((3, *SHAPE)).at[1, -2:].set(jnp.nan).at[2].set(jnp.nan)
    loss = jax.jit(lambda x: system(apply).loss({"network": params}, jax.random.key(0), {"x": x}, None)[0])
    found = loss(x)
    assert found[0] > 0 and found[1] == found[2] == 0


def test_permuting_features_with_their_embeddings_permutes_the_output(network):
    apply, params = jax.jit(network[0]), network[1]
    x, known = jax.random.normal(jax.random.key(0), (2, 3, *SHAPE))
    known = jnp.where(GAPS, jnp.nan, known)
    out = apply(params, x, jnp.full(3, 7.0), {"known": known})
    swapped = {**params, "embed_layer": {"embedding": params["embed_layer"]["embedding"][::-1]}}
    other = apply(swapped, x[..., ::-1], jnp.full(3, 7.0), {"known": known[..., ::-1]})
    np.testing.assert_allclose(other[..., ::-1], out, rtol=1e-4, atol=1e-5)
    assert (
        np.abs(np.asarray(apply(params, x[..., ::-1], jnp.full(3, 7.0), {"known": known[..., ::-1]}) - other)).max()
        > 1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("scaling", SCALINGS)
def test_scaled_series_give_scaled_samples(network, scaling):
    """All scalings but none; and histories that are constant, zero or empty give finite samples."""
    apply, params = network
    model = system(apply, steps=3, scaling=scaling)
    known = np.where(FUTURE, np.nan, np.random.default_rng(0).standard_normal((4, *SHAPE))).astype(np.float32)
    draw = lambda known: model.sample({"network": params}, jax.random.key(0), 4, {"known": known})["samples"]
    one, ten = draw(known), draw(10 * known)
    equal = np.allclose(ten, 10 * one, rtol=1e-3, atol=1e-2)
    assert equal == (scaling != "none")
    if scaling in ("last", "standard"):
        np.testing.assert_allclose(draw(known + 5), one + 5, rtol=1e-3, atol=1e-3)
    for constant in (0.0, 3.0, np.nan):
        assert np.isfinite(draw(np.where(FUTURE, np.nan, np.full_like(known, constant)))).all()


@pytest.mark.parametrize("name", ["random", "historical", "mix"])
def test_targets_hide_only_what_is_present(name):
    present = jax.random.bernoulli(jax.random.key(0), 0.8, (400, *SHAPE))
    given = getattr(targets, name)(jax.random.key(1), present)
    assert not np.any(given & ~present)
    share = np.asarray(given.sum((1, 2)) / present.sum((1, 2)))
    if name == "random":  # uniform in [0, 1]
        assert share.mean() == pytest.approx(0.5, abs=0.05) and share.std() == pytest.approx(12**-0.5, abs=0.04)
    if name == "historical":
        np.testing.assert_array_equal(given[1:], present[1:] & present[:-1])
    if name == "mix":
        assert 0.55 < share.mean() < 0.75


def test_held_out_gaps_depend_on_the_example_only():
    operator = observed(SHAPE, missing=0.25)
    x = np.random.default_rng(0).standard_normal((5, *SHAPE)).astype(np.float32)
    x[0, 0, 0] = np.nan
    known = operator.measure(x)
    np.testing.assert_array_equal(operator.measure(x[:3]), known[:3])
    assert np.isnan(known[1]).sum() == 3 and np.isnan(known[0]).sum() == 1 + round(11 * 0.25)
    np.testing.assert_array_equal(np.isnan(observed(SHAPE, horizon=2).measure(x))[1], FUTURE)


def tiny(**changes) -> ConfigDict:
    config = read("csdi:eeg")
    config.data.length = 12
    config.network.update(channels=8, num_layers=1, num_heads=2, diffusion_dim=8, time_dim=8, mlp_hidden=8)
    config.training.update(num_steps=4, batch_size=8, log_every=1, checkpoint_every=2)
    config.sampling.update(num_samples=8, samples_per_condition=4, batch_size=8, steps=2)
    config.evaluation.update(num_samples=8, samples_per_condition=4, after_training=False)
    return changed(config, **changes)


@pytest.mark.slow
def test_the_command_trains_samples_and_evaluates(tmp_path):
    config = tiny(training__num_steps=150, training__checkpoint_every=150, optimizer__learning_rate=1e-2)
    config.evaluation.update(num_samples=160, samples_per_condition=16)
    config.sampling.steps = 8
    train.train(config, tmp_path)
    sample.sample(config, tmp_path)
    saved = np.load(tmp_path / "samples" / "samples.npz")
    present = np.isfinite(saved["cond"])
    assert saved["samples"].shape == (8, 12, 4) and 0.7 < present.mean() < 0.9
    np.testing.assert_allclose(saved["samples"][present], saved["cond"][present], rtol=1e-6)
    assert (tmp_path / "samples" / "samples.png").exists()
    evaluate.evaluate(config, tmp_path)
    values = json.loads((tmp_path / "evaluation.json").read_text())
    assert values["num_windows"] == 10 and values["samples_per_window"] == 16
    assert 0 < values["crps"] < 0.8 and 0.3 < values["coverage_90"] <= 1 and values["interpolation_crps"] > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(system__horizon=3), "horizon=3 and config.system.missing=0.2: one of them"),
        (dict(system__targets="forecast"), "'forecast' needs config.system.horizon"),
        (dict(system__targets="some"), "system.targets='some' is unknown"),
        (dict(system__missing=1.5), r"missing is 1\.5"),
        (dict(system__scaling="max"), "system.scaling='max' is unknown"),
        (dict(system__reference="zero"), "system.reference='zero' is unknown"),
        (dict(network__conditional=False), "targets='random' needs a network that reads what is known"),
        (dict(data=dict(name="toy", kind="two_moons")), "needs series, config.data.name='series'"),
        (dict(guidance=dict(name="observation", method=dict(name="ddim"))), "guidance.method.name='ddim' is unknown"),
        (dict(loss=dict(name="vlb")), "config.loss.name='vlb' must be 'denoising'"),
    ],
)
def test_configs_that_cannot_work_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        build.build(tiny(**changes))


def test_a_stored_null_condition_is_unconditional(network):
    """Classifier-free dropout replaces the known values by NaN: nothing is known."""
    apply, params = jax.jit(network[0]), network[1]
    null = system(apply).diffusion.network_conditions.null(3)
    x = jax.random.normal(jax.random.key(0), (3, *SHAPE))
    out = apply(params, x, jnp.full(3, 5.0), null)
    assert np.isnan(np.asarray(null["known"])).all() and np.isfinite(out).all()
    np.testing.assert_allclose(out, apply(params, x, jnp.full(3, 5.0)), rtol=1e-3, atol=1e-5)
