"""Projected diffusion: data in a subspace of each row, such as point sets of several sizes or without centre of mass.

A row x_0 of the data lies in the range of an orthogonal projection P, that of its nodes, or of its coordinates without
their mean. With x_t = alpha x_0 + sigma eps in the whole space the part (1 - P) x_t is noise that says nothing of x_0,
so D(x, t) = P D(P x, t). A solver whose step is linear in x, D and noise with one coefficient for all entries of a row
commutes with P: the ordinary sampler, projected in the end, is the sampler of the subspace, path by path. Neither
processes nor priors nor solvers change (for molecules arXiv:2203.17003, section 3.1, has a projected noise instead).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffusion_jax.parameterizations import FlowMap, LearnedVariance, rewired
from diffusion_jax.processes.base import row_sum
from diffusion_jax.types import Cond, Denoiser, Process, Solver, pytree


@pytree
class Projector:
    """The orthogonal projection of each row [*positions, channels] on its nodes, and on those without a mean.

    Attributes:
        nodes: which positions exist, with 1 row for all; entries of the others become 0.
        centred: so many first channels, such as 3 coordinates, lose their mean over the nodes.
    """

    nodes: Bool[Array, "#batch *positions"]
    centred: int = dataclasses.field(default=0, metadata=dict(static=True))

    def __call__(self, x: Float[Array, "batch *positions channels"]) -> Float[Array, "batch *positions channels"]:
        """P x. Raises ValueError for other positions than those of the nodes."""
        self._check(x)
        nodes, axes = self.nodes[..., None], tuple(range(1, x.ndim - 1))
        x = jnp.where(nodes, x, 0)
        if not self.centred:
            return x
        first = x[..., : self.centred]
        mean = jnp.sum(first, axes, keepdims=True) / jnp.maximum(jnp.sum(nodes, axes, keepdims=True), 1)
        return jnp.concatenate([jnp.where(nodes, first - mean, 0), x[..., self.centred :]], -1)

    def dof(self, x: Float[Array, "batch *positions channels"]) -> Float[Array, "batch"]:
        """The degrees of freedom of each row of x, the rank of P: channels for each node, less those of the mean."""
        self._check(x)
        count = jnp.sum(self.nodes.reshape(len(self.nodes), -1), -1)
        return jnp.broadcast_to(count * x.shape[-1] - self.centred * (count > 0), x.shape[:1]).astype(x.dtype)

    def _check(self, x: Array) -> None:
        if self.nodes.shape[1:] != x.shape[1:-1] or self.nodes.shape[0] not in (1, x.shape[0]):
            raise ValueError(f"nodes have the shape {self.nodes.shape}; x of {x.shape} needs {x.shape[:-1]}")
        if not 0 <= self.centred <= x.shape[-1]:
            raise ValueError(f"centred is {self.centred}; it must be in 0..{x.shape[-1]}, the channels of x")


Projection = Callable[
    [Cond], Projector | None
]  # the projection of examples under conditions; None: all of a row counts


def whole(cond: Cond) -> None:
    """The projection of data whose entries are all free: none."""
    return None


def on_nodes(name: str = "nodes", centred: int = 0) -> Projection:
    """The projection on the nodes that the condition `name` says exist, bool [batch, *positions]."""
    return lambda cond: Projector(nodes=jnp.asarray(cond[name]), centred=centred)


def without_mean(num_points: int, centred: int = 3) -> Projection:
    """The projection of sets of `num_points` points on those without a mean in their first `centred` channels."""
    return lambda cond: Projector(nodes=jnp.ones((1, num_points), bool), centred=centred)


def projected(D: Denoiser, P: Projector) -> Denoiser:
    """P D(P x, t, cond): the denoiser of data in the range of P, whatever its network says beyond it.

    A learned variance stays, and a prediction before a correction is projected too. Raises ValueError for a learned
    variance where P takes a mean, with which noise of another width in each entry does not commute, and for a flow map.
    """
    learned = isinstance(D, LearnedVariance)
    if learned and P.centred:
        raise ValueError("a learned variance differs between entries, and a projection that takes a mean mixes these")
    if isinstance(D, FlowMap):
        raise ValueError("a flow map carries the whole of x; it cannot be projected")

    def step(outputs: Callable, x: Array, t: Array, cond: Cond) -> tuple[Array, ...]:
        x_0, *rest = outputs(P(x), t, cond)
        return P(x_0), *(value if learned and i == 0 else P(value) for i, value in enumerate(rest))

    return rewired(D, step)


def on_subspace(solver: Solver, P: Projector) -> Solver:
    """`solver` for a denoiser of `projected`: itself, or one that takes its norms over the range of P.

    Raises ValueError for a solver that chooses its steps by the data and cannot be given P, see `types.Solver.within`.
    """
    if solver.within is not None:
        return solver.within(P)
    if solver.adaptive or any(stage.adaptive for stage in solver.stages):
        raise ValueError(
            "the solver chooses its steps by norms over whole rows, to which entries that do not exist would add; use "
            "one with given steps, such as ddim or heun, or adaptive_ode or adaptive_sde, which take a projection"
        )
    return solver


def log_prob_within(
    nats: Float[Array, "batch"],
    process: Process,
    x: Float[Array, "batch *positions channels"],
    P: Projector,
    t: float | Float[Array, ""],
) -> Float[Array, "batch"]:
    """log p_P(P x), the log density in the range of P, from `nats`, that of x in the whole space, both at time t.

    What is orthogonal to P is N(0, sigma(t)^2 I) in d - dof dimensions, whose log density is taken off:

        log p_P = log p + (d - dof) / 2 log(2 pi sigma^2) + |x - P x|^2 / (2 sigma^2)

    `nats` is that of `likelihood.log_prob` with a denoiser of `projected`, at its t_min.
    """
    variance = process.sigma(jnp.asarray(t, x.dtype)) ** 2
    outside = x[0].size - P.dof(x)
    return nats + outside / 2 * jnp.log(2 * jnp.pi * variance) + row_sum((x - P(x)) ** 2) / (2 * variance)
