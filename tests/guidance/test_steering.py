"""Guidance together with solvers, thresholds, learned variances and systems."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from diffusion_jax import solvers
from diffusion_jax.config import build
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.guidance import autoguidance, classifier, classifier_free, steering, thresholding
from diffusion_jax.networks.conditions import NO_CONDITIONS
from diffusion_jax.parameterizations import LearnedVariance, bound_to
from diffusion_jax.processes import DiscreteVP, beta_table
from diffusion_jax.solvers.base import posterior, transition
from diffusion_jax.solvers.sampling import sample
from diffusion_jax.types import Train
from tests.guidance.test_guidance import DATA, NULL, PARTS, conditional_denoiser, log_likelihood
from tests.oracles import PROCESSES
from tests.runs import digits, toy
from tests.solvers.cases import CASES

ADAPTIVE = {"adaptive_ode": solvers.adaptive_ode(), "adaptive_sde": solvers.adaptive_sde()}
CAPTIONS = dict(
    name="dit", patch_size=4, hidden_size=8, depth=1, num_heads=2, token_dim=24, vocabulary=257, max_tokens=7
)


FEW = ("ddim", "heun", "unipc_3", "ancestral_beta", "adaptive_ode")


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FEW else [pytest.mark.slow]) for n in (*CASES, *ADAPTIVE)]
)
def test_every_solver_takes_every_guidance(name):
    """All of them at once, since a solver sees one denoiser: D(x, t) for scalar t, as it is for a model alone."""
    process = CASES[name].process if name in CASES else PROCESSES["vp"]
    solver = CASES[name].solver if name in CASES else ADAPTIVE[name]
    D = conditional_denoiser(process)
    guided = classifier_free(D, lambda t: 1 + t, NULL, interval=(0.2, 0.8), rescale=0.5)
    guided = autoguidance(guided, D, 1.5)
    guided = classifier(guided, log_likelihood(process), lambda t: 2 * t, process)
    guided = thresholding.dynamic(0.9, bound=2.0)(guided)
    x, times = jax.random.normal(jax.random.key(1), (4, 2)), jnp.array([0.9, 0.6, 0.3, 0.1])

    @jax.jit
    def run(x, label):
        return sample(solver, process, bound_to(guided, {"label": label}), jax.random.key(0), x, times)

    drawn, others = (np.asarray(run(x, jnp.array(label))) for label in ([0, 1, 0, 1], [0, 0, 0, 1]))
    assert np.isfinite(drawn).all()
    np.testing.assert_array_equal(drawn[[0, 2, 3]], others[[0, 2, 3]])
    assert np.abs(drawn[1] - others[1]).max() > 1e-2


@pytest.mark.parametrize("solver", ["ancestral", "euler_maruyama", "ddim"])
def test_scale_one_draws_the_conditional_distribution(solver):
    """Classifier guidance of the mixture's denoiser with the exact posterior: mean and variance of one component."""
    process, n = PROCESSES["vp"], 4000
    make = {"ancestral": solvers.ancestral, "euler_maruyama": solvers.euler_maruyama, "ddim": solvers.ddim}[solver]
    D = conditional_denoiser(process)
    cond = {"label": jnp.zeros(n, jnp.int32)}
    guided = classifier(lambda x, t, cond: D(x, t), log_likelihood(process), 1.0, process)
    times = jnp.linspace(1.0, 1e-3, 201)
    x_T = jax.random.normal(jax.random.key(1), (n, 2))
    drawn = jax.jit(lambda x: sample(make(), process, bound_to(guided, cond), jax.random.key(0), x, times))(x_T)
    np.testing.assert_allclose(drawn.mean(0), PARTS[0].means[0], atol=0.04)
    np.testing.assert_allclose(drawn.var(0), DATA.variances[0], atol=0.03)


def test_the_ancestral_step_is_shifted_as_by_the_papers_algorithm():
    """arXiv:2105.05233, algorithm 1, adds Sigma grad log p to the mean. Here it is w beta / sqrt(1 - beta) grad log p:
    Sigma = beta up to a factor that goes to 1 with the number of steps, and 1 at most for every variance."""
    process = DiscreteVP.from_betas(beta_table("linear"))
    D, log_prob = conditional_denoiser(process), log_likelihood(process)
    x, cond = jax.random.normal(jax.random.key(0), (4, 2)), {"label": jnp.array([0, 1, 0, 1])}
    keys = jax.random.split(jax.random.key(1), 4)
    t, s, w = jnp.float32(0.5), jnp.float32(0.499), 3.0
    step = solvers.ancestral("beta").step
    guided = bound_to(classifier(lambda x, t, cond: D(x, t), log_prob, w, process), cond)
    shift = step(process, guided, keys, x, t, s, ())[0] - step(process, lambda x, t: D(x, t), keys, x, t, s, ())[0]
    gradient = jax.grad(lambda x: jnp.sum(log_prob(x, t, cond)))(x)
    alpha_ts, beta = transition(process, t, s)
    np.testing.assert_allclose(shift, w * beta / alpha_ts * gradient, atol=1e-5)
    np.testing.assert_allclose(1 / alpha_ts, 1, atol=0.01)
    assert posterior(process, t, s)[2] < beta


def test_a_learned_variance_stays_with_the_condition():
    both = lambda x, t, cond: (x, 0 * x + cond["label"][:, None] / 2)
    D, x, cond = LearnedVariance(both), jnp.ones((2, 2)), {"label": jnp.array([0, 1])}
    process, t = PROCESSES["vp"], jnp.float32(0.5)
    for guided in (
        classifier_free(D, 2.0, NULL, interval=(0.1, 0.9)),
        autoguidance(D, lambda x, t, cond: x, 2.0),
        classifier(D, lambda x, t, cond: jnp.sum(x, 1), 1.0, process),
    ):
        np.testing.assert_allclose(guided.both(x, t, cond)[1], both(x, t, cond)[1])


@pytest.mark.parametrize("name", steering.SCHEDULES)
def test_schedules_are_one_on_average(name):
    t = (jnp.arange(1000) + 0.5) / 1000
    np.testing.assert_allclose(steering.SCHEDULES[name](t).mean(), 1, atol=1e-4)


def test_the_dynamic_threshold_keeps_what_is_in_range_and_rescales_the_rest():
    inside, outside = 0.5 * jnp.ones((1, 100)), jnp.linspace(-4, 4, 100)[None]
    D = thresholding.dynamic(percentile=0.5)(lambda x, t, cond: x)
    np.testing.assert_allclose(D(inside, jnp.float32(0)), inside)
    expected = np.clip(np.asarray(outside) / np.quantile(np.abs(outside), 0.5), -1, 1)
    np.testing.assert_allclose(D(outside, jnp.float32(0)), expected, atol=1e-6)
    static = thresholding.static(2.0)(lambda x, t, cond: x)
    np.testing.assert_allclose(static(outside, jnp.float32(0)), np.clip(outside, -2, 2))
    with pytest.raises(ValueError, match=r"percentile is 1\.5"):
        thresholding.dynamic(1.5)
    with pytest.raises(ValueError, match="largest"):
        thresholding.dynamic(largest=0.5)
    with pytest.raises(ValueError, match=r"bound is 0\.0"):
        thresholding.static(0.0)


def test_dynamic_thresholding_with_a_largest_percentile():
    """With a largest percentile of 1 it clips; above, rows are divided by what the percentile is limited to."""
    x = jnp.array([[4.0, -0.5], [0.5, 0.25]])
    t = jnp.float32(0.5)
    D = lambda largest: thresholding.dynamic(percentile=1.0, largest=largest)(lambda x, t, cond: x)(x, t, None)
    np.testing.assert_allclose(D(1.0), [[1.0, -0.5], [0.5, 0.25]])
    np.testing.assert_allclose(D(2.0), [[1.0, -0.25], [0.5, 0.25]])
    np.testing.assert_allclose(D(9.0), [[1.0, -0.125], [0.5, 0.25]])


def test_text_is_read_once_not_at_every_step():
    """The width of the text encoder occurs outside of the loop over steps only, but for the projection to the trunk."""
    config = digits(data__captions=tuple("0123456789"))
    config.network = CAPTIONS
    config.guidance = dict(name="classifier_free", scale=2.0)
    config.system.cond_dropout = 0.1
    system = build.system(config)
    params = jax.eval_shape(system.init, jax.random.key(0))
    cond = jax.eval_shape(lambda: system.conditions.null(3))
    ids = jax.ShapeDtypeStruct((3,), np.int32)
    jaxpr = jax.make_jaxpr(lambda p, i, c: system.draw(p, jax.random.key(0), i, c))(params, ids, cond).jaxpr

    def widths(jaxpr, inside=False):
        """(inside a loop, width of the result) of every dense layer."""
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield inside, equation.outvars[0].aval.shape[-1]
            for value in jax.tree.leaves(list(equation.params.values())):
                if isinstance(value, (Jaxpr, ClosedJaxpr)):
                    sub = getattr(value, "jaxpr", value)
                    yield from widths(sub, inside or equation.primitive.name in ("scan", "while"))

    found = set(widths(jaxpr))
    assert (False, 3 * 24) in found and (False, 4 * 24) in found
    assert not {(True, 3 * 24), (True, 4 * 24)} & found
    assert (True, 8) in found


def test_conditions_are_dropped_in_training_alone():
    config = toy(network__num_classes=8, system__cond_dropout=0.5)
    seen = []
    system = build.system(config)

    def loss_fn(params, key, x_0, cond, *, train):
        seen.append(np.asarray(cond["label"]))
        return jnp.zeros(len(x_0)), {}

    system = dataclasses.replace(system, loss_fn=loss_fn)
    batch = {"x": jnp.zeros((400, 2)), "label": jnp.full(400, 3)}
    for train in (None, Train(jnp.int32(0), 1)):
        system.loss({"network": {}}, jax.random.key(0), batch, train)
    assert set(seen[0]) == {3} and set(seen[1]) == {3, 8}
    assert 0.4 < (seen[1] == 8).mean() < 0.6


def test_guidance_without_a_condition_is_refused_and_without_dropout_warned_of():
    guided = dict(guidance=dict(name="classifier_free", scale=2.0))
    with pytest.raises(ConfigError, match="needs a conditional model"):
        build.system(toy(**guided))
    with pytest.warns(UserWarning, match="no unconditional branch"):
        build.system(toy(**guided, network__num_classes=8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build.system(toy(**guided, network__num_classes=8, system__cond_dropout=0.1))
    for changes, message in (
        (dict(system__cond_dropout=0.1), "has no conditions to drop"),
        (dict(network__num_classes=8, system__cond_dropout=1.0), "must be in"),
        (dict(network__num_classes=8, system__cond_dropouts={"label": 1.0}), r"cond_dropouts\.label=1\.0 must be in"),
        (dict(network__num_classes=8, system__cond_dropouts={"labels": 0.1}), "did you mean 'label'"),
        (dict(network__num_classes=8, guidance=dict(name="classifier_free", schedule="quadratic")), "schedule is 'qua"),
        (dict(network__num_classes=8, guidance=dict(name="classifier_free", interval=(0.5, 0.2))), "interval is"),
    ):
        with pytest.raises(ConfigError, match=message):
            build.system(toy(**changes))


def test_a_chain_is_the_composition_and_its_order_matters():
    """Classifier-free guidance, a threshold and a classifier, by hand and as a chain."""
    process, n = PROCESSES["vp"], 6
    D, log_prob = conditional_denoiser(process), log_likelihood(process)
    cond = {"label": jnp.array([0, 1] * 3)}
    model = steering.Model(D=D, cond=cond, null=NULL, given=cond, process=process)
    free = steering.classifier_free(scale=3.0)
    clipped = steering.lifted(thresholding.static(0.5))
    by_classifier = steering.classifier(
        lambda params, x, t, cond: params["one"] * log_prob(x, t, cond),
        lambda: {"one": jnp.float32(1)},
        NO_CONDITIONS,
        scale=2.0,
    )
    x, t = 2 * jax.random.normal(jax.random.key(0), (n, 2)), jnp.float32(0.4)

    def steered(*parts):
        chained = steering.chain(*parts)
        return chained.steer(chained.load(), model).bound(x, t)

    by_hand = thresholding.static(0.5)(classifier_free(D, 3.0, NULL))
    by_hand = classifier(by_hand, log_prob, 2.0, process)(x, t, cond)
    np.testing.assert_allclose(steered(free, clipped, by_classifier), by_hand, rtol=1e-6)
    assert np.abs(steered(free, by_classifier, clipped) - by_hand).max() > 0.1
    assert steering.chain(free, clipped, by_classifier).values == {"scale": 3.0, "then_then_scale": 2.0}
    assert steering.chain(free, by_classifier).needs.alpha
    with pytest.raises(ValueError, match="first of a chain"):
        steering.chain(by_classifier, free)


def test_a_config_names_guidance_that_follows():
    chained = dict(name="classifier_free", scale=2.0, then=dict(name="none"))
    system = build.system(toy(guidance=chained, network__num_classes=8, system__cond_dropout=0.1))
    assert system.guidance.values == {"scale": 2.0}
    for guidance, message in (
        (dict(name="none", then=dict(name="classifier_free")), r"config\.guidance\.then\.name='classifier_free'"),
        (dict(name="none", then=dict(name="nne")), r"config\.guidance\.then\.name='nne'.*'none'"),
        (dict(name="none", then=dict(name="classifier", path="/x")), r"config\.guidance\.then\.path='/x'"),
        (dict(name="none", then="classifier"), r"config\.guidance\.then='classifier'"),
    ):
        with pytest.raises(ConfigError, match=message):
            build.system(toy(guidance=guidance, network__num_classes=8))
