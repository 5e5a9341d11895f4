"""Bounds of categorical processes: with the exact denoiser they are the entropy, and what differs has a closed form."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import token_parameterizations
from diffusion_jax.losses import categorical as losses
from diffusion_jax.losses import times
from diffusion_jax.processes import categorical, transition_tables
from diffusion_jax.processes.categorical import LOG_ZERO
from tests import tokens

DATA = tokens.Enumerated(values=3, length=2, seed=1)
X_0 = jnp.asarray(DATA.sequences)


def states_of(process):
    """All x_t."""
    states = np.arange(process.num_states)
    return jnp.asarray(np.stack(np.meshgrid(states, states, indexing="ij"), -1).reshape(-1, 2))


def expected(process, D, value, t):
    """E over x_0 and x_t at t of value(log_D, x_0, x_t, t), summed over tokens, without sampling."""
    x_t = states_of(process)
    log_D, total = D(x_t, t), 0.0
    for p, x_0 in zip(DATA.p, DATA.sequences, strict=True):
        rows = jnp.broadcast_to(jnp.asarray(x_0), x_t.shape)
        forward = process.log_forward(rows, t)
        q = jnp.exp(sum(categorical.at_values(forward[:, i], x_t[:, i]) for i in range(2)))
        values = jnp.where(q[:, None] > 1e-12, value(log_D, rows, x_t, t), 0.0)
        total = total + p * jnp.sum(q * jnp.sum(values, -1))
    return total


def continuous(process, D):
    """The bound in continuous time by Gauss-Legendre quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(24)
    run = jax.jit(lambda t: expected(process, D, process.bound_rate, t))
    return sum(w / 2 * float(run(jnp.float32((node + 1) / 2))) for node, w in zip(nodes, weights, strict=True))


def of_steps(process, D, grid):
    """The bound of the steps of a decreasing grid from 1 to 0."""

    @jax.jit
    def run(t, s):
        kl = lambda log_D, x_0, x_t, t: losses.step_bound(process, log_D, x_0, x_t, t, s)
        return expected(process, D, kl, t)

    prior = float(jnp.sum(jnp.asarray(DATA.p) * losses.prior_bound(process, X_0)))
    return prior + sum(float(run(jnp.float32(t), jnp.float32(s))) for t, s in itertools.pairwise(grid))


@pytest.mark.parametrize("schedule", ["linear", "cosine_squared"])
@pytest.mark.parametrize("kind", [categorical.absorbing, categorical.uniform])
def test_the_bound_of_the_exact_denoiser_is_the_entropy(kind, schedule):
    process = kind(3, schedule)
    assert continuous(process, DATA.D(process)) == pytest.approx(DATA.entropy, rel=2e-3)
    wrong = lambda x, t: jnp.broadcast_to(jnp.log(jnp.asarray(DATA.marginals, jnp.float32)), (len(x), 2, 3))
    assert continuous(process, wrong) > DATA.entropy + 0.5 * DATA.information


@pytest.mark.parametrize("schedule", ["linear", "cosine_squared"])
def test_the_bound_of_steps_of_a_masked_process_has_a_closed_form(schedule):
    """H + I(x_1; x_2) sum (d alpha)^2 for any grid: two tokens unmasked in the same step are drawn independently."""
    process = categorical.absorbing(3, schedule)
    for grid in ([1, 0], np.linspace(1, 0, 6), [1, 0.9, 0.35, 0.3, 0]):
        alpha = np.asarray(process.alpha(jnp.asarray(grid, jnp.float32)), np.float64)
        exact = DATA.entropy + DATA.information * np.sum(np.diff(alpha) ** 2)
        assert of_steps(process, DATA.D(process), grid) == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("make", [lambda T: categorical.uniform(3, num_steps=T), lambda T: tables(T)])
def test_the_bound_of_steps_falls_to_the_entropy(make):
    bounds = [of_steps(p, DATA.D(p), np.linspace(1, 0, p.num_steps + 1)) for p in map(make, (2, 8))]
    assert bounds[0] > bounds[1] > DATA.entropy


def tables(T):
    return transition_tables.nearest_neighbours(np.arange(3.0)[:, None], 1, np.full(T, 8 / T))


def test_equation_4_of_d3pm_needs_the_predictor_from_the_other_tokens():
    """With it the joint parameterization is the exact D; with the posterior the bound grows with the steps."""
    process, t = categorical.uniform(3), jnp.float32(0.6)
    joint = token_parameterizations.joint()
    x_t = states_of(process)
    others, exact = DATA.D(process, others=True), DATA.D(process)
    np.testing.assert_allclose(joint.log_D(process, others(x_t, t), x_t, t), exact(x_t, t), atol=2e-5)

    def misread(x, t):
        return joint.log_D(process, exact(x, t), x, t)

    bounds = [of_steps(process, misread, np.linspace(1, 0, T + 1)) for T in (2, 16)]
    assert bounds[1] > bounds[0] > DATA.entropy + 0.1
    masked = categorical.absorbing(3)  # where the two are the same
    x_t = states_of(masked)
    joined = joint.log_D(masked, DATA.D(masked, others=True)(x_t, t), x_t, t)
    np.testing.assert_allclose(np.exp(joined), np.exp(DATA.D(masked)(x_t, t)), atol=1e-5)


@pytest.mark.parametrize("kind", [categorical.absorbing, categorical.uniform])
def test_ratios_and_log_probabilities_are_views_of_each_other(kind):
    process, t = kind(3), jnp.float32(0.4)
    x_t = states_of(process)
    exact = DATA.D(process)(x_t, t)
    if kind is categorical.uniform:
        log_ratios = process.log_ratios(exact, x_t, t)
    else:
        log_ratios = exact + jnp.log(process.alpha(t) / process.noise(t))
    param = token_parameterizations.log_score()
    F = log_ratios - process.log_ratio_scale(t)
    np.testing.assert_allclose(np.exp(param.log_D(process, F, x_t, t)), np.exp(exact), atol=1e-4)
    for x_0 in DATA.sequences[[0, 4, 8]]:
        rows = jnp.broadcast_to(jnp.asarray(x_0), x_t.shape)
        possible = process.log_forward(rows, t)
        possible = categorical.at_values(possible, x_t) > LOG_ZERO / 2
        ours = process.score_entropy(param.log_ratios(process, F, x_t, t), rows, x_t, t)
        of_D = process.bound_rate(exact, rows, x_t, t)
        np.testing.assert_allclose(jnp.where(possible, ours, 0), jnp.where(possible, of_D, 0), rtol=2e-3, atol=2e-4)


def test_the_score_entropy_of_a_uniform_process_is_the_papers_sum():
    process, t = categorical.uniform(3), jnp.float32(0.4)
    x_0, x_t = jnp.array([[0, 1]]), jnp.array([[0, 2]])
    log_s = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 3)), jnp.float32)
    q = tokens.matrices(process, 0.4)
    rate = float(process.loss_rate(t) / process.alpha(t)) / 3
    for i in range(2):
        k, here, s = int(x_0[0, i]), int(x_t[0, i]), np.exp(np.asarray(log_s))[0, i]
        r = q[k] / q[k, here]
        terms = [s[y] - r[y] * np.log(s[y]) + r[y] * (np.log(r[y]) - 1) for y in range(3) if y != here]
        assert process.score_entropy(log_s, x_0, x_t, t)[0, i] == pytest.approx(rate * sum(terms), rel=1e-4)


def test_the_masked_bound_counts_masked_tokens_only():
    process = categorical.absorbing(3)
    log_D = jnp.log(jnp.full((1, 2, 3), 1 / 3))
    value = process.bound_rate(log_D, jnp.array([[0, 1]]), jnp.array([[0, 3]]), jnp.float32(0.5))
    np.testing.assert_allclose(value, [[0, 2 * np.log(3)]], rtol=1e-5)


def test_the_loss_of_a_network_does_not_depend_on_the_schedule():
    """With equal mask rates the masks are equal, and a network without t gives equal losses over equal densities."""

    def apply(params, x, c_noise, cond=None, *, key=None):
        return params[x]

    params = jax.random.normal(jax.random.key(0), (4, 3))
    fixed = lambda u: lambda process, key, n: (process.time_of_noise(jnp.full(n, u)), jnp.ones(n))
    values = []
    for schedule in ("linear", "cosine_squared"):
        process = categorical.absorbing(3, schedule)
        loss = losses.nelbo(apply, token_parameterizations.x0_logits(), process, fixed(0.3))
        value, aux = loss(params, jax.random.key(1), X_0)
        values.append(value / process.loss_rate(aux["t"]))
    np.testing.assert_allclose(values[0], values[1], rtol=1e-4)


@pytest.mark.parametrize("steps", [0, 16])
@pytest.mark.parametrize("kind", [categorical.absorbing, categorical.uniform])
def test_the_estimate_of_the_bound_is_that_of_a_markov_chain(kind, steps):
    """Its mean is -log p(x) in continuous time, and above it with steps; the loss of training has the same mean."""
    chain = tokens.Chain(values=4, length=6)
    process = kind(4, num_steps=steps)
    x = jnp.asarray(chain.sample(256))
    nats = np.asarray(jax.jit(lambda x: losses.bound(process, chain.D(process), jax.random.key(0), x, 64))(x))
    gap = nats + chain.log_prob(x)
    error = gap.std() / np.sqrt(len(gap))
    assert gap.mean() > -3 * error
    assert gap.mean() < 3 * error + (0.35 if steps else 0)
    if steps:
        return
    D = chain.D(process)
    apply = lambda params, x, c_noise, cond=None, *, key=None: D(x, c_noise / 999)
    loss = losses.nelbo(apply, token_parameterizations.x0_logits(), process, times.low_discrepancy(1e-4, 1 - 1e-4))
    keys = jax.random.split(jax.random.key(1), 32)
    trained = np.asarray(jax.jit(jax.vmap(lambda key: loss({}, key, x)[0].mean()))(keys))
    spread = 3 * trained.std() / np.sqrt(len(keys))
    assert abs(trained.mean() + chain.log_prob(x).mean() / 6) < spread + 0.01


def test_the_hybrid_loss_adds_the_cross_entropy():
    apply = lambda params, x, c_noise, cond=None, *, key=None: params[x]
    params, process = jax.random.normal(jax.random.key(0), (3, 3)), categorical.uniform(3, num_steps=4)
    arguments = (apply, token_parameterizations.x0_logits(), process)
    plain, _ = losses.discrete_nelbo(*arguments)(params, jax.random.key(1), X_0)
    hybrid, aux = losses.discrete_nelbo(*arguments, ce=0.5)(params, jax.random.key(1), X_0)
    np.testing.assert_allclose(hybrid, plain + 0.5 * aux["ce"], rtol=1e-6)
    with pytest.raises(ValueError, match="ce is -1"):
        losses.nelbo(*arguments, ce=-1.0)
    with pytest.raises(ValueError, match="log_score"):
        losses.score_entropy(*arguments)


def test_the_code_length_of_filled_examples_counts_up_to_their_end():
    x = jnp.array([[1, 2, 0, 0], [0, 0, 0, 0], [1, 2, 1, 2]])
    found = losses.code_length(jnp.log(2.0) * jnp.array([6.0, 3.0, 8.0]), x, pad=0)
    np.testing.assert_array_equal(found["tokens_per_example"], [3, 1, 4])
    np.testing.assert_allclose(found["bits_per_example"], [6, 3, 8], rtol=1e-6)
    np.testing.assert_allclose(found["bits_per_token"], [2, 3, 2], rtol=1e-6)
    np.testing.assert_allclose(losses.code_length(jnp.log(2.0) * jnp.ones(3), x)["bits_per_token"], 0.25, rtol=1e-6)
