"""Bandwidth extension of Gaussian waveforms, whose frequencies are independent: the conditional law is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import solvers
from diffusion_jax.guidance.bandwidth import bandwidth, low_pass
from diffusion_jax.processes import DiscreteVP, bcast, beta_table, prior
from diffusion_jax.solvers import grids
from diffusion_jax.solvers.sampling import sample

LENGTH, ROWS = 32, 1500
PROCESS = DiscreteVP.from_betas(beta_table("linear", 400, beta_start=1e-5, beta_end=0.05))
SPECTRUM = 2.0 / (1 + np.arange(LENGTH // 2 + 1))  # variance of x at each frequency, in units of white noise


def wiener(x, t, spectrum=SPECTRUM):
    """E[x_0 | x_t] of circulant Gaussian waveforms: alpha S / (alpha^2 S + sigma^2) at each frequency."""
    alpha, sigma = bcast(PROCESS.alpha(t), x), bcast(PROCESS.sigma(t), x)
    s = jnp.asarray(spectrum, x.dtype)[:, None]
    return jnp.fft.irfft(jnp.fft.rfft(x, axis=1) * (alpha * s / (alpha**2 * s + sigma**2)), LENGTH, axis=1)


def power(x):
    return np.mean(np.abs(np.fft.rfft(np.asarray(x)[..., 0], axis=1)) ** 2, 0) / LENGTH


def drawn(edit=None, cond=None, solver=None, D=wiener):
    solver, times = solver or solvers.ancestral(), grids.discrete()(PROCESS, 400)
    x_T = prior(PROCESS, jax.random.key(0), (ROWS, LENGTH, 1))
    if edit:
        solver = edit.around(solver, cond)

    @jax.jit
    def run(x):
        x = sample(solver, PROCESS, D, jax.random.key(1), x, times)
        return edit.finish(x, cond) if edit else x

    return run(x_T)


def close(found, expected, tolerance=0.15):
    return (np.abs(found / expected - 1) < tolerance).all()


def test_samples_have_the_spectrum_of_the_data_and_a_wrong_denoiser_gives_another():
    assert close(power(drawn()), SPECTRUM)
    assert close(power(drawn(solver=solvers.ddim())), SPECTRUM)
    flat = lambda x, t: wiener(x, t, np.ones_like(SPECTRUM))
    assert not close(power(drawn(D=flat)), SPECTRUM)


def test_the_known_band_is_kept_and_the_other_one_has_its_conditional_law():
    edit, operator = bandwidth(0.5), low_pass((LENGTH, 1), 0.5)
    truth = jax.random.normal(jax.random.key(5), (ROWS, LENGTH, 1))
    cond = {"image": operator(truth)}
    x = drawn(edit, cond)
    np.testing.assert_allclose(operator(x), cond["image"], atol=1e-5)
    high = slice(LENGTH // 4, None)
    assert close(power(x)[high], SPECTRUM[high])
    # What the truth has in the upper band is never seen: both are independent.
    bands = [np.fft.rfft(np.asarray(a)[..., 0], axis=1)[:, high] for a in (x, truth)]
    correlation = np.abs(np.mean(bands[0] * bands[1].conj(), 0)) / np.sqrt(
        np.mean(np.abs(bands[0]) ** 2, 0) * np.mean(np.abs(bands[1]) ** 2, 0)
    )
    assert correlation.max() < 5 / np.sqrt(ROWS)


def test_the_operator_is_an_orthogonal_projection():
    operator = low_pass((LENGTH, 1), 0.3)
    x = jax.random.normal(jax.random.key(0), (3, LENGTH, 1))
    y = operator(x)
    np.testing.assert_allclose(operator(y), y, atol=1e-5)
    np.testing.assert_allclose(operator.transpose(x), y, atol=1e-5)
    np.testing.assert_allclose(operator.pinv(y), y, atol=1e-5)
    assert np.abs(np.fft.rfft(np.asarray(y), axis=1)[:, 5:]).max() < 1e-4


def test_refusals():
    for keep in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"keep is {keep}; it must be in"):
            bandwidth(keep)
    with pytest.raises(ValueError, match="waveforms"):
        bandwidth(0.5).check(10, solvers.ancestral(), (8, 8, 1))
