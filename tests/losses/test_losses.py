import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import parameterizations
from diffusion_jax.losses import (
    denoising_loss,
    hybrid_loss,
    implicit_score_matching,
    score_matching_loss,
    sliced_score_matching,
    times,
    vlb_loss,
    weightings,
)
from diffusion_jax.processes import VE, VP, discrete_vp, drift_and_diffusion
from tests.oracles import PROCESSES, Gaussian, Mixture, network_of

GAUSSIAN = Gaussian(mean=np.array([0.3, -0.5]), covariance=np.array([[0.5, 0.3], [0.3, 0.4]]))
MIXTURE = Mixture(weights=np.array([0.4, 0.6]), means=np.array([[-0.7, 0.1], [0.5, 0.4]]), variances=np.ones(2) * 0.2)


def at(t):
    """All times equal to t."""
    return lambda process, key, n: (jnp.full(n, t), jnp.ones(n))


@pytest.mark.parametrize("name", PROCESSES)
def test_expected_loss_of_the_exact_denoiser_is_the_posterior_variance(name):
    process, t, n = PROCESSES[name], jnp.asarray(0.3), 20_000
    x_0 = GAUSSIAN.sample(jax.random.key(0), n)
    param = parameterizations.v_prediction()

    def loss(bend):
        """Mean and its standard error for the exact denoiser plus bend times x."""
        exact = GAUSSIAN.denoiser(process)
        network = network_of(lambda x, t: exact(x, t) + bend * jnp.tanh(x), param, process)
        apply = lambda params, x, c_noise, cond, key: network(x, c_noise, cond)
        value, aux = denoising_loss(apply, param, process, weightings.uniform(), at(t))(
            {}, jax.random.key(1), x_0, None
        )
        assert value.shape == aux["mse"].shape == aux["t"].shape == (n,)
        return float(value.mean()), float(value.std()) / n**0.5

    value, error = loss(0.0)
    assert value == pytest.approx(float(GAUSSIAN.posterior_variance(process, t)) / 2, abs=4 * error)
    assert loss(0.2)[0] > value and loss(-0.2)[0] > value


def test_norm_and_reduction():
    """For a network that returns 0, eps-prediction and the simple weighting, the error is the noise itself."""
    apply = lambda params, x, c_noise, cond, key: jnp.zeros_like(x)
    x_0, key = jnp.zeros((4000, 4)), jax.random.key(0)

    def mean(**options):
        loss = denoising_loss(apply, parameterizations.eps_prediction(), VP(), weightings.simple(), at(0.5), **options)
        value, aux = loss({}, key, x_0)
        assert set(aux) == {"t", "mae" if options.get("norm") == "l1" else "mse"}
        return float(value.mean())

    assert mean() == pytest.approx(1.0, abs=0.05)
    assert mean(norm="l1") == pytest.approx((2 / np.pi) ** 0.5, abs=0.02)
    assert mean(reduce="half_sum") == pytest.approx(2 * mean(), rel=1e-5)
    loss = denoising_loss(apply, parameterizations.eps_prediction(), VP(), weightings.simple(), at(0.5))
    half = denoising_loss(
        apply, parameterizations.eps_prediction(), VP(), weightings.simple(), at(0.5), reduce="half_sum"
    )
    where = jnp.arange(4) < jnp.arange(4000)[:, None] % 5
    np.testing.assert_allclose(
        half({}, key, x_0, None, where)[0], loss({}, key, x_0, None, where)[0] * where.sum(1) / 2, rtol=1e-5
    )


@pytest.mark.parametrize("options", [dict(norm="l3"), dict(reduce="sum")])
def test_unknown_norm_or_reduction(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} .*'{value}'"):
        denoising_loss(jnp.add, parameterizations.eps_prediction(), VP(), weightings.simple(), at(0.5), **options)


def test_likelihood_weighted_loss_is_an_integral_over_time():
    """The mean over times of w(t) E|x_0 - D|^2 / d, with uniform and with importance-drawn times."""
    process, t_min, n = VP(), 1e-2, 20_000
    grid = jnp.linspace(t_min, 1.0, 20_001)
    integrand = weightings.likelihood()(process, grid) * GAUSSIAN.posterior_variance(process, grid) / 2
    exact = float(jnp.trapezoid(integrand, grid) / (1 - t_min))
    param, x_0 = parameterizations.eps_prediction(), GAUSSIAN.sample(jax.random.key(0), n)
    network = network_of(GAUSSIAN.denoiser(process), param, process)
    apply = lambda params, x, c_noise, cond, key: network(x, c_noise, cond)
    spread = {}
    for draw in (times.uniform, times.low_discrepancy, lambda a, b: times.importance(weightings.likelihood(), a, b)):
        loss = denoising_loss(apply, param, process, weightings.likelihood(), draw(t_min, 1.0))
        value, _ = loss({}, jax.random.key(1), x_0, None)
        spread[draw] = float(value.std())
        assert float(value.mean()) == pytest.approx(exact, abs=4 * spread[draw] / n**0.5)
    uniform, _, importance = spread.values()
    assert importance < 0.7 * uniform


def test_the_network_gets_its_inputs_and_the_dropout_key():
    seen = {}

    def apply(params, x, c_noise, cond, *, key):
        seen.update(params=params, c_noise=c_noise, cond=cond, key=key)
        return jnp.zeros_like(x)

    x_0, cond = jnp.ones((3, 4, 4, 2)), {"label": jnp.arange(3)}
    loss = denoising_loss(apply, parameterizations.eps_prediction(), VP(), weightings.simple(), at(0.5))
    value, aux = loss({"w": jnp.ones(1)}, jax.random.key(0), x_0, cond)
    assert value.shape == (3,) and seen["params"].keys() == {"w"} and seen["cond"] is cond
    np.testing.assert_allclose(seen["c_noise"], 499.5)
    # The target is eps: an answer of zero costs its mean square.
    np.testing.assert_allclose(value, aux["mse"], rtol=1e-5)
    again, _ = loss({"w": jnp.ones(1)}, jax.random.key(0), x_0, cond)
    other, _ = loss({"w": jnp.ones(1)}, jax.random.key(1), x_0, cond)
    np.testing.assert_array_equal(value, again)
    assert not np.allclose(value, other)


def test_eps_loss_keeps_its_precision_at_tiny_noise():
    """At t = 1e-5 of VP the target of an eps network is eps itself, not a difference of nearly equal numbers."""
    captured = {}

    def apply(params, x, c_noise, cond, *, key):
        captured["x"] = x
        return jnp.zeros_like(x)

    x_0 = jnp.zeros((64, 8))
    loss = denoising_loss(apply, parameterizations.eps_prediction(), VP(), weightings.simple(), at(1e-5))
    value, _ = loss({}, jax.random.key(0), x_0, None)
    eps = captured["x"] / VP().sigma(jnp.float32(1e-5))
    np.testing.assert_allclose(value, jnp.mean(eps**2, axis=-1), rtol=1e-5)


def linear_score(matrix, x):
    return x @ matrix.T


def test_implicit_score_matching_of_a_linear_score_is_in_closed_form():
    """tr A + |A x|^2 / 2."""
    matrix = jnp.array([[-1.0, 0.3], [0.2, -2.0]])
    x = jax.random.normal(jax.random.key(0), (5, 2))
    value = implicit_score_matching(lambda x: linear_score(matrix, x), x)
    np.testing.assert_allclose(value, -3 + 0.5 * jnp.sum((x @ matrix.T) ** 2, axis=1), rtol=1e-5)


def test_implicit_score_matching_takes_images():
    x = jax.random.normal(jax.random.key(0), (3, 2, 2, 1))
    value = implicit_score_matching(lambda x: -x, x)
    np.testing.assert_allclose(value, -4 + 0.5 * jnp.sum(x**2, axis=(1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("variance_reduced", [True, False])
def test_sliced_score_matching_is_unbiased_for_the_implicit_one(variance_reduced):
    x = MIXTURE.sample(jax.random.key(0), 6)
    process, t = VE(sigma_min=0.3), jnp.asarray(0.0)

    def score_fn(x):
        return parameterizations.score(process, MIXTURE.denoiser(process), x, t)

    def draw(key, projections):
        return sliced_score_matching(score_fn, key, x, variance_reduced=variance_reduced, num_projections=projections)

    n = 4000
    exact = implicit_score_matching(score_fn, x)
    singles = jax.vmap(lambda key: draw(key, 1))(jax.random.split(jax.random.key(1), n))
    np.testing.assert_array_less(jnp.abs(singles.mean(0) - exact), 4.5 * singles.std(0) / n**0.5)
    many = draw(jax.random.key(2), n)
    np.testing.assert_array_less(jnp.abs(many - exact), 4.5 * singles.std(0) / n**0.5)


def test_variance_reduction_takes_the_expectation_of_the_squared_projection():
    """A constant score has no curvature: the reduced form is exact for every key, the plain one is noisy."""
    x, constant = jnp.zeros((50, 2)), jnp.array([1.0, -2.0])
    reduced, plain = (
        sliced_score_matching(lambda x: 0 * x + constant, jax.random.key(1), x, variance_reduced=v)
        for v in (True, False)
    )
    np.testing.assert_allclose(reduced, 2.5, rtol=1e-6)
    assert float(plain.std()) > 1


def model_score(params, x):
    """Not the true score of any of the data here."""
    return params["a"] * x + params["b"] + params["c"] * jnp.tanh(x)


MODEL = {"a": jnp.asarray(-0.7), "b": jnp.array([0.2, 0.1]), "c": jnp.asarray(0.3)}


def assert_gradients_agree(gradients, exact):
    """Means over rows agree within 4.5 standard errors of the mean of the differences."""
    seen = {}
    for name in exact:
        difference = np.asarray(gradients[name] - exact[name], np.float64)
        error = difference.std(0) / len(difference) ** 0.5
        assert np.all(np.abs(difference.mean(0)) < 4.5 * error + 1e-6), name
        seen[name] = np.max(np.abs(exact[name].mean(0)) / error)
    assert max(seen.values()) > 20, f"too noisy to tell a factor of 0.8: {seen}"


@pytest.mark.parametrize("method", ["implicit", "sliced", "sliced_variance_reduced"])
@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_gradients_equal_those_of_explicit_score_matching(data, method):
    process, t, n = VE(sigma_min=0.3), jnp.asarray(0.0), 100_000
    x = data.sample(jax.random.key(0), n) + 0.3 * jax.random.normal(jax.random.key(1), (n, 2))
    true_score = parameterizations.score(process, data.denoiser(process), x, t)

    def explicit(params, x, target, key):
        return 0.5 * jnp.sum((model_score(params, x) - target) ** 2)

    def without_target(params, x, target, key):
        score_fn = lambda x: model_score(params, x)
        if method == "implicit":
            return implicit_score_matching(score_fn, x[None])[0]
        reduced = method == "sliced_variance_reduced"
        return sliced_score_matching(score_fn, key, x[None], variance_reduced=reduced, num_projections=4)[0]

    rows = (x, true_score, jax.random.split(jax.random.key(2), n))
    exact, gradients = (
        jax.jit(jax.vmap(jax.grad(f), (None, 0, 0, 0)))(MODEL, *rows) for f in (explicit, without_target)
    )
    assert_gradients_agree(gradients, exact)


@pytest.mark.parametrize("projections", [0, 4])
@pytest.mark.parametrize("process", [VP(), VE(sigma_max=5.0)], ids=["vp", "ve"])
def test_score_matching_and_denoising_losses_have_the_same_expected_gradient(process, projections):
    n, draw = 100_000, at(0.5)
    param = parameterizations.score_prediction()
    x_0 = MIXTURE.sample(jax.random.key(0), n)
    apply = lambda params, x, c_noise, cond, key: model_score(params, x)
    losses = (
        denoising_loss(apply, param, process, weightings.sigma_squared(), draw),
        score_matching_loss(apply, param, process, draw, projections=projections),
    )

    def row_gradients(loss):
        # One key per row, equal for both losses, so that both perturb the data alike.
        row = lambda params, key, x_0: loss(params, key, x_0[None], None)[0][0]
        return jax.jit(jax.vmap(jax.grad(row), (None, 0, 0)))(MODEL, jax.random.split(jax.random.key(1), n), x_0)

    exact, gradients = (row_gradients(loss) for loss in losses)
    assert_gradients_agree(gradients, exact)


def test_score_matching_loss_takes_conditions_and_images():
    def apply(params, x, c_noise, cond, *, key):
        return -x * (1.0 + cond["label"])[:, None, None, None]

    x_0, cond = jnp.ones((3, 2, 2, 1)), {"label": jnp.arange(3)}
    for projections in (0, 2):
        loss = score_matching_loss(
            apply, parameterizations.score_prediction(), VE(), times.levels(10), projections=projections
        )
        value, aux = loss({}, jax.random.key(0), x_0, cond)
        assert value.shape == aux["t"].shape == (3,)


def test_weights_of_the_likelihood_bound_come_from_the_diffusion():
    """The integrand g^2 |score error|^2 / 2 d, reached through the loss of a network that is off by a constant."""
    process, offset = VP(), 0.3
    param = parameterizations.score_prediction()
    x_0 = jnp.zeros((4, 1))
    # Data at 0: the score is -x / sigma^2 and the denoiser 0, so that the loss is exactly the offset's.
    apply = lambda params, x, c_noise, cond, key: -x / process.sigma(jnp.float32(0.4)) ** 2 + offset
    loss = denoising_loss(apply, param, process, weightings.likelihood(), at(0.4))
    _, g = drift_and_diffusion(process, jnp.float32(0.4))
    np.testing.assert_allclose(loss({}, jax.random.key(0), x_0, None)[0], g**2 * offset**2, rtol=1e-3)


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3)])
def test_a_mask_leaves_the_loss_of_the_entries_that_count(shape):
    """Zero is the network for x_0, whose weighted error is the mean of x_0^2 over what counts."""
    apply = lambda params, x, c_noise, cond, key: jnp.zeros_like(x)
    loss = denoising_loss(apply, parameterizations.x0_prediction(), VP(), weightings.uniform(), times.uniform())
    x_0 = jax.random.normal(jax.random.key(0), shape)
    where = jnp.tile(jnp.array([True, True, False, False]), (6, 1)).at[5].set(False)
    masked, aux = loss({}, jax.random.key(1), x_0.at[:, 2:].set(jnp.nan), None, where)
    half = np.square(x_0[:, :2]).reshape(6, -1).mean(1)
    np.testing.assert_allclose(masked[:5], half[:5], rtol=1e-6)
    np.testing.assert_allclose(aux["mse"][:5], half[:5], rtol=1e-6)
    assert masked[5] == 0
    whole, _ = loss({}, jax.random.key(1), x_0)
    np.testing.assert_allclose(loss({}, jax.random.key(1), x_0, where=jnp.ones(6, bool))[0], whole, rtol=1e-6)
    np.testing.assert_allclose(whole, np.square(x_0).reshape(6, -1).mean(1), rtol=1e-6)


def test_losses_that_take_no_mask_refuse_it():
    apply, param, process = (
        lambda *a, **k: jnp.zeros((2, 4)),
        parameterizations.eps_prediction(),
        PROCESSES["discrete_vp"],
    )
    draw, x_0, where = times.discrete(1000), jnp.zeros((2, 2)), jnp.ones((2, 2), bool)
    for loss in (
        score_matching_loss(apply, param, process, draw),
        vlb_loss(apply, param, process, draw),
        hybrid_loss(apply, param, process, weightings.simple(), draw),
    ):
        with pytest.raises(ValueError, match="where is given"):
            loss({}, jax.random.key(0), x_0, None, where)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (score_matching_loss, dict(projections=-1)),
        (vlb_loss, dict(levels=1)),
        (hybrid_loss, dict(levels=1)),
        (hybrid_loss, dict(vlb_weight=-0.1)),
    ],
)
def test_numbers_out_of_range_are_refused(make, options):
    (key,) = options
    process = discrete_vp(num_steps=4)
    parts = dict(param=parameterizations.eps_prediction(), process=process, times=times.discrete(4))
    parts["apply"] = lambda params, x, c_noise, cond, key: x
    if make is hybrid_loss:
        parts["weighting"] = weightings.simple()
    with pytest.raises(ValueError, match=f"{key} is {options[key]}; it must be at least"):
        make(**parts, **options)
