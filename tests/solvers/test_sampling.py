import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import likelihood, processes, solvers
from diffusion_jax.processes import VP
from diffusion_jax.solvers import grids
from diffusion_jax.solvers.base import stateless
from diffusion_jax.solvers.sampling import sample
from tests.oracles import Mixture
from tests.solvers.cases import CASES

DATA = Mixture(weights=np.array([0.3, 0.7]), means=np.array([[-1.0, 0.5], [1.0, 0.0]]), variances=np.array([0.1, 0.2]))


def draw(name, x_T, **options):
    case = CASES[name]
    times = case.grid(case.process, 12)
    return sample(case.solver, case.process, DATA.denoiser(case.process), jax.random.key(7), x_T, times, **options)


def start(name, n):
    process = CASES[name].process
    return process.sigma(jnp.asarray(1.0)) * jax.random.normal(jax.random.key(1), (n, 2))


@pytest.mark.few(5)
@pytest.mark.parametrize("name", CASES)
def test_a_sample_does_not_depend_on_its_batch(name):
    x_T = start(name, 6)
    together = draw(name, x_T)
    chosen = jnp.array([4, 1])
    np.testing.assert_allclose(draw(name, x_T[chosen], ids=chosen), together[chosen], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(draw(name, x_T[:1]), together[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.few(4)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.order is None])
def test_rows_and_keys_have_noise_of_their_own(name):
    x_T = jnp.repeat(start(name, 1), 3, axis=0)
    x = np.asarray(draw(name, x_T))
    assert len(np.unique(x.round(5), axis=0)) == 3
    same = draw(name, x_T, ids=jnp.array([5, 5, 5]))
    np.testing.assert_allclose(same, jnp.repeat(same[:1], 3, axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.few(4)
@pytest.mark.parametrize("name", CASES)
def test_the_trajectory_holds_all_states_and_ends_with_the_sample(name):
    x_T = start(name, 4)
    states = draw(name, x_T, trajectory=True)
    assert states.shape == (13, 4, 2)
    np.testing.assert_array_equal(states[0], x_T)
    np.testing.assert_allclose(states[-1], draw(name, x_T), rtol=1e-4, atol=1e-5)
    assert np.all(np.any(np.diff(states, axis=0) != 0, axis=(1, 2))[1:])


@pytest.mark.parametrize("name", CASES)
def test_the_program_is_as_long_for_1000_steps_as_for_10(name):
    """One scan: the number of steps is a shape, not code."""
    case = CASES[name]
    run = partial(sample, case.solver, case.process, DATA.denoiser(case.process), jax.random.key(0))

    def program(num_steps):
        return jax.jit(run).lower(jnp.zeros((2, 2)), jnp.zeros(num_steps + 1)).as_text()

    short, long = program(10), program(1000)
    assert "while" in short
    assert short.count("\n") == long.count("\n")


def test_rows_have_any_shape():
    x_T = jnp.ones((2, 3, 3, 1))
    out = sample(
        solvers.ancestral(), VP(), lambda x, t: 0.1 * x, jax.random.key(0), x_T, grids.uniform(0.1, 1.0)(VP(), 5)
    )
    assert out.shape == x_T.shape and not np.allclose(out[0], out[1])


@pytest.mark.parametrize(
    ("x_T", "times", "message"),
    [
        (jnp.ones((2, 1)), jnp.array([1.5, 0.0]), "times runs from 1.5 to 0; times must be in"),
        (jnp.ones((2, 1)), jnp.array([1.0, jnp.nan]), "times must be in"),
        (jnp.ones((2, 1)), jnp.array([1.0]), "times has 1 entries"),
        (jnp.array([[jnp.inf], [0.0]]), jnp.array([1.0, 0.5]), "x_T has 1 NaN or infinite values"),
    ],
)
def test_refuses_what_it_cannot_sample(x_T, times, message):
    with pytest.raises(ValueError, match=message):
        sample(solvers.ddim(), VP(), lambda x, t: x, jax.random.key(0), x_T, times)


def test_importing_the_core_is_light():
    """No data sets, plotting, checkpoints or scikit-learn; the bound on CPU time is generous, 1.5 s is the goal."""
    program = (
        "import sys, time; start = time.process_time()\n"
        "import diffusion_jax\n"
        "from diffusion_jax import grids, losses, parameterizations, processes, sampling, solvers, times, weightings\n"
        "heavy = {'tensorflow_datasets', 'tensorflow', 'matplotlib', 'sklearn', 'orbax', 'torch'} & set(sys.modules)\n"
        "print(time.process_time() - start, sorted(heavy))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, check=True)
    seconds, heavy = out.stdout.strip().split(" ", 1)
    assert heavy == "[]"
    assert float(seconds) < 5, f"importing took {seconds} s"


def test_double_precision_takes_single_precision_times():
    process = VP()
    with jax.enable_x64(True):
        times = grids.uniform()(process, 4).astype(jnp.float32)
        x = sample(solvers.unipc(3), process, lambda x, t: 0.5 * x, jax.random.key(0), jnp.ones((2, 1)), times)
        assert x.dtype == jnp.float64


def test_integers_go_through_with_the_times_as_they_are():
    """Token ids that a toy solver replaces by D's where a coin of probability t - s, at times in float32, says so."""
    seen = []

    def step(process, D, keys, x, t, s):
        seen.append((x.dtype, t.dtype))
        chosen = jax.vmap(lambda key: jax.random.bernoulli(key, t - s, x.shape[1:]))(keys)
        return jnp.where(chosen, D(x, t), x)

    x_T, times = jnp.zeros((3, 50), jnp.int32), jnp.array([1.0, 0.75, 0.5])
    states = sample(stateless(step), VP(), lambda x, t: x + 7, jax.random.key(0), x_T, times, trajectory=True)
    assert states.dtype == jnp.int32 and seen[0] == (jnp.int32, jnp.float32)
    assert set(np.unique(states[1])) == {0, 7} and set(np.unique(states[2])) == {0, 7, 14}
    assert 0.1 < np.mean(states[1] == 7) < 0.4


ARGUMENTS = dict(
    solver=solvers.ddim(),
    process=VP(),
    D=lambda x, t: x,
    key=jax.random.key(0),
    x_T=jnp.ones((2, 1)),
    times=jnp.array([1.0, 0.5]),
)


@pytest.mark.parametrize(
    "name, value, error, words",
    [
        ("solver", solvers.ddim, TypeError, r"solver is ddim.*ddim\(\)"),
        ("process", VP, TypeError, r"process is VP.*VP\(\)"),
        ("times", grids.uniform, TypeError, r"times is a function.*grids\.uniform\(\)"),
        ("times", grids.uniform(), TypeError, "times is a function"),
        ("times", jnp.float32(1), ValueError, r"times has the shape \(\)"),
        ("key", 0, TypeError, r"key is 0;.*jax\.random\.key\(0\)"),
        ("key", jax.random.PRNGKey(0), TypeError, r"PRNGKey.*jax\.random\.key\(0\)"),
        ("x_T", jnp.float32(1), ValueError, r"x_T has the shape \(\); it must be \[batch, \.\.\.\]"),
    ],
)
def test_mistakes_of_newcomers_are_named(name, value, error, words):
    with pytest.raises(error, match=words):
        sample(**{**ARGUMENTS, name: value})


def test_such_mistakes_are_named_elsewhere_too():
    x, t = jnp.ones((2, 1)), jnp.float32(0.5)
    for call in (
        lambda key: processes.perturb(VP(), key, x, t),
        lambda key: processes.prior(VP(), key, (2, 1)),
        lambda key: likelihood.log_prob(VP(), lambda x, t: x, key, x),
    ):
        for key in (0, jax.random.PRNGKey(0)):
            with pytest.raises(TypeError, match=r"jax\.random\.key\(0\)"):
                call(key)
    for call in (
        lambda process: processes.perturb(process, jax.random.key(0), x, t),
        lambda process: processes.prior(process, jax.random.key(0), (2, 1)),
        lambda process: likelihood.log_prob(process, lambda x, t: x, jax.random.key(0), x),
    ):
        with pytest.raises(TypeError, match=r"VP\(\)"):
            call(VP)
