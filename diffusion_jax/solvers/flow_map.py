"""Sampling of flow maps: each step goes from one time to the next in one evaluation of the network."""

from jaxtyping import Array

from diffusion_jax.parameterizations import FlowMap
from diffusion_jax.solvers.base import stateless
from diffusion_jax.types import Denoiser, Process, Solver


def flow_map() -> Solver:
    """x_s = x_t - (t - s) u(x_t, t, s) with the mean velocity u of a `parameterizations.FlowMap`.

    One evaluation per step, for steps of any length. An exact flow map makes no error of discretisation: one step from
    t = 1 to 0 and many arrive at the same x_0. arXiv:2505.13447, eq. 12. The step raises ValueError for another D.
    """

    def step(process: Process, D: Denoiser, keys: Array, x: Array, t: Array, s: Array) -> Array:
        if not isinstance(D, FlowMap):
            raise ValueError("the solver flow_map needs a FlowMap, a denoiser that knows the mean velocity")
        return D.to(x, t, s)

    return stateless(step, flow_map=True, falling_times=True)
