"""Adaptive solvers against exact flows, with rows that do not know of each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import solvers
from diffusion_jax.processes import VP
from diffusion_jax.solvers.sampling import sample
from tests.oracles import PROCESSES, Gaussian
from tests.solvers.test_marginals import DATA, N, assert_samples_of, start


def gaussian():
    return Gaussian(mean=jnp.array([0.3, -0.5]), covariance=jnp.array([[0.5, 0.3], [0.3, 0.4]]))


def runner(solver, process, D, times):
    """(x, ids) -> the states at all `times`."""
    options = dict(trajectory=True)
    times = jnp.asarray(times)
    return jax.jit(lambda x, ids: sample(solver, process, D, jax.random.key(0), x, times, ids=ids, **options))


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("method", "process", "tolerance"),
    [("dopri5", "rectified_flow", 1e-8), ("dopri8", "ve", 1e-8), ("tsit5", "discrete_vp", 1e-5)],
)
def test_the_flow_and_back(method, process, tolerance):
    """One step each: from t = 1, also where alpha(1) = 0, down and up again, then to t = 0, where sigma may be 0.

    A row far away, which needs other steps, changes nothing for the others.
    """
    with jax.enable_x64(True):
        process, data, ids = PROCESSES[process], gaussian(), jnp.arange(6)
        t = jnp.asarray([1.0, 0.1, 0.9, 0.1, 0.0])
        x = process.sigma(t[0]) * jax.random.normal(jax.random.key(1), (6, 2))
        run = runner(solvers.adaptive_ode(method, tolerance, tolerance), process, data.denoiser(process), t)
        found, stretched = run(x, ids), run(x.at[3].multiply(100), ids)
        np.testing.assert_allclose(jnp.delete(stretched, 3, axis=1), jnp.delete(found, 3, axis=1), atol=1e-11)
        for k in range(1, 5):
            exact = data.flow(process, x, t[0], t[k])
            scale = float(process.alpha(t[k]) + process.sigma(t[k]))
            last = 2e-6 * (k == 4)
            np.testing.assert_allclose(found[k] / scale, exact / scale, atol=50 * tolerance + last)


@pytest.mark.slow
def test_adaptive_sde_reaches_the_mixture():
    solver, ids = solvers.adaptive_sde(0.01, 0.003), jnp.arange(N)
    run = runner(solver, VP(), DATA.denoiser(VP()), [1.0, 1e-3])
    x = start(VP(), jnp.asarray(1.0))
    end = run(x, ids)[-1]
    assert end.dtype == jnp.float32
    assert_samples_of(DATA.at(VP(), jnp.asarray(1e-3)), end, bias=0.02)


@pytest.mark.slow
@pytest.mark.optimized  # rounding moves steps, and with them a row by about 0.001
def test_adaptive_sde_follows_one_path_per_row_whatever_its_steps():
    """Tolerances change steps and rejections, not the Brownian path; other noise would move a row by about 1."""
    data, x, ids = gaussian(), jax.random.normal(jax.random.key(1), (16, 2)), jnp.arange(16)
    loose, strict = (
        runner(solvers.adaptive_sde(tolerance, tolerance), VP(), data.denoiser(VP()), [1.0, 0.0])
        for tolerance in (3e-2, 1e-3)
    )
    end = loose(x, ids)[-1]
    assert float(jnp.abs(end - strict(x, ids)[-1]).mean()) < 0.02
    assert float(jnp.abs(end - x).mean()) > 0.3
    moved = loose(x[::-1].at[0].set(30.0), ids[::-1])[-1]
    np.testing.assert_allclose(moved[1:], end[::-1][1:], atol=1e-5)


@pytest.mark.parametrize("name", ["adaptive_ode", "adaptive_sde"])
def test_too_few_steps_give_nan_in_a_program_that_can_be_cached(name):
    """A callback on the host would keep it out of JAX's persistent cache."""
    solver = getattr(solvers, name)(rtol=1e-6, atol=1e-6, max_steps=3)
    run = runner(solver, VP(), gaussian().denoiser(VP()), [1.0, 0.1])
    assert np.isnan(run(jnp.ones((2, 2)), jnp.arange(2))[-1]).all()
    assert "callback" not in run.lower(jnp.ones((2, 2)), jnp.arange(2)).as_text()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: solvers.adaptive_ode("kvaerno5"), "method is 'kvaerno5'; choose one of heun, bosh3, tsit5"),
        (lambda: solvers.adaptive_ode(rtol=0.0), "rtol is 0.0; it must be positive"),
        (lambda: solvers.adaptive_ode(max_steps=0), "max_steps is 0; it must be at least 1"),
        (lambda: solvers.adaptive_sde(atol=-1.0), "atol is -1.0; it must be positive"),
        (lambda: solvers.adaptive_sde(first_step=0.0), "first_step is 0.0; it must be positive"),
    ],
)
def test_refusals(build, words):
    with pytest.raises(ValueError, match=words):
        build()
