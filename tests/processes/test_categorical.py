"""Categorical processes against Bayes' rule on matrices, and the laws that any transition has."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.processes import categorical, transition_tables
from diffusion_jax.processes.categorical import LOG_ZERO, one_hot_log, row_categorical
from tests import tokens

K = 3
RNG = np.random.default_rng(0)
PROCESSES = {
    **{f"absorbing {name}": categorical.absorbing(K, name) for name in categorical.SCHEDULES},
    **{f"uniform {name}": categorical.uniform(K, name) for name in categorical.SCHEDULES},
    "absorbing ends": categorical.absorbing(K, start=0.95, end=0.1),
    "uniform ends": categorical.uniform(K, start=0.95, end=0.1),
    "gaussian": transition_tables.discretized_gaussian(K, 8, 0.1, 0.9),
    "neighbours": transition_tables.nearest_neighbours(RNG.normal(size=(K, 2)), 1, np.linspace(0.1, 1, 8)),
}
S, T = 3 / 8, 6 / 8  # on the grids of the tables


@functools.cache
def tables(name):
    return tuple(tokens.matrices(PROCESSES[name], t) for t in (S, T))


@pytest.mark.parametrize("name", PROCESSES)
def test_rows_are_distributions_and_chapman_kolmogorov_holds(name):
    process = PROCESSES[name]
    q_s, q_t = tables(name)
    np.testing.assert_allclose(q_t.sum(-1), 1, atol=1e-6)
    # The posterior of a certain x_0, times q(x_t | x_0), is q(x_s, x_t | x_0), whose marginal is that of x_s.
    x_t = jnp.arange(process.num_states)[None]
    for k in range(K):
        log_D = jnp.broadcast_to(one_hot_log(jnp.int32(k), K), (1, process.num_states, K))
        posterior = np.exp(np.asarray(process.log_posterior(log_D, x_t, jnp.float32(T), jnp.float32(S))))[0]
        possible = q_t[k] > 1e-12
        np.testing.assert_allclose(posterior[possible].sum(-1), 1, atol=1e-5)
        np.testing.assert_allclose(q_t[k][possible] @ posterior[possible], q_s[k], atol=2e-6)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_step_marginalises_the_posterior_of_bayes_rule(name):
    process = PROCESSES[name]
    q_s, q_t = tables(name)
    if process.num_states == K:
        step = np.linalg.solve(q_s.astype(np.float64), q_t)
    else:  # a mask stays
        kept = np.asarray(process.alpha(jnp.float32(T)) / process.alpha(jnp.float32(S)))
        step = np.vstack([np.hstack([kept * np.eye(K), np.full((K, 1), 1 - kept)]), np.eye(K + 1)[-1:]])
    d = RNG.dirichlet(np.ones(K))
    for i in range(process.num_states):
        certain = process.num_states > K and i < K
        belief = np.eye(K)[i] if certain else d
        by_bayes = np.einsum("k,kj,j,k->j", belief, q_s, step[:, i], 1 / np.where(q_t[:, i] > 0, q_t[:, i], 1))
        log_D = tokens.log_of(belief)[None, None]
        ours = process.log_posterior(log_D, jnp.full((1, 1), i), jnp.float32(T), jnp.float32(S))
        np.testing.assert_allclose(np.exp(np.asarray(ours))[0, 0], by_bayes, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("name", ["absorbing linear", "uniform cosine", "gaussian", "neighbours"])
def test_samples_of_a_step_and_of_the_noise_have_their_law(name):
    process, n = PROCESSES[name], 20_000
    x_0 = jnp.tile(jnp.arange(K), (n, 1))
    x_t = process.perturb(jax.random.key(0), x_0, jnp.float32(T))
    states = process.num_states
    for k in range(K):
        found = np.bincount(np.asarray(x_t[:, k]), minlength=states) / n
        np.testing.assert_allclose(found, tables(name)[1][k], atol=0.015)
    log_D = jnp.broadcast_to(tokens.log_of(RNG.dirichlet(np.ones(K))), (n, 1, K))
    x = jnp.full((n, 1), states - 1)
    keys = categorical.row_keys(jax.random.key(1), jnp.arange(n))
    drawn = process.reverse(keys, log_D, x, jnp.float32(T), jnp.float32(S))
    law = np.exp(np.asarray(process.log_posterior(log_D[:1], x[:1], jnp.float32(T), jnp.float32(S))))[0, 0]
    np.testing.assert_allclose(np.bincount(np.asarray(drawn[:, 0]), minlength=states) / n, law, atol=0.015)
    alone = process.reverse(keys[5:6], log_D[5:6], x[5:6], jnp.float32(T), jnp.float32(S))
    assert alone[0, 0] == drawn[5, 0]


@pytest.mark.parametrize("name", categorical.SCHEDULES)
def test_schedules_fall_and_are_accurate_at_both_ends(name):
    process = categorical.absorbing(K, name)
    t = jnp.linspace(0, 1, 101)
    alpha, noise = np.asarray(process.alpha(t), np.float64), np.asarray(process.noise(t), np.float64)
    np.testing.assert_allclose(alpha + noise, 1, atol=1e-6)
    assert alpha[0] == pytest.approx(1, abs=1e-6) and alpha[-1] == pytest.approx(0, abs=1e-6)
    assert (np.diff(alpha) <= 0).all() and alpha.min() >= -1e-9
    back = process.time_of_noise(jnp.asarray(noise[20:80], jnp.float32))
    np.testing.assert_allclose(process.noise(back), noise[20:80], rtol=2e-4, atol=1e-6)


def test_formulas_of_the_schedules():
    t = 0.3
    values = {
        "linear": 0.7,
        "cosine": np.cos(np.pi / 2 * t),
        "cosine_squared": np.cos(np.pi / 2 * t) ** 2,
        "one_minus_cosine": 1 - np.cos(np.pi / 2 * (1 - t)),
        "shifted_cosine": np.cos(np.pi / 2 * (t + 0.008) / 1.008) / np.cos(np.pi / 2 * 0.008 / 1.008),
    }
    for name, value in values.items():
        assert categorical.absorbing(K, name).alpha(jnp.float32(t)) == pytest.approx(value, rel=1e-5), name
    sedd = categorical.uniform(K, "geometric", start=float(np.exp(-1e-4)), end=float(np.exp(-20)))
    assert sedd.alpha(jnp.float32(t)) == pytest.approx(np.exp(-(1e-4 ** (1 - t)) * 20**t), rel=1e-5)


def test_the_gaussian_table_is_symmetric_doubly_stochastic_and_toeplitz():
    process = transition_tables.discretized_gaussian(5, 4, 0.1, 0.9)
    for matrix in process.matrices:
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-7)
        np.testing.assert_allclose(matrix.sum(0), 1, atol=1e-6)
        assert matrix.min() >= 0
        for d in range(1, 5):
            assert np.ptp(np.diagonal(matrix, d)) < 1e-7
    # Q[j, k] over the sum of all offsets, by the formula of the paper.
    weights = {d: np.exp(-4 * d**2 / (4**2 * 0.1)) for d in range(-4, 5)}
    assert process.matrices[0][1, 3] == pytest.approx(weights[2] / sum(weights.values()), rel=1e-5)


def test_gumbel_noise_has_full_precision():
    """JAX's default ends at about 16; a rare token that needs more is never drawn."""
    log_p = jnp.zeros((2**20, 1, 2)).at[..., 1].set(LOG_ZERO)
    keys = jax.random.split(jax.random.key(0), 4)

    def largest(mode):
        return max(float(jnp.max(jax.random.gumbel(key, (2**22,), mode=mode))) for key in keys)

    assert largest("low") < 16.7 and largest("high") > 14
    assert not np.asarray(row_categorical(jax.random.split(keys[0], 64), log_p[:64])).any()


@pytest.mark.parametrize("arguments", [dict(schedule="x"), dict(start=0.5, end=0.5), dict(num_steps=-1)])
def test_refused_arguments(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        categorical.uniform(K, **arguments)
