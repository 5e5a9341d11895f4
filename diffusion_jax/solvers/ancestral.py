"""DDPM's ancestral sampling, DDIM, and DDIM with a fixed fraction of new noise."""

import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.parameterizations import with_raw
from diffusion_jax.processes.base import bcast, row_normal
from diffusion_jax.solvers.base import check_variance, posterior, stateless, step_variance, transition
from diffusion_jax.types import Denoiser, Process, Solver, check


def ancestral(variance: str = "beta_tilde") -> Solver:
    """Sample q(x_s | x_t, x_0 = D(x_t, t)) (arXiv:2006.11239, algorithm 2, for any pair of times and any process).

    mean = alpha_ts sigma_s^2 / sigma_t^2 x_t + alpha_s variance_ts / sigma_t^2 D. The variance is that of the
    posterior, variance_ts sigma_s^2 / sigma_t^2 (`beta_tilde`), or of the forward step, variance_ts (`beta`), or what
    the network says between them (`learned`: D must be a `LearnedVariance`; arXiv:2102.09672). There is no noise in a
    step that ends where sigma = 0. Raises ValueError for another `variance`, or a D that does not fit it.
    """
    if variance not in ("beta", "beta_tilde", "learned"):
        raise ValueError(f"variance is {variance!r}; choose beta, beta_tilde or learned")

    def step(process: Process, D: Denoiser, keys: Array, x: Array, t: Array, s: Array) -> Array:
        check_variance(variance, D)
        x_0, v = D.both(x, t) if variance == "learned" else (D(x, t), None)
        a, b, beta_tilde = posterior(process, t, s)
        _, beta = transition(process, t, s)
        noisy = process.sigma(s) > 0
        width = step_variance(variance, beta, jnp.where(noisy, beta_tilde, beta), v)
        return a * x + b * x_0 + jnp.sqrt(jnp.where(noisy, width, 0)) * row_normal(keys, x)

    return stateless(step, sigma=True, alpha_after=True, falling_times=True, learned_variance=variance == "learned")


def ddim(eta: float = 0.0) -> Solver:
    """DDIM: x_s = alpha_s D + sqrt(sigma_s^2 - v) eps + sqrt(v) z with eps = (x_t - alpha_t D) / sigma_t.

    v = eta^2 sigma_s^2 (1 - SNR_t / SNR_s): eta = 0 is the first-order exponential integrator of the
    probability-flow ODE, which also inverts (s > t) and takes times [batch]; eta = 1 is `ancestral`. arXiv:2010.02502,
    eq. 12 and 16. Raises ValueError unless eta is in [0, 1].
    """
    check(0 <= eta <= 1, "eta", eta, "in [0, 1]")

    def step(process: Process, D: Denoiser, keys: Array, x: Array, t: Array, s: Array) -> Array:
        x_0 = D(x, t)
        eps = (x - bcast(process.alpha(t), x) * x_0) / bcast(process.sigma(t), x)
        if eta == 0:
            return bcast(process.alpha(s), x) * x_0 + bcast(process.sigma(s), x) * eps
        _, variance_ts = transition(process, t, s)
        noise = eta**2 * variance_ts / process.sigma(t) ** 2  # relative to sigma_s^2
        direction = jnp.sqrt(1 - noise) * eps + jnp.sqrt(noise) * row_normal(keys, x)
        return process.alpha(s) * x_0 + process.sigma(s) * direction

    return stateless(step, sigma=True, alpha_after=eta != 0, falling_times=eta != 0)


def renoised(churn: float = 0.85, eps: str = "raw") -> Solver:
    """x_s = alpha_s D + sigma_s (sqrt(1 - churn^2) eps + churn z): DDIM that replaces a fixed fraction of the noise.

    How DDRM, DDNM (arXiv:2212.00490, eta) and DiffPIR (arXiv:2305.08995, zeta = churn^2) sample under a measurement.
    eps is (x_t - alpha_t D) / sigma_t with D before its correction ("raw") or after it ("corrected"). The fraction does
    not shrink with the step, so that errors are forgotten, and so is spread: with many steps what was not measured
    keeps (1 + sqrt(1 - churn^2)) / 2 of its variance. It is for 20 to 100 steps. Raises ValueError for a churn outside
    [0, 1] or another eps.
    """
    check(0 <= churn <= 1, "churn", churn, "in [0, 1]")
    check(eps in ("raw", "corrected"), "eps", eps, "raw or corrected")

    def step(process: Process, D: Denoiser, keys: Array, x: Array, t: Array, s: Array) -> Array:
        x_0, raw = with_raw(D, x, t)
        noise = (x - process.alpha(t) * (raw if eps == "raw" else x_0)) / process.sigma(t)
        noise = jnp.sqrt(1 - churn**2) * noise + churn * row_normal(keys, x)
        return process.alpha(s) * x_0 + process.sigma(s) * noise

    return stateless(step, sigma=True, falling_times=churn != 0)
