"""Progressive distillation: the student of an exact or a trained teacher makes its samples in half the steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import solvers
from diffusion_jax.losses.distillation import ddim_step, progressive_target
from diffusion_jax.processes import VP, TruncatedCosine
from diffusion_jax.solvers.sampling import sample
from tests.oracles import Gaussian

DATA = Gaussian(mean=jnp.array([0.5, -1.0]), covariance=jnp.array([[0.5, 0.3], [0.3, 0.4]]))
PROCESSES = {"truncated_cosine": TruncatedCosine(), "vp": VP()}


def drawn(process, D, x, steps):
    return sample(solvers.ddim(), process, D, jax.random.key(0), x, jnp.linspace(1.0, 0.0, steps + 1))


def student(process, teacher, steps):
    """The exact student: at t = i / steps it predicts the target."""

    def D(x, t):
        t = jnp.broadcast_to(t, x.shape[:1])
        return progressive_target(process, teacher, x, t, jnp.maximum(t - 1 / steps, 0))

    return D


@pytest.mark.parametrize("name", PROCESSES)
def test_students_of_students_make_the_samples_of_the_first_teacher(name):
    """4 steps of DDIM, in 2 and in one; the teacher itself is off in so few."""
    process, teacher = PROCESSES[name], DATA.denoiser(PROCESSES[name])
    x = jax.random.normal(jax.random.key(1), (16, 2))
    expected, D = drawn(process, teacher, x, 4), teacher
    for steps in (2, 1):
        D = student(process, D, steps)
        np.testing.assert_allclose(drawn(process, D, x, steps), expected, atol=2e-4)
    assert jnp.abs(drawn(process, teacher, x, 1) - expected).max() > 0.1


def test_a_step_is_that_of_the_solver():
    process, D = VP(), DATA.denoiser(VP())
    x, t, s = jax.random.normal(jax.random.key(1), (4, 2)), jnp.float32(0.7), jnp.float32(0.2)
    expected, _ = solvers.ddim().step(process, D, jax.random.split(jax.random.key(0), len(x)), x, t, s, ())
    np.testing.assert_allclose(ddim_step(process, D, x, jnp.full(4, t), jnp.full(4, s)), expected, atol=1e-5)


@pytest.mark.parametrize(("steps", "slope"), [(4, 0.667), (8, 0.823), (64, 0.976)])
def test_what_a_perfect_student_cannot_beat(steps, slope):
    """N-step DDIM of N(0, 1/4) on the cosine schedule scales by less than the flow: the limit of distillation."""
    data = Gaussian(mean=jnp.zeros(1), covariance=jnp.full((1, 1), 0.25))
    process = TruncatedCosine()
    x = jnp.ones((1, 1))
    exact = data.flow(process, x, jnp.float32(1), jnp.float32(0))
    found = drawn(process, data.denoiser(process), x, steps) / exact
    np.testing.assert_allclose(found, slope, atol=2e-3)


def test_the_truncated_cosine_ends_at_its_levels_of_snr():
    process = TruncatedCosine(log_snr_max=20.0, log_snr_min=-20.0)
    t = jnp.array([0.0, 0.25, 0.5, 1.0])
    level = 2 * (jnp.log(process.alpha(t)) - jnp.log(process.sigma(t)))
    np.testing.assert_allclose(level[jnp.array([0, 2, 3])], [20, 0, -20], atol=1e-3)
    np.testing.assert_allclose(process.alpha(t) ** 2 + process.sigma(t) ** 2, 1, atol=1e-6)
    np.testing.assert_allclose(process.alpha(t)[1:3], jnp.cos(jnp.pi / 2 * t[1:3]), atol=1e-3)
