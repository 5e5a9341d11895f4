"""The denoising loss, which contains those of NCSN, DDPM, score SDEs, EDM and flow matching as choices.

    L = w(t) |D(x_t, t) - x_0|^2 = w(t) c_out^2 |F(c_in x_t, c_noise) - target|^2

| paper | parameterization | weighting | times |
|---|---|---|---|
| NCSN (arXiv:1907.05600) | score | sigma_squared | levels |
| DDPM, L_simple (arXiv:2006.11239) | eps | simple | discrete |
| score SDE (arXiv:2011.13456) | score scaled by sigma, or eps | simple or likelihood | uniform |
| EDM (arXiv:2206.00364) | edm | edm | log_normal |
| flow matching (arXiv:2210.02747) | velocity | velocity_matching | uniform, logit_normal |
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Shaped

from diffusion_jax.losses import times as times_module
from diffusion_jax.losses.times import Times
from diffusion_jax.losses.weightings import Weighting
from diffusion_jax.parameterizations import Parameterization
from diffusion_jax.processes.base import bcast, perturb, row_sum
from diffusion_jax.projections import Projector
from diffusion_jax.types import Apply, Cond, Denoiser, Params, Process, check_choice, check_key, needing

NORMS: dict[str, Callable[[Array], Array]] = {"l2": jnp.square, "l1": jnp.abs}
REDUCTIONS = ("mean", "half_sum")
# loss(params, key, x_0, cond=None, where=None, *, train=True)
Loss = Callable[..., tuple[Float[Array, "batch"], dict[str, Array]]]
# The entries of x that count: a mask that broadcasts to x, whose last axes may be left out; None for all.
Where = Shaped[Array, "batch *masked"] | None


def weighted_error(
    process: Process,
    param: Parameterization,
    weighting: Weighting,
    x_0: Float[Array, "batch *shape"],
    eps: Float[Array, "batch *shape"],
    t: Float[Array, "batch"],
    out: Float[Array, "batch *shape"],
    where: Where = None,
    norm: str = "l2",
    dof: Float[Array, "batch"] | None = None,
) -> tuple[Float[Array, "batch"], Float[Array, "batch"]]:
    """(w c_out^2 error, error) of the network's output F at x_t = alpha x_0 + sigma eps.

    The error is the mean of the squares of its entries (`norm` "l2") or of their absolute values ("l1"), over the
    entries that `where` counts; of rows in a subspace of `dof` dimensions the sum over that number.
    """
    c = param(process, t)
    # (x_0 - c_skip x_t) / c_out, written in x_0 and eps: for eps prediction the first term is exactly zero.
    target = (
        bcast((1 - c.c_skip * process.alpha(t)) / c.c_out, x_0) * x_0
        - bcast(c.c_skip * process.sigma(t) / c.c_out, x_0) * eps
    )
    errors = NORMS[norm](out - target)
    error = row_mean(errors, where) if dof is None else row_sum(errors) / jnp.maximum(dof, 1)
    return weighting(process, t) * c.c_out**2 * error, error


def row_mean(values: Float[Array, "batch *shape"], where: Where = None) -> Float[Array, "batch"]:
    """The mean of each row over the entries that `where` counts, 0 for a row without any."""
    if where is None:
        return jnp.mean(values.reshape(values.shape[0], -1), axis=-1)
    counted = _counted(where, values)
    total = jnp.sum(jnp.where(counted, values.reshape(counted.shape), 0), axis=-1)
    return total / jnp.maximum(jnp.sum(counted, axis=-1), 1)


def _counted(where: Array, values: Float[Array, "batch *shape"]) -> Bool[Array, "batch entries"]:
    return (jnp.broadcast_to(bcast(where.astype(values.dtype), values), values.shape) > 0).reshape(len(values), -1)


def denoising_loss(
    apply: Apply,
    param: Parameterization,
    process: Process,
    weighting: Weighting,
    times: Times = times_module.uniform(),
    norm: str = "l2",
    reduce: str = "mean",
) -> Loss:
    """Build `loss(params, key, x_0, cond=None, where=None, *, train=True, eps=None, projector=None) -> ([batch], aux)`,
    the mean of L above over dimensions, or over those that the mask `where` counts. `eps` is the noise of examples that
    come with theirs; None: it is drawn. With a `projector` x_0, eps and F are projected, and the mean is over degrees
    of freedom: of the noise outside of the subspace nothing can be predicted, see `projections`.

    With `norm` "l1" it is w c_out^2 |F - target| instead, as in some models of latent diffusion (arXiv:2112.10752).
    `reduce` "half_sum" is half the sum over dimensions, as in the code of score SDEs (arXiv:2011.13456); the scale
    matters where the gradient is clipped.

    aux holds the times `t` and the unweighted network error, `mse` or for l1 `mae`, both [batch]. `apply` is called as
    apply(params, x, c_noise, cond, key=key), the key being for dropout and None unless `train`.

    Raises ValueError for an unknown `norm` or `reduce`.
    """
    check_choice("norm", norm, NORMS)
    check_choice("reduce", reduce, REDUCTIONS)

    @needing(weighting, sigma=True)
    def loss(
        params: Params,
        key: Key[Array, ""],
        x_0: Array,
        cond: Cond = None,
        where: Where = None,
        *,
        train: bool = True,
        eps: Array | None = None,
        projector: Projector | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        check_key(key)
        if where is not None and projector is not None:
            raise ValueError("where and projector are given; a projector says which entries of x count")
        time_key, noise_key, dropout_key = jax.random.split(key, 3)
        t, density_weight = times(process, time_key, x_0.shape[0])
        x_t, eps = perturb(process, noise_key, x_0, t, eps)
        P = projector or (lambda x: x)
        x_0, eps, x_t = P(x_0), P(eps), P(x_t)
        dof = projector and projector.dof(x_0)
        c = param(process, t)
        out = P(apply(params, bcast(c.c_in, x_0) * x_t, c.c_noise, cond, key=dropout_key if train else None))
        weighted, error = weighted_error(process, param, weighting, x_0, eps, t, out, where, norm, dof)
        if reduce == "half_sum":
            whole = x_0[0].size if dof is None else dof
            weighted = weighted * 0.5 * (whole if where is None else jnp.sum(_counted(where, x_0), axis=-1))
        return density_weight * weighted, {"t": t, "mse" if norm == "l2" else "mae": error}

    return loss


def error_of_denoiser(
    D: Denoiser,
    process: Process,
    weighting: Weighting,
    times: Times,
    key: Key[Array, ""],
    x_0: Float[Array, "batch *shape"],
    cond: Cond = None,
) -> Float[Array, "batch"]:
    """w(t) |D(x_t, t, cond) - x_0|^2, the mean over dimensions, at one time t per example, for any denoiser.

    It is the loss above where D is more than one preconditioned network.
    """
    time_key, noise_key = jax.random.split(key)
    t, density_weight = times(process, time_key, x_0.shape[0])
    x_t, _ = perturb(process, noise_key, x_0, t)
    return density_weight * weighting(process, t) * row_mean(jnp.square(D(x_t, t, cond) - x_0))


def refuse_where(where: Where, name: str) -> None:
    """Raises ValueError for a mask that the loss `name` has no use of."""
    if where is not None:
        raise ValueError(f"where is given, but {name} counts all entries of x; the denoising loss takes a mask")
