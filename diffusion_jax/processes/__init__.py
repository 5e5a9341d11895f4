"""Forward processes x_t = alpha(t) x_0 + sigma(t) eps, and what follows from alpha and sigma alone."""

from diffusion_jax.processes.base import (
    bcast,
    drift_and_diffusion,
    log_snr,
    perturb,
    prior,
    prior_log_prob,
    row_keys,
    row_normal,
    sampling_keys,
    time_derivative,
    time_of_log_snr,
)
from diffusion_jax.processes.bridge import (
    Bridge,
    Brownian,
    Reversed,
    SymmetricVE,
    brownian_bridge,
    i2sb_bridge,
    perturb_between,
    ve_bridge,
    vp_bridge,
)
from diffusion_jax.processes.continuous import EDM, VE, VP, Cosine, RectifiedFlow, SubVP, Trig, TruncatedCosine
from diffusion_jax.processes.discrete import DiscreteVP, beta_table, discrete_vp, rescale_zero_terminal_snr
from diffusion_jax.processes.gaussian_bridge import GaussianBridge
from diffusion_jax.processes.learned import LearnedVP, learned_vp

__all__ = [
    "EDM",
    "VE",
    "VP",
    "Bridge",
    "Brownian",
    "Cosine",
    "DiscreteVP",
    "GaussianBridge",
    "LearnedVP",
    "RectifiedFlow",
    "Reversed",
    "SubVP",
    "SymmetricVE",
    "Trig",
    "TruncatedCosine",
    "bcast",
    "beta_table",
    "brownian_bridge",
    "discrete_vp",
    "drift_and_diffusion",
    "i2sb_bridge",
    "learned_vp",
    "log_snr",
    "perturb",
    "perturb_between",
    "prior",
    "prior_log_prob",
    "rescale_zero_terminal_snr",
    "row_keys",
    "row_normal",
    "sampling_keys",
    "time_derivative",
    "time_of_log_snr",
    "ve_bridge",
    "vp_bridge",
]
