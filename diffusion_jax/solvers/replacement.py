"""Solvers around a solver: known values that are replaced at every step, and steps back to more noise (time travel)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.processes.base import row_keys, row_normal
from diffusion_jax.solvers.base import staged, transition
from diffusion_jax.types import Denoiser, Needs, Process, Solver

# keep(x, known) -> x with what is known taken from `known`; linear in both, such as a choice of pixels.
Keep = Callable[[Float[Array, "batch *shape"], Float[Array, "batch *shape"]], Float[Array, "batch *shape"]]

# Folded into the keys of a step, which the solver itself folds small numbers into, or uses as they are.
_KNOWN, _FORWARD = 2**31 - 1, 2**31 - 2


def replaced(solver: Solver, image: Float[Array, "batch *shape"], keep: Keep) -> Solver:
    """`solver` with what is known of `image` put into the state before every step, with the noise of its time.

    x_t <- keep(x_t, alpha_t image + sigma_t z) with new z for every step, then the step of `solver`, whose noise stays
    the same. The state after the last step is the solver's. The stages of a solver that has several are steps of their
    own: before a corrector what is known is put in with the noise of the time that the predictor has come to.
    arXiv:2011.13456, appendix I.2; arXiv:2201.09865, algorithm 1, line 5, of which the preprint prints the variance as
    the standard deviation.

    The law of the result is not the conditional one: the other values see what is known only through D, at the noise of
    the step, and what they have become is never taken back. Raises ValueError for a solver that must be left alone.
    """
    check_alone(solver)
    if solver.stages:
        return staged(*(replaced(stage, image, keep) for stage in solver.stages))

    def step(process: Process, D: Denoiser, keys: Key[Array, "batch"], x: Array, t: Array, s: Array, carry):
        noise = row_normal(row_keys(keys, _KNOWN), x)
        known = process.alpha(t) * image + process.sigma(t) * noise
        return solver.step(process, D, keys, keep(x, known.astype(x.dtype)), t, s, carry)

    return solver._replace(step=step)


def travelling(solver: Solver) -> Solver:
    """`solver` on times that may rise: a step from t to s > t is one of the forward process, without evaluating D.

    x_s = alpha_st x_t + sqrt(variance_st) z, see `solvers.base.transition`. For grids such as `grids.jumps`.
    Raises ValueError for a solver with memory of earlier steps, which such a step would make wrong.
    """
    check_memory(solver)

    def step(process: Process, D: Denoiser, keys: Key[Array, "batch"], x: Array, t: Array, s: Array, carry):
        def forward(x: Array) -> Array:
            alpha_st, variance_st = transition(process, s, t)
            noisier = alpha_st * x + jnp.sqrt(variance_st) * row_normal(row_keys(keys, _FORWARD), x)
            return noisier.astype(x.dtype)

        def reverse(x: Array) -> Array:
            return solver.step(process, D, keys, x, t, s, carry)[0].astype(x.dtype)

        return jax.lax.cond(s > t, forward, reverse, x), carry

    # What the solver needs of the process holds where steps fall, which are those of the grid below the jumps.
    return Solver(solver.init, step, Needs(distinct_times=solver.needs.distinct_times))


def has_memory(solver: Solver) -> bool:
    """Whether a solver carries anything from step to step besides x, as multistep methods do."""
    return bool(jax.tree.leaves(jax.eval_shape(solver.init, jax.ShapeDtypeStruct((1, 1), jnp.float32))))


def check_memory(solver: Solver) -> None:
    """Raises ValueError for a solver with memory of earlier steps."""
    if has_memory(solver):
        raise ValueError(
            "steps back to more noise need a solver without memory of earlier steps, such as ancestral, ddim, heun or "
            "dpm_solver; this one is a multistep method"
        )


def check_alone(solver: Solver) -> None:
    """Raises ValueError for a solver whose state nothing else may change, see `types.Needs.alone`."""
    if solver.needs.alone:
        raise ValueError(
            "replacing known values needs a solver that takes one step at a noise level, such as ancestral, ddim or "
            "predictor_corrector; annealed Langevin dynamics takes many, in which they would be forgotten"
        )
