"""Score matching without a known target: implicit (Hyvarinen) and sliced.

Both equal E |s(x) - grad log p(x)|^2 / 2 up to a constant of the data, by integration by parts.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax import parameterizations
from diffusion_jax.losses.denoising import Loss, Where, refuse_where
from diffusion_jax.losses.times import Times
from diffusion_jax.parameterizations import Parameterization
from diffusion_jax.processes.base import perturb, row_dot
from diffusion_jax.types import Apply, Cond, Params, Process, check, needing

ScoreFn = Callable[[Float[Array, "batch *shape"]], Float[Array, "batch *shape"]]


def implicit_score_matching(score_fn: ScoreFn, x: Float[Array, "batch *shape"]) -> Float[Array, "batch"]:
    """tr(ds/dx) + |s|^2 / 2 with the exact trace, one forward derivative per dimension: for small dimension.

    `score_fn` must treat rows independently. Hyvarinen 2005, eq. 4.
    """
    n, d = x.shape[0], x[0].size
    flat = x.reshape(n, d)

    def row(v: Array) -> Array:
        return score_fn(v.reshape(1, *x.shape[1:])).reshape(d)

    trace = jax.vmap(lambda v: jnp.trace(jax.jacfwd(row)(v)))(flat)
    return trace + 0.5 * jnp.sum(score_fn(x).reshape(n, d) ** 2, axis=-1)


def sliced_score_matching(
    score_fn: ScoreFn,
    key: Key[Array, ""],
    x: Float[Array, "batch *shape"],
    *,
    variance_reduced: bool = True,
    num_projections: int = 1,
) -> Float[Array, "batch"]:
    """v^T (ds/dx) v + (v^T s)^2 / 2, averaged over `num_projections` directions v ~ N(0, I) per row.

    `variance_reduced` replaces (v^T s)^2 by its expectation |s|^2. arXiv:1905.07088, eq. 7 and 8.
    """

    def project(key: Key[Array, ""]) -> Array:
        v = jax.random.normal(key, x.shape, x.dtype)
        s, s_v = jax.jvp(score_fn, (x,), (v,))
        curvature = row_dot(v, s_v)
        return curvature + 0.5 * (row_dot(s, s) if variance_reduced else row_dot(v, s) ** 2)

    return jnp.mean(jax.vmap(project)(jax.random.split(key, num_projections)), axis=0)


def score_matching_loss(
    apply: Apply,
    param: Parameterization,
    process: Process,
    times: Times,
    *,
    projections: int = 1,
    variance_reduced: bool = True,
) -> Loss:
    """Score matching of the perturbed data x_t: `loss(params, key, x_0, cond=None, *, train=True)`; no mask.

    Twice the score matching objective, weighted by sigma^2 and divided by the dimension: in expectation it has the
    gradient of the denoising loss with NCSN's weight. `projections` > 0 slices; 0 takes the exact trace.
    arXiv:1907.05600, section 3.1. Raises ValueError for a negative number of them.
    """
    check(projections >= 0, "projections", projections, "at least 0")

    @needing(sigma=True)
    def loss(
        params: Params, key: Key[Array, ""], x_0: Array, cond: Cond = None, where: Where = None, *, train: bool = True
    ) -> tuple[Array, dict[str, Array]]:
        refuse_where(where, "score matching")
        time_key, noise_key, dropout_key, slice_key = jax.random.split(key, 4)
        t, density_weight = times(process, time_key, x_0.shape[0])
        x_t, _ = perturb(process, noise_key, x_0, t)

        def score_at(x: Array, t: Array, cond: Cond) -> Array:
            def network(x: Array, c_noise: Array, cond: Cond) -> Array:
                return apply(params, x, c_noise, cond, key=dropout_key if train else None)

            D = parameterizations.denoiser(network, param, process)
            return parameterizations.score(process, lambda x, t: D(x, t, cond), x, t)

        if projections:
            value = sliced_score_matching(
                lambda x: score_at(x, t, cond),
                slice_key,
                x_t,
                variance_reduced=variance_reduced,
                num_projections=projections,
            )
        else:

            def row(x: Array, t: Array, cond: Cond) -> Array:
                cond = jax.tree.map(lambda c: c[None], cond)
                return implicit_score_matching(lambda x: score_at(x, t[None], cond), x[None])[0]

            value = jax.vmap(row)(x_t, t, cond)
        value = 2 * value / x_0[0].size
        return density_weight * process.sigma(t) ** 2 * value, {"t": t, "score_matching": value}

    return loss
