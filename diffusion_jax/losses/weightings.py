"""Loss weights w(process, t) of |D(x_t, t) - x_0|^2, one number per example.

All losses of the field are the same regression under another weight: mean squared error of eps is weight SNR, of
the score alpha^2 / sigma^4, and so on, whatever the network predicts. arXiv:2303.00848 compares them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.processes.base import log_snr, time_derivative
from diffusion_jax.types import Process, check, needing

Time = Float[Array, "*n"]
Weighting = Callable[[Process, Time], Time]


@needing(sigma=True)
def snr(process: Process, t: Time) -> Time:
    """alpha^2 / sigma^2."""
    return (process.alpha(t) / process.sigma(t)) ** 2


def simple() -> Weighting:
    """Mean squared error of eps: DDPM's L_simple (arXiv:2006.11239, eq. 14)."""
    return snr


def sigma_squared() -> Weighting:
    """sigma^2 |score error|^2: NCSN's lambda(sigma) = sigma^2 (arXiv:1907.05600, eq. 6)."""

    @needing(sigma=True)
    def weight(process: Process, t: Time) -> Time:
        return process.sigma(t) ** 2 * (process.alpha(t) / process.sigma(t) ** 2) ** 2

    return weight


def likelihood() -> Weighting:
    """g^2 |score error|^2, whose integral bounds the negative log-likelihood (arXiv:2101.09258, theorem 1).

    With g^2 = 2 sigma (sigma' - alpha' / alpha sigma) it is 2 alpha (alpha sigma' - alpha' sigma) / sigma^3.
    """

    @needing(sigma=True, derivatives=True)
    def weight(process: Process, t: Time) -> Time:
        alpha, d_alpha = time_derivative(process.alpha, t)
        sigma, d_sigma = time_derivative(process.sigma, t)
        return 2 * alpha * (alpha * d_sigma - d_alpha * sigma) / sigma**3

    return weight


def uniform() -> Weighting:
    """Mean squared error of x_0."""
    return lambda process, t: jnp.ones_like(t)


def velocity_matching() -> Weighting:
    """Mean squared error of the velocity dx/dt: conditional flow matching (arXiv:2210.02747, eq. 9)."""

    @needing(sigma=True, derivatives=True)
    def weight(process: Process, t: Time) -> Time:
        alpha, d_alpha = time_derivative(process.alpha, t)
        sigma, d_sigma = time_derivative(process.sigma, t)
        return (d_alpha - d_sigma * alpha / sigma) ** 2

    return weight


def edm(sigma_data: float = 0.5) -> Weighting:
    """(s^2 + sigma_data^2) / (s sigma_data)^2 with s = sigma / alpha (arXiv:2206.00364, table 1).

    It is (sigma^2 + alpha^2 sigma_data^2) / (sigma sigma_data)^2, which is finite where alpha = 0. Raises ValueError
    unless sigma_data is positive.
    """
    check(sigma_data > 0, "sigma_data", sigma_data, "positive")

    @needing(sigma=True)
    def weight(process: Process, t: Time) -> Time:
        sigma = process.sigma(t)
        return (sigma**2 + (process.alpha(t) * sigma_data) ** 2) / (sigma * sigma_data) ** 2

    return weight


def min_snr(gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma) (arXiv:2303.09556, eq. 8). Raises ValueError unless gamma is positive."""
    check(gamma > 0, "gamma", gamma, "positive")
    return lambda process, t: jnp.minimum(snr(process, t), gamma)


def truncated_snr() -> Weighting:
    """max(SNR, 1): the larger one of the errors of x_0 and eps, truncated SNR weighting (arXiv:2202.00512, eq. 9)."""
    return needing(snr)(lambda process, t: jnp.maximum(snr(process, t), 1))


def p2(gamma: float = 1.0, k: float = 1.0) -> Weighting:
    """eps error weighted by 1 / (k + SNR)^gamma (arXiv:2204.00227, eq. 8). Raises ValueError for negative numbers."""
    check(gamma >= 0, "gamma", gamma, "at least 0")
    check(k >= 0, "k", k, "at least 0")
    return needing(snr)(lambda process, t: snr(process, t) / (k + snr(process, t)) ** gamma)


def sigmoid(bias: float = 0.0) -> Weighting:
    """eps error weighted by sigmoid(bias - log SNR) (arXiv:2303.00848, section 4; arXiv:2410.19324)."""
    return needing(snr)(lambda process, t: snr(process, t) * jax.nn.sigmoid(bias - log_snr(process, t)))


def pdae(gamma: float = 0.1) -> Weighting:
    """eps error weighted by SNR^gamma / (1 + SNR), which is small at both ends (arXiv:2212.12990).

    The paper writes (1 / (1 + SNR))^(1 - gamma) (SNR / (1 + SNR))^gamma, the same number. Raises ValueError unless
    gamma is in [0, 1].
    """
    check(0 <= gamma <= 1, "gamma", gamma, "in [0, 1]")
    return needing(snr)(lambda process, t: snr(process, t) ** (1 + gamma) / (1 + snr(process, t)))
