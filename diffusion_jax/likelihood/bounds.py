"""The variational bound of a chain of Gaussian steps, term by term (arXiv:2006.11239, eq. 5).

    -log P(x_0) <= L_T + sum_{t > 1} L_{t-1} + L_0
    L_T = KL(q(x_T | x_0) || N(0, sigma(1)^2 I)),   L_{t-1} = KL(q(x_s | x_t, x_0) || N(mean, variance)),
    L_0 = -log P(x_0 | x_1) of a Gaussian that is integrated over the cell of each grey level

Everything is in nats per example, summed over dimensions, for any process and any decreasing times.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from diffusion_jax.losses import times as times_module
from diffusion_jax.losses import weightings
from diffusion_jax.losses.bound_terms import decoder_nats, posterior_kl, prior_kl
from diffusion_jax.processes.base import bcast, row_keys, row_normal, row_sum
from diffusion_jax.solvers.base import check_variance, posterior, step_variance, transition
from diffusion_jax.solvers.grids import Grid
from diffusion_jax.types import Denoiser, Process, check, check_choice, needing

Time = Float[Array, "*n"]


def discrete_bound(
    process: Process,
    D: Denoiser,
    key: Key[Array, ""],
    x_0: Float[Array, "batch *shape"],
    times: Float[Array, "num_times"],
    *,
    variance: str = "beta_tilde",
    levels: int = 256,
) -> dict[str, Float[Array, "batch"]]:
    """All terms of the bound in nats per example, in one scan over `times`, with one x_t ~ q(x_t | x_0) per term.

    `times` decrease from T to the data, like a sampling grid: the last entry is the time of x_0, which is decoded from
    the one before. The result is {"prior": L_T, "terms": [num_times - 2, batch] of L_{t-1}, largest t first,
    "decoder": L_0, "squared_error": |x_0 - D(x_1)|^2}. The noise of row r comes from fold_in(key, r).

    Args:
      D: conditions bound. With variance="learned" it offers D.both(x, t) -> (x_0, v), v in [0, 1].
      variance: of the reverse steps, see `step_variance`. The decoder has the posterior variance of the step before
        it, as DDPM has, since its own is zero.

    Raises ValueError for fewer than two steps, an unknown variance, or a D without learned variances.
    """
    check_variance(variance, D)
    if len(times) < 3:
        raise ValueError(f"times has {len(times)} entries; the bound needs at least 2 steps")
    keys = row_keys(key, jnp.arange(x_0.shape[0]))
    *_, decoder_variance = posterior(process, times[-3], times[-2])

    def denoised(t: Array, index: Array) -> tuple[Array, Array | None]:
        x_t = process.alpha(t) * x_0 + process.sigma(t) * row_normal(row_keys(keys, index), x_0)
        return D.both(x_t, t) if variance == "learned" else (D(x_t, t), None)

    def term(_, step: tuple[Array, Array, Array]) -> tuple[None, Array]:
        t, s, index = step
        x_hat, v = denoised(t, index)
        _, beta = transition(process, t, s)
        *_, beta_tilde = posterior(process, t, s)
        nats = posterior_kl(process, t, s, x_0, x_hat, step_variance(variance, beta, beta_tilde, v))
        return None, jnp.where(t == s, 0, nats)  # a step from a time to itself says nothing of x_0

    _, terms = jax.lax.scan(term, None, (times[:-2], times[1:-1], jnp.arange(len(times) - 2)))
    x_hat, v = denoised(times[-2], jnp.asarray(len(times) - 2))
    if variance == "learned":
        _, beta = transition(process, times[-2], times[-1])
        decoder_variance = step_variance(variance, beta, decoder_variance, v)
    return {
        "prior": prior_kl(process, x_0, times[0]),
        "terms": terms,
        "decoder": decoder_nats(x_0, x_hat, decoder_variance, levels),
        "squared_error": row_sum((x_0 - x_hat) ** 2),
    }


def continuous_bound(
    process: Process,
    D: Denoiser,
    key: Key[Array, ""],
    x_0: Float[Array, "batch *shape"],
    *,
    t_min: float = 1e-5,
    t_max: float = 1.0,
) -> Float[Array, "batch"]:
    """An unbiased estimate, in nats, of an upper bound on -log p(x_0) for continuous x_0: one t and one eps per row.

        L_T + 1/2 int g^2 |score error|^2 dt + d/2 log(2 pi e sigma(t_min)^2 / alpha(t_min)^2)

    The integral from t_min to t_max is of the denoising loss under the likelihood weighting, at times drawn in
    proportion to g^2 / sigma^2; the last term decodes x_0 from x_{t_min} by N(x_{t_min} / alpha, sigma^2 / alpha^2).
    Unlike `likelihood.log_prob` it is cheap to differentiate. arXiv:2101.09258, theorem 3; arXiv:2107.00630, eq. 17.
    Row r has the randomness of fold_in(key, r).
    """
    end = jnp.asarray(t_min, x_0.dtype)
    decoder = 0.5 + 0.5 * jnp.log(2 * jnp.pi) + jnp.log(process.sigma(end) / process.alpha(end))
    return path_bound(process, D, key, x_0, t_min=t_min, t_max=t_max) + x_0[0].size * decoder


def path_bound(
    process: Process,
    D: Denoiser,
    key: Key[Array, ""],
    x_0: Float[Array, "batch *shape"],
    *,
    t_min: float = 1e-5,
    t_max: float = 1.0,
) -> Float[Array, "batch"]:
    """The first two terms of `continuous_bound`: KL(q(x_{t_min} .. x_{t_max} | x_0) || p), in nats, estimated.

    It is what x_{t_min} costs, so that with -log p(w | x_{t_min}) it bounds -log p(w) for what x_0 encodes.
    """
    keys = row_keys(key, jnp.arange(x_0.shape[0]))
    draw = times_module.importance(weightings.likelihood(), t_min=t_min, t_max=t_max)
    t, weight = jax.tree.map(jnp.ravel, jax.vmap(lambda k: draw(process, k, 1))(row_keys(keys, 0)))
    x_t = bcast(process.alpha(t), x_0) * x_0 + bcast(process.sigma(t), x_0) * row_normal(row_keys(keys, 1), x_0)
    error = (t_max - t_min) * weight * weightings.likelihood()(process, t) * row_sum((x_0 - D(x_t, t)) ** 2)
    return prior_kl(process, x_0, t_max) + 0.5 * error


def bound_likelihood(
    *, grid: Grid, steps: int = 0, variance: str = "beta_tilde", levels: int = 256
) -> Callable[..., dict[str, Float[Array, "batch"]]]:
    """The variational bound as the likelihood of config.evaluation, a function of (process, D, key, x_0 on levels).

    `bits_per_dim` = `rate` + `distortion` with rate = L_T + sum_{t > 1} L_{t-1} and distortion = L_0, all in bits per
    dimension, as in arXiv:2006.11239, table 2; `prior` = L_T; `rmse` of D at the last time, in grey levels. It takes
    `steps` of `grid`; 0: all of a discrete process. See `discrete_bound`.

    Raises ValueError for an unknown variance, fewer than 2 levels or one step.
    """
    check_choice("variance", variance, ("beta", "beta_tilde", "learned"))
    check(levels >= 2, "levels", levels, "at least 2")
    check(steps >= 2 or steps == 0, "steps", steps, "at least 2, or 0 for all steps of a discrete process")

    @needing(num_steps=not steps, learned_variance=variance == "learned")
    def likelihood(process: Process, D: Denoiser, key: Key[Array, ""], x_0: Array) -> dict[str, Array]:
        times = grid(process, steps or process.num_steps)
        nats = discrete_bound(process, D, key, x_0, times, variance=variance, levels=levels)
        bits = x_0[0].size * np.log(2)
        rate, distortion = (nats["prior"] + jnp.sum(nats["terms"], axis=0)) / bits, nats["decoder"] / bits
        rmse = jnp.sqrt(nats["squared_error"] / x_0[0].size) * (levels - 1) / 2
        return {
            "bits_per_dim": rate + distortion,
            "rate": rate,
            "distortion": distortion,
            "prior": nats["prior"] / bits,
            "rmse": rmse,
        }

    return likelihood
