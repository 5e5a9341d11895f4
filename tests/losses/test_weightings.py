import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import parameterizations
from diffusion_jax.losses import weightings
from diffusion_jax.processes import (
    VE,
    VP,
    Cosine,
    RectifiedFlow,
    discrete_vp,
    drift_and_diffusion,
    log_snr,
    perturb,
    time_of_log_snr,
)
from tests.oracles import PROCESSES

each_process = pytest.mark.parametrize("name", PROCESSES)


@pytest.fixture(autouse=True)
def t():
    with jax.enable_x64(True):
        yield jnp.linspace(0.05, 0.95, 8)


def tolerance(name):
    return 1e-3 if name == "discrete_vp" else 1e-8  # float32 tables


def mean_square(error):
    return jnp.mean(error**2, axis=-1)


@each_process
@pytest.mark.parametrize("weight", ["uniform", "simple", "sigma_squared", "likelihood", "velocity_matching"])
def test_a_weight_turns_the_error_of_x_0_into_that_of_its_space(name, weight, t):
    """w |D - D'|^2 equals the squared difference of the views of two denoisers, times the weight of that view."""
    process = PROCESSES[name]
    x_0 = jax.random.normal(jax.random.key(0), (8, 3))
    x, _ = perturb(process, jax.random.key(1), x_0, t)
    views = [lambda x, t: 0.5 * x, lambda x, t: jnp.tanh(x)]
    sigma, (_, g) = process.sigma(t), drift_and_diffusion(process, t)
    space, factor = {
        "uniform": (lambda process, D, x, t: D(x, t), 1.0),
        "simple": (parameterizations.epsilon, 1.0),
        "sigma_squared": (parameterizations.score, sigma**2),
        "likelihood": (parameterizations.score, g**2),
        "velocity_matching": (parameterizations.velocity, 1.0),
    }[weight]
    a, b = (space(process, D, x, t) for D in views)
    value = getattr(weightings, weight)()(process, t) * mean_square(views[0](x, t) - views[1](x, t))
    np.testing.assert_allclose(value, factor * mean_square(a - b), rtol=tolerance(name))


@each_process
def test_edm_weight_makes_the_network_error_count_once(name, t):
    process = PROCESSES[name]
    c_out = parameterizations.edm_preconditioning(0.7)(process, t).c_out
    np.testing.assert_allclose(weightings.edm(0.7)(process, t) * c_out**2, 1, rtol=1e-6)


def test_edm_weight_at_a_published_value():
    """lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2: at sigma = sigma_data = 0.5 it is 8."""
    process = VE(sigma_min=0.5, sigma_max=5.0)
    assert float(weightings.edm(0.5)(process, jnp.asarray(0.0))) == pytest.approx(8)


@pytest.mark.parametrize("snr", [0.1, 1.0, 5.0, 30.0])
def test_weights_that_are_functions_of_the_snr(snr):
    t = time_of_log_snr(VP(), jnp.log(jnp.asarray(snr)))
    value = {
        "min_snr": weightings.min_snr(5.0)(VP(), t) / snr,
        "p2": weightings.p2(0.5, 2.0)(VP(), t) / snr,
        "p2_default": weightings.p2()(VP(), t) / snr,
        "sigmoid": weightings.sigmoid(-1.0)(VP(), t) / snr,
        "simple": weightings.simple()(VP(), t),
    }
    expected = {  # weights of the error of eps
        "min_snr": min(snr, 5) / snr,
        "p2": 1 / (2 + snr) ** 0.5,
        "p2_default": 1 / (1 + snr),
        "sigmoid": 1 / (1 + np.e * snr),
        "simple": snr,
    }
    for name in expected:
        assert float(value[name]) == pytest.approx(expected[name], rel=1e-8), name


@pytest.mark.parametrize("gamma", [0.5, 1.0])
@pytest.mark.parametrize("name", ["eps", "v"])
def test_p2_at_a_signal_to_noise_ratio_of_1_is_simple_over_2_to_the_gamma(name, gamma, t):
    """In the units of the network's output, w c_out^2, and at another ratio it is not."""
    process = VP()
    make = {"eps": parameterizations.eps_prediction, "v": parameterizations.v_prediction}[name]

    def of_output(weight, log_ratio):
        at = time_of_log_snr(process, jnp.asarray(log_ratio))
        return weight(process, at) * make()(process, at).c_out ** 2

    p2, simple = weightings.p2(gamma), weightings.simple()
    np.testing.assert_allclose(of_output(p2, 0.0), 2**-gamma * of_output(simple, 0.0), rtol=1e-6)
    if name == "eps":
        np.testing.assert_allclose(of_output(simple, 0.0), 1, rtol=1e-6)
    assert of_output(p2, 2.0) < 0.9 * 2**-gamma * of_output(simple, 2.0)


def test_p2_without_gamma_and_sigmoid_with_a_large_bias_are_simple(t):
    simple = weightings.simple()(VP(), t)
    np.testing.assert_allclose(weightings.p2(gamma=0.0)(VP(), t), simple, rtol=1e-12)
    np.testing.assert_allclose(weightings.sigmoid(bias=60.0)(VP(), t), simple, rtol=1e-12)


@each_process
def test_likelihood_weight_is_the_rate_of_the_snr(name, t):
    """g^2 |score error|^2 = -d SNR / dt |D error|^2 (arXiv:2107.00630, eq. 12)."""
    process = PROCESSES[name]
    rate = jax.vmap(jax.grad(lambda t: jnp.exp(log_snr(process, t))))(t)
    np.testing.assert_allclose(weightings.likelihood()(process, t), -rate, rtol=tolerance(name))


@pytest.mark.parametrize("process", [Cosine(), RectifiedFlow(), discrete_vp(zero_terminal_snr=True)])
def test_weights_have_their_finite_limits_where_alpha_is_zero(process):
    """1 / sigma_data^2 for EDM's weight, and 0 for that of likelihoods, whose factor alpha is 0."""
    one = jnp.ones(1)
    np.testing.assert_allclose(weightings.edm(0.5)(process, one), 4, rtol=1e-6)
    if process.num_steps is None:  # the derivative of a table's alpha is infinite there, and the pair refused
        np.testing.assert_allclose(weightings.likelihood()(process, one), 0, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (weightings.edm, dict(sigma_data=0.0)),
        (weightings.min_snr, dict(gamma=-5.0)),
        (weightings.p2, dict(gamma=-1.0)),
        (weightings.p2, dict(k=-1.0)),
        (parameterizations.edm_preconditioning, dict(sigma_data=0.0)),
    ],
)
def test_numbers_out_of_range_are_refused(make, options):
    (key,) = options
    with pytest.raises(ValueError, match=f"{key} is {options[key]}; it must be"):
        make(**options)
