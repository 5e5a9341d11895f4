"""Guidance on a Gaussian mixture with labelled components, where every tilted density is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import solvers
from diffusion_jax.guidance import autoguidance, classifier, classifier_free, instruct_pix2pix, rescaled
from diffusion_jax.parameterizations import score
from diffusion_jax.solvers import grids
from diffusion_jax.solvers.sampling import sample
from tests.oracles import PROCESSES, Mixture

DATA = Mixture(
    weights=jnp.array([0.3, 0.7]), means=jnp.array([[-1.0, 0.5], [1.0, 0.0]]), variances=jnp.array([0.3, 0.2])
)
PARTS = [
    Mixture(weights=jnp.ones(1), means=DATA.means[k : k + 1], variances=DATA.variances[k : k + 1]) for k in range(2)
]
NULL = {"label": jnp.array(2)}
X = jax.random.normal(jax.random.key(0), (6, 2))
LABEL = {"label": jnp.array([0, 1, 0, 1, 0, 1])}
TIMES = [0.2, 0.7]


def conditional_denoiser(process):
    """D(x, t, cond): of component `label`, of the whole mixture where the label is 2."""

    def D(x, t, cond=None):
        label = jnp.full(len(x), 2) if cond is None else cond["label"]
        rows = jnp.stack([data.denoiser(process)(x, t) for data in (*PARTS, DATA)])
        return rows[label, jnp.arange(len(x))]

    return D


def log_likelihood(process):
    """log p(label | x_t), exactly."""

    def log_prob(x, t, cond):
        joint = DATA.component_log_probs(process, x, jnp.broadcast_to(t, x.shape[:1]))
        return jax.nn.log_softmax(joint)[jnp.arange(len(x)), cond["label"]]

    return log_prob


def tilted_score(process, x, t, weight):
    """grad of (1 - w) log p(x_t) + w log p(x_t | label)."""

    def log_density(x):
        parts = jnp.stack([part.log_prob(process, x, t) for part in PARTS])[LABEL["label"], jnp.arange(len(x))]
        return jnp.sum((1 - weight) * DATA.log_prob(process, x, t) + weight * parts)

    return jax.grad(log_density)(x)


@pytest.mark.parametrize("name", ["vp", "ve", "rectified_flow", "discrete_vp"])
@pytest.mark.parametrize("method", ["classifier_free", "classifier"])
def test_the_guided_score_is_that_of_the_tilted_density(method, name):
    process = PROCESSES[name]
    D = conditional_denoiser(process)

    @jax.jit
    def errors(t, weight):
        if method == "classifier_free":
            guided = classifier_free(D, weight, NULL)
        else:
            guided = classifier(lambda x, t, cond: D(x, t), log_likelihood(process), weight, process)
        ours = score(process, lambda x, t: guided(x, t, LABEL), X, t)
        exact = tilted_score(process, X, t, weight)
        return jnp.abs(ours - exact).max() / jnp.abs(exact).max()

    for t in TIMES:
        for weight in (0.0, 1.0, 3.0):
            assert errors(jnp.float32(t), weight) < 2e-3


def test_scale_one_is_the_conditional_model_and_zero_the_unconditional():
    D = conditional_denoiser(PROCESSES["vp"])
    t = jnp.float32(0.4)
    for scale, expected in ((1.0, D(X, t, LABEL)), (0.0, D(X, t))):
        np.testing.assert_allclose(classifier_free(D, scale, NULL)(X, t, LABEL), expected, atol=1e-5)
    np.testing.assert_allclose(autoguidance(D, lambda x, t, cond: D(x, t), 1.0)(X, t, LABEL), D(X, t, LABEL), atol=1e-5)
    weak = autoguidance(D, lambda x, t, cond: D(x, t), 2.5)(X, t, LABEL)
    np.testing.assert_allclose(weak, classifier_free(D, 2.5, NULL)(X, t, LABEL), atol=1e-5)


def test_channels_that_are_not_guided_are_those_of_the_condition():
    D = conditional_denoiser(PROCESSES["vp"])
    t = jnp.float32(0.4)
    first = classifier_free(D, 3.0, NULL, channels=1)(X, t, LABEL)
    np.testing.assert_allclose(first[:, :1], classifier_free(D, 3.0, NULL)(X, t, LABEL)[:, :1], atol=1e-6)
    np.testing.assert_allclose(first[:, 1:], D(X, t, LABEL)[:, 1:], atol=1e-6)
    with pytest.raises(ValueError, match=r"channels is 3\b"):
        classifier_free(D, 3.0, NULL, channels=3)(X, t, LABEL)


def test_both_branches_are_one_call():
    calls = []

    def D(x, t, cond):
        calls.append((x.shape, np.asarray(cond["label"]).tolist(), cond["text"].shape))
        return x

    cond = {"label": jnp.array([0, 1]), "text": jnp.ones((2, 5, 3))}
    null = {"label": jnp.array(2), "text": jnp.zeros((5, 3))}
    classifier_free(D, 2.0, null)(X[:2], jnp.full(2, 0.5), cond)
    assert calls == [((4, 2), [0, 1, 2, 2], (4, 5, 3))]


@pytest.mark.parametrize("t", [0.1, 0.2, 0.4, 0.5, 0.9])
@pytest.mark.parametrize("per_row", [False, True])
def test_outside_the_interval_there_is_no_guidance(t, per_row):
    D = conditional_denoiser(PROCESSES["vp"])
    time = jnp.full(6, t, jnp.float32) if per_row else jnp.float32(t)
    limited = jax.jit(classifier_free(D, 4.0, NULL, interval=(0.2, 0.5)))(X, time, LABEL)
    expected = classifier_free(D, 4.0 if 0.2 < t <= 0.5 else 1.0, NULL)(X, time, LABEL)
    np.testing.assert_allclose(limited, expected, atol=1e-5)


def test_rescaling_brings_back_the_deviation_of_the_conditional():
    guided, conditional = 3 * X.reshape(2, 3, 2), 0.5 * X[::-1].reshape(2, 3, 2)
    deviation = lambda x: np.asarray(x).reshape(2, -1).std(1)
    np.testing.assert_allclose(deviation(rescaled(guided, conditional, 1.0)), deviation(conditional), rtol=1e-5)
    half = (deviation(guided) + deviation(conditional)) / 2
    np.testing.assert_allclose(deviation(rescaled(guided, conditional, 0.5)), half, rtol=1e-5)
    assert rescaled(guided, conditional, 0.0) is guided


@pytest.mark.parametrize("method", ["classifier_free", "classifier"])
def test_scale_one_samples_the_component(method):
    """From the component's own marginal, the flow of D_1 keeps every point's standardised coordinates."""
    process = PROCESSES["vp"]
    D = conditional_denoiser(process)
    guided = {
        "classifier_free": classifier_free(D, 1.0, NULL),
        "classifier": classifier(lambda x, t, cond: D(x, t), log_likelihood(process), 1.0, process),
    }[method]
    times = grids.uniform_log_snr(1e-2, 0.9)(process, 200)
    z = jax.random.normal(jax.random.key(3), X.shape)

    def at(t):
        variance = process.alpha(t) ** 2 * DATA.variances + process.sigma(t) ** 2
        return (process.alpha(t) * DATA.means)[LABEL["label"]] + jnp.sqrt(variance)[LABEL["label"], None] * z

    run = jax.jit(
        lambda x: sample(solvers.ddim(), process, lambda x, t: guided(x, t, LABEL), jax.random.key(0), x, times)
    )
    np.testing.assert_allclose(run(at(times[0])), at(times[-1]), atol=0.02)


def test_the_scale_may_be_a_schedule():
    process = PROCESSES["vp"]
    D, log_prob = lambda x, t, cond: 0 * x, lambda x, t, cond: jnp.sum(x, axis=1)
    t = jnp.float32(0.5)
    constant = classifier(D, log_prob, 2.0, process)(X, t, None)
    np.testing.assert_allclose(classifier(D, log_prob, lambda t: 4 * t, process)(X, t, None), constant, rtol=1e-6)
    np.testing.assert_allclose(constant, 2 * process.sigma(t) ** 2 / process.alpha(t) * np.ones_like(X), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(null_cond=None), "null_cond is None"),
        (dict(null_cond=NULL, interval=(0.5, 0.2)), "interval is"),
        (dict(null_cond=NULL, rescale=1.5), "rescale is 1.5"),
        (dict(null_cond=NULL, channels=-1), "channels is -1"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        classifier_free(lambda x, t, cond: x, 2.0, **arguments)


def test_text_and_image_guidance_is_the_sum_of_both_directions():
    """D = 2 text + 3 image + text image: arXiv:2211.09800, eq. 3, with numbers that can be added by hand."""

    def D(x, t, cond):
        return x + jnp.reshape(t, (-1, 1)) + 2 * cond["text"] + 3 * cond["image"] + cond["text"] * cond["image"]

    one, none = jnp.ones((6, 2)), jnp.zeros((1, 2))
    cond, image, null = {"text": one, "image": one}, {"text": none, "image": one}, {"text": none, "image": none}
    guided = instruct_pix2pix(D, 5.0, 1.5, image, null)(X, jnp.float32(0.5), cond)
    np.testing.assert_allclose(guided, X + 0.5 + 1.5 * 3 + 5 * (2 + 1), rtol=1e-5)
    both = instruct_pix2pix(D, 2.0, 2.0, image, null)(X, jnp.full(6, 0.5), cond)
    np.testing.assert_allclose(both, classifier_free(D, 2.0, null)(X, jnp.full(6, 0.5), cond), rtol=1e-5)
