"""Solvers of categorical processes: the law of their samples for exact denoisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.processes import categorical, transition_tables
from diffusion_jax.processes.base import row_keys
from diffusion_jax.solvers import categorical as solvers
from diffusion_jax.solvers import euler, sampling
from tests import tokens

DATA = tokens.Enumerated(values=3, length=2, seed=1)
N = 6000


def drawn(solver, process, times, D=None, x_T=None, n=N):
    """Frequencies of the sequences among n samples at the times."""
    D = DATA.D(process) if D is None else D
    keys = row_keys(jax.random.key(0), jnp.arange(n))
    x_T = process.prior(keys, (n, 2)) if x_T is None else x_T
    run = jax.jit(lambda x_T: sampling.sample(solver, process, D, jax.random.key(1), x_T, jnp.asarray(times)))
    return np.asarray(run(x_T))


def distance(samples, p):
    return 0.5 * np.abs(DATA.frequencies(samples) - p).sum()


NOISE = 0.5 * np.sqrt(2 * len(DATA.p) / np.pi / N) * 3  # total variation of that many samples, three times its mean


@pytest.mark.parametrize("steps", [1, 4])
def test_the_law_of_ancestral_steps_of_a_masked_process(steps):
    """(1 - c) p + c p_1 p_2 with c = sum (d alpha)^2: tokens that are unmasked together are independent."""
    process, times = categorical.absorbing(3, "cosine"), np.linspace(1, 0, steps + 1, dtype=np.float32)
    c = np.sum(np.diff(np.asarray(process.alpha(jnp.asarray(times)), np.float64)) ** 2)
    law = (1 - c) * DATA.p + c * DATA.independent
    samples = drawn(solvers.ancestral(), process, times)
    assert distance(samples, law) < NOISE
    assert distance(samples, DATA.p) > NOISE  # which the test can tell apart


def test_first_hitting_is_exact_in_as_many_steps_as_tokens():
    process = categorical.absorbing(3, "cosine_squared")
    samples = drawn(solvers.first_hitting(), process, np.linspace(1, 0, 3, dtype=np.float32))
    assert distance(samples, DATA.p) < NOISE


@pytest.mark.parametrize(
    ("solver", "process"),
    [
        (solvers.ancestral(), categorical.uniform(3)),
        (
            solvers.ancestral(),
            transition_tables.nearest_neighbours(np.arange(3.0)[:, None], 1, np.geomspace(0.02, 1, 32)),
        ),
        (solvers.euler(), categorical.absorbing(3)),
        (solvers.euler(), categorical.uniform(3, end=1e-3)),
        pytest.param(solvers.tau_leaping(), categorical.absorbing(3), marks=pytest.mark.slow),
        (solvers.remasking(0.5), categorical.absorbing(3)),
    ],
)
def test_the_law_approaches_that_of_the_data(solver, process):
    """With 32 steps it is a fifth as far as in one step, which draws the tokens independently."""
    samples = drawn(solver, process, np.linspace(1, 0, 33, dtype=np.float32))
    apart = 0.5 * np.abs(DATA.independent - DATA.p).sum()
    assert distance(np.where(samples == 3, 0, samples), DATA.p) < 0.2 * apart + NOISE / 2


@pytest.mark.slow
def test_jumps_of_ordinal_values_add_up():
    process = categorical.uniform(3, end=1e-3)
    samples = drawn(solvers.tau_leaping(ordinal=True), process, np.linspace(1, 1e-3, 33, dtype=np.float32))
    assert samples.min() >= 0 and samples.max() <= 2 and distance(samples, DATA.p) < 0.1


def test_the_order_of_confidence_is_biased_and_a_random_one_is_not():
    process, times = categorical.absorbing(3), np.linspace(1, 0, 3, dtype=np.float32)
    biased = drawn(solvers.confidence(), process, times)
    assert distance(biased, DATA.p) > 3 * NOISE
    assert distance(drawn(solvers.confidence(order="random"), process, times), DATA.p) < NOISE
    greedy = drawn(solvers.confidence(temperature=0.0), process, times, n=100)
    assert len(np.unique(greedy, axis=0)) == 1


def test_remasking_keeps_the_number_of_masks():
    process, times = categorical.absorbing(3), np.array([1, 0.8, 0.6, 0.4], np.float32)
    samples = drawn(solvers.remasking(0.7), process, times)
    assert (samples == 3).mean() == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("solver", [solvers.ancestral(), solvers.first_hitting(), solvers.remasking(0.3)])
def test_infilling_draws_from_the_conditional_law(solver):
    """Of a Markov chain with both ends known, whose conditional law is that of forward-backward with hard evidence."""
    chain, n = tokens.Chain(values=3, length=5, seed=3), 3000
    process = categorical.absorbing(3)
    truth = jnp.array([0, 3, 3, 3, 2])
    known, x_0 = jnp.broadcast_to(truth < 3, (n, 5)), jnp.broadcast_to(truth, (n, 5))
    infill = solvers.restored(solver, known, x_0)
    samples = drawn(infill, process, np.linspace(1, 0, 33, dtype=np.float32), chain.D(process), x_0)
    assert (samples[:, [0, 4]] == [0, 2]).all()
    law = np.exp(np.asarray(chain.smoothed(process.log_evidence(truth[None], jnp.float32(0.5)))))[0]
    found = np.stack([np.bincount(samples[:, i], minlength=3) / n for i in range(5)])
    np.testing.assert_allclose(found, law, atol=0.04)
    middle = samples[:, 1:4]
    pairs = np.einsum("ij,j->ij", chain.transition, np.ones(3))
    possible = pairs[middle[:, 0], middle[:, 1]]
    assert possible.min() > 0


def test_cached_steps_draw_the_same_samples_with_fewer_evaluations():
    chain, process = tokens.Chain(values=3, length=4), categorical.absorbing(3)
    calls = []

    def D(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return chain.D(process)(x, jnp.float32(0.5))

    times = np.linspace(1, 0, 41, dtype=np.float32)
    x_T = jnp.full((2, 4), 3)
    plain = drawn(solvers.ancestral(), process, times, D, x_T)
    jax.effects_barrier()
    first = len(calls)
    cached = drawn(solvers.ancestral(cache=True, num_values=3), process, times, D, x_T)
    jax.effects_barrier()
    assert (plain == cached).all()
    assert first == 40 and len(calls) - first <= 9
    with pytest.raises(ValueError, match="num_values"):
        solvers.ancestral(cache=True)


def test_a_sample_does_not_depend_on_its_batch():
    process, times = categorical.absorbing(3), np.linspace(1, 0, 5, dtype=np.float32)
    for solver in (solvers.first_hitting(), solvers.confidence()):
        few, many = (drawn(solver, process, times, n=n) for n in (4, 16))
        assert (few == many[:4]).all()


def test_pairs_that_cannot_work_are_refused():
    times, x_T = np.array([1, 0], np.float32), jnp.zeros((1, 2), jnp.int32)
    table = transition_tables.discretized_gaussian(3, 4, 0.1, 0.9)
    for solver, process, words in (
        (solvers.first_hitting(), categorical.uniform(3), "mask"),
        (solvers.euler(), table, "rates"),
        (solvers.tau_leaping(ordinal=True), categorical.absorbing(3), "without a mask"),
        (euler(), categorical.absorbing(3), "real numbers"),
    ):
        with pytest.raises(ValueError, match=words):
            sampling.sample(solver, process, lambda x, t: x, jax.random.key(0), x_T, jnp.asarray(times))
