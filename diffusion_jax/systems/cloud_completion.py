"""Completion of point clouds: a diffusion model of the points that are not given (PVD, arXiv:2104.03670)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from diffusion_jax.guidance.operators import Operator
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.networks.point_transformer import KNOWN
from diffusion_jax.projections import Projector
from diffusion_jax.systems.base import entries
from diffusion_jax.systems.diffusion import Diffusion, OnDiffusion
from diffusion_jax.types import Cond, Denoiser, Params, Placed, Spec, Train, check


def unknown(cond: Cond) -> Projector:
    """The projection on the points that the condition "known" does not give."""
    return Projector(nodes=~jnp.isfinite(jnp.asarray(cond[KNOWN])).all(-1))


def first_along(
    x: Float[Array, "batch points 3"], direction: Float[Array, "batch 3"], number: int
) -> Bool[Array, "batch points"]:
    """The `number` points of each cloud that are the first along a direction, those on one side of a plane."""
    ranks = jnp.argsort(jnp.argsort(jnp.einsum("bnc,bc->bn", x, direction), -1), -1)
    return ranks < number


@dataclasses.dataclass(frozen=True, kw_only=True)
class HalfSpace(Operator):
    """The points on one side of an oblique plane, as a measurement whose entry is x with NaN for the others.

    `number` points of each cloud are given.
    """

    number: int = 1

    @property
    def entry(self) -> tuple[int, ...]:
        """Shape of the given points of one cloud."""
        return self.shape

    @property
    def out(self) -> tuple[int, ...]:
        """Shape of the given points of one cloud."""
        return self.shape

    def measure(self, x: Float[np.ndarray, "n points 3"], seed: int = 0) -> Float[np.ndarray, "n points 3"]:
        """`x` with NaN beyond the plane; that of example i depends on `seed` and i only."""
        directions = np.stack([np.random.default_rng((seed, i)).standard_normal(3) for i in range(len(x))])
        given = np.asarray(first_along(jnp.asarray(x), jnp.asarray(directions, jnp.float32), self.number))
        return np.where(given[..., None], x, np.nan).astype(np.float32)


def half_space(shape: tuple[int, ...], number: int) -> HalfSpace:
    """The operator of clouds of `shape` that gives `number` of their points. ValueError: not at least 1 and not all."""
    check(1 <= number < shape[0], "number", number, f"at least 1 and less than the {shape[0]} points of a cloud")
    return HalfSpace(shape=shape, apply=lambda x, mask: x, number=number)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CloudCompletion(OnDiffusion):
    """A diffusion model of clouds [points, 3] given some of their points, which stay clean at every t.

    Batches are {"x": [batch, points, 3], ...} with other conditions of the network. In training the given points of a
    cloud are those on one side of a plane across a random direction. `diffusion` has the projection `unknown`, so that
    the loss, the denoiser and the solver are of the other points alone, and reads the structure "known" [points, 3],
    NaN for points to be drawn. Samples have the given points exactly. arXiv:2104.03670, section 3.3.

    Raises ValueError for a `diffusion` without that condition.
    """

    diffusion: Diffusion
    operator: HalfSpace

    def __post_init__(self) -> None:
        if KNOWN not in self.diffusion.network_conditions:
            raise ValueError("the network must read the condition 'known', the points that are given")

    def init(self, key: Key[Array, ""]) -> Params:
        return self.diffusion.init(key)

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        """The loss over the points that are not given, in training with conditions dropped."""
        key, direction_key = jax.random.split(key)
        x = batch["x"]
        given = first_along(x, jax.random.normal(direction_key, (len(x), x.shape[-1])), self.operator.number)
        known = jnp.where(given[..., None], x, jnp.nan)
        return self.diffusion.loss(params, key, {**batch, KNOWN: known}, train)

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """Returns the loss of held-out clouds, without dropout."""
        return {"loss": self.loss(params, key, batch, None)[0]}

    def denoiser(self, params: Params, cond: Cond = None, numbers: PyTree[Array] = None) -> Denoiser:
        """The denoiser D(x, t) of the points that are not given; it is 0 for the others."""
        return self.diffusion.denoiser(params, cond, numbers)

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Cond, numbers: PyTree[Array] = None
    ) -> dict[str, Float[Array, "batch points 3"]]:
        """Draw {"samples": ...}: row r depends on ids[r] and cond[r] only. A pure function, for use under `jit`."""
        known = jnp.asarray(cond[KNOWN])
        drawn = self.diffusion.draw(params, key, ids, cond, numbers)["samples"]
        return {"samples": jnp.where(jnp.isfinite(known), known, drawn)}

    def evaluations(self) -> int | None:
        return self.diffusion.evaluations()

    @property
    def networks(self) -> Mapping[str, Placed]:
        return self.diffusion.networks

    @property
    def batch(self) -> dict[str, Spec]:
        own = self.diffusion.network_conditions
        return entries(self.makes, Conditions({name: c for name, c in own.items() if name != KNOWN}))

    @property
    def conditions(self) -> Conditions:
        """The conditions of samples; held-out clouds give their points on one side of a plane as "known"."""
        own = self.diffusion.conditions
        return Conditions({**own, KNOWN: own[KNOWN]._replace(operator=self.operator)})
