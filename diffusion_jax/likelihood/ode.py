"""Log-likelihoods by the probability-flow ODE (arXiv:1806.07366, arXiv:1810.01367, arXiv:2011.13456)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax import processes
from diffusion_jax.likelihood import dequantization as dequantizations
from diffusion_jax.processes.base import row_dot, row_keys, row_sum
from diffusion_jax.solvers.odes import check_adaptive, integrate, rectified
from diffusion_jax.solvers.values import check_finite
from diffusion_jax.types import Denoiser, Process, check, check_choice, check_made, spread

# (process, D, key, x_0) -> metrics of every example, each [batch]; among them "bits_per_dim"
Likelihood = Callable[..., dict[str, Float[Array, "batch"]]]
Divergence = Callable[[Callable[[Array], Array], Array], tuple[Array, Float[Array, "batch"]]]

_BASIS_BLOCK = 64  # directions of the exact trace that are pushed forward at once
_FEW = 3  # directions that are cheaper one by one


@dataclasses.dataclass(frozen=True, kw_only=True)
class OdeOptions:
    """How `log_prob` integrates the ODE and estimates the trace of its Jacobian.

    Attributes:
      trace: of the Jacobian, "exact" (d forward derivatives per evaluation) or "hutchinson": e^T J e with random
        probes e, fixed along the path, unbiased for log p.
      probe: "rademacher" (exact for diagonal Jacobians) or "gaussian".
      num_probes: averaged, >= 1.
      rtol, atol: of the integration, see `odes.integrate`; the log density is one more coordinate of the row. On
        mixtures in 16 dimensions 1e-5 leaves errors of a few 1e-3 nats, 1e-6 a few 1e-4.
      t_min, t_max: in [0, 1]; sigma(t_min) must be positive. Parameterizations that divide by alpha need t_max < 1 for
        processes with alpha(1) = 0.
      method: one of `odes.METHODS`.
      max_steps: of one row; a row that needs more has the log density NaN.

    Raises:
      ValueError: an unknown choice, or a number out of range.
    """

    trace: str = "hutchinson"
    probe: str = "rademacher"
    num_probes: int = 1
    rtol: float = 1e-5
    atol: float = 1e-5
    t_min: float = 1e-5
    t_max: float = 1.0
    method: str = "dopri5"
    max_steps: int = 4096

    def __post_init__(self) -> None:
        check_choice("trace", self.trace, ("hutchinson", "exact"))
        check_choice("probe", self.probe, ("rademacher", "gaussian"))
        check(self.num_probes >= 1, "num_probes", self.num_probes, "at least 1")
        if not 0 <= self.t_min < self.t_max <= 1:
            raise ValueError(
                f"t_min is {self.t_min} and t_max is {self.t_max}; they must satisfy 0 <= t_min < t_max <= 1"
            )
        check_adaptive(self.method, self.rtol, self.atol, self.max_steps)


class LogProb(NamedTuple):
    """log p(x_0) in nats, the x at t_max that the flow carries x_0 to, and the evaluations of D each row took."""

    nats: Float[Array, "batch"]
    latent: Float[Array, "batch *shape"]
    nfe: Int[Array, "batch"]


@spread(OdeOptions)
def log_prob(
    process: Process,
    D: Denoiser,
    key: Key[Array, ""],
    x_0: Float[Array, "batch *shape"],
    options: OdeOptions,
    *,
    prior_log_prob: Callable[[Float[Array, "batch *shape"]], Float[Array, "batch"]] | None = None,
    ids: Int[Array, "batch"] | None = None,
) -> LogProb:
    """log p(x_0) = log p_T(x_T) + int div v(x_t, t) dt along dx/dt = v(x, t), the probability-flow ODE.

    The ODE is arXiv:2011.13456, eq. 13, the change of variables eq. 39 there, and it is integrated in the coordinates
    of `odes.rectified`. x_0 is taken as the state at t_min, so the density is that of x_{t_min}, data with the
    noise sigma(t_min) in it. Every row has its own step sizes and its own probes from fold_in(key, ids[r]) (default:
    0..batch-1), so its result does not depend on the batch.

    Args:
      D: D(x, t) with its conditions bound; t is [batch].
      options: the fields of `OdeOptions`, each by its name.
      prior_log_prob: x_T -> [batch], the log density at t_max; by default `processes.prior_log_prob`, which is exact
        only as far as nothing of the data is left at t_max.

    Raises:
      ValueError: options out of range, a batch without examples, and, outside of `jit`, one that is not finite.
    """
    check_made("process", process, "process")
    if not jnp.shape(x_0) or x_0.size == 0:
        raise ValueError(f"x_0 must hold examples, got shape {x_0.shape}")
    check_finite("x_0", x_0)
    ids = jnp.arange(x_0.shape[0]) if ids is None else ids
    divergence = _exact
    if options.trace == "hutchinson":
        divergence = _hutchinson(draw_probes(options.probe, row_keys(key, ids), options.num_probes, x_0))

    flow = rectified(process, D, jnp.asarray(options.t_min, x_0.dtype), jnp.asarray(options.t_max, x_0.dtype))
    (u_min, scale_min), (u_max, scale_max) = flow.start, flow.end

    def field(state: tuple[Array, Array], u: Array) -> tuple[Array, Array]:
        return divergence(lambda z: flow.velocity(z, u), state[0])

    start = (x_0 / scale_min, jnp.zeros(x_0.shape[0], x_0.dtype))
    (z, gained), nfe, finished = integrate(
        field,
        start,
        u_min,
        u_max,
        method=options.method,
        rtol=options.rtol,
        atol=options.atol,
        max_steps=options.max_steps,
    )
    latent = scale_max * z
    prior = prior_log_prob(latent) if prior_log_prob else processes.prior_log_prob(process, latent, options.t_max)
    nats = prior + gained + x_0[0].size * jnp.log(scale_max / scale_min)
    return LogProb(jnp.where(finished, nats, jnp.nan), latent, nfe)


@spread(OdeOptions)
def ode_likelihood(options: OdeOptions, *, dequantization: str = "uniform", levels: int = 256) -> Likelihood:
    """The likelihood of config.evaluation: `log_prob` of dequantized data as a function of (process, D, key, x_0).

    Its metrics are `bits_per_dim`, an upper bound on the code length in expectation over the dequantization noise;
    `nats`, the log density of the dequantized x; and `nfe`. `dequantization` is "uniform" over the `levels` grey
    levels of the data, or "none" for continuous data, whose bits_per_dim is that of the density itself. A trained
    `dequantization.variational` may be given to the result as `dequantize=`, instead of uniform noise.

    Raises ValueError for an unknown choice or a number out of range.
    """
    check_choice("dequantization", dequantization, ("uniform", "none"))
    discrete = dequantization == "uniform"
    default = dequantizations.uniform(levels) if discrete else dequantizations.none()

    def likelihood(
        process: Process,
        D: Denoiser,
        key: Key[Array, ""],
        x_0: Array,
        dequantize: dequantizations.Dequantization = default,
    ) -> dict[str, Array]:
        noise_key, probe_key = jax.random.split(key)
        x, log_q = dequantize(row_keys(noise_key, jnp.arange(x_0.shape[0])), x_0)
        nats, _, nfe = log_prob(process, D, probe_key, x, **vars(options))
        bits = dequantizations.bits_per_dim(nats - log_q, x_0[0].size, levels if discrete else 0)
        return {"bits_per_dim": bits, "nats": nats, "nfe": nfe.astype(x_0.dtype)}

    return likelihood


def draw_probes(probe: str, keys: Key[Array, "batch"], num: int, x: Array) -> Float[Array, "num batch *shape"]:
    draw = jax.random.rademacher if probe == "rademacher" else jax.random.normal
    return jax.vmap(lambda key: draw(key, (num, *x.shape[1:]), x.dtype), out_axes=1)(keys)


def _hutchinson(probes: Float[Array, "num batch *shape"]) -> Divergence:
    def divergence(v: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
        value, push = jax.linearize(v, x)
        return value, jnp.mean(jax.vmap(row_dot)(probes, jax.vmap(push)(probes)), axis=0)

    return divergence


def _exact(v: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    value, push = jax.linearize(v, x)

    def entry(direction: Array) -> Array:
        return row_sum(push(jnp.broadcast_to(direction, x.shape)) * direction)

    basis = jnp.eye(x[0].size, dtype=x.dtype).reshape(-1, *x.shape[1:])
    if len(basis) <= _FEW:
        return value, sum(map(entry, basis))
    return value, jnp.sum(jax.lax.map(entry, basis, batch_size=_BASIS_BLOCK), axis=0)
