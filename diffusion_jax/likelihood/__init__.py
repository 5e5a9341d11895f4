"""How probable is data: log-likelihoods by the probability-flow ODE, variational bounds, dequantization."""

from diffusion_jax.likelihood.bounds import bound_likelihood, continuous_bound, discrete_bound
from diffusion_jax.likelihood.ode import Likelihood, LogProb, log_prob, ode_likelihood

__all__ = [
    "Likelihood",
    "LogProb",
    "bound_likelihood",
    "continuous_bound",
    "discrete_bound",
    "log_prob",
    "ode_likelihood",
]
