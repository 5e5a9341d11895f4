"""Diffusion models of time series: imputation and forecasting by CSDI, unconditional models by TSDiff."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion_jax import parameterizations
from diffusion_jax.guidance.observation import KNOWN, LEVEL, Observed, known_values
from diffusion_jax.losses.targets import Targets
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.processes import row_keys, sampling_keys
from diffusion_jax.systems.diffusion import Diffusion, OnDiffusion
from diffusion_jax.systems.scaling import Reference, Scaling, no_reference, no_scaling
from diffusion_jax.types import Cond, Denoiser, Params, Placed, Spec, Train

_LEVELS = 2**30  # folded into the keys of rows, for their quantile levels


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeriesDiffusion(OnDiffusion):
    """A diffusion model of windows [length, channels] of series, NaN where a value is missing.

    Batches are {"x": [batch, length, channels]}. In training `targets` says which of the present values are known.
    Each window is scaled by its known values, and x_0 is what is left of it after its `reference`, which equals the
    known values where there are any, such as their linear interpolation. A network with the condition "known" is
    trained on the others alone (CSDI, arXiv:2107.03502, eq. 9); one without it on all present values (TSDiff,
    arXiv:2307.11494), and samples of it are guided by known values. In samples known values are exactly those of the
    condition, which for held-out windows is what `operator` leaves of them. Without the condition, samples are on the
    scale of the model. Raises ValueError for a reference without a network that reads the condition.
    """

    diffusion: Diffusion
    operator: Observed
    targets: Targets
    scaling: Scaling = no_scaling
    reference: Reference = no_reference

    def __post_init__(self):
        if self.reference is not no_reference and not self.conditional:
            raise ValueError("a reference needs a network that reads what is known")

    def init(self, key: Key[Array, ""]) -> Params:
        return self.diffusion.init(key)

    @property
    def conditional(self) -> bool:
        """Whether the network reads the known values."""
        return KNOWN in self.diffusion.network_conditions

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        key, target_key = jax.random.split(key)
        x = batch["x"]
        present = jnp.isfinite(x)
        given = self.targets(target_key, present)
        location, scale = self.scaling(jnp.where(given, x, jnp.nan))
        scaled = (x - location) / scale
        known = jnp.where(given, scaled, jnp.nan)
        x_0 = jnp.where(present, scaled - self.reference(known), 0)
        cond = {KNOWN: known} if self.conditional else None
        where = present & ~given if self.conditional else present
        loss, _ = self.diffusion.loss_fn(params["network"], key, x_0, cond, where=where, train=train is not None)
        return loss, {}

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """Returns the loss of held-out windows, without dropout."""
        return {"loss": self.loss(params, key, batch, None)[0]}

    def denoiser(self, params: Params, cond: Cond = None, numbers: PyTree[Array] = None) -> Denoiser:
        """The denoiser D(x, t) of scaled windows less their reference, under scaled known values.

        Where a value is known it returns that, less the reference. So D = E[x_0 | x_t, known], and every solver ends
        at the known values.
        """
        D = self.diffusion.denoiser(params, cond, numbers)
        if cond is None or not self.conditional:
            return D
        known = jnp.asarray(cond[KNOWN])
        exact = known - self.reference(known)
        return parameterizations.mapped(D, lambda x_0: jnp.where(jnp.isfinite(known), exact, x_0))

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Cond, numbers: PyTree[Array] = None
    ) -> dict[str, Float[Array, "batch length channels"]]:
        """Draw {"samples": ...}: row r depends on ids[r] and cond[r] only. A pure function, for use under `jit`."""
        prior_key, noise_key = sampling_keys(key)
        if cond is None or KNOWN not in cond:
            D = self.denoiser(params, cond, numbers)
            return {"samples": self.diffusion.solve(D, prior_key, noise_key, ids, cond)}
        known = jnp.asarray(cond[KNOWN])
        location, scale = self.scaling(known)
        level = jax.vmap(jax.random.uniform)(row_keys(row_keys(noise_key, ids), _LEVELS))
        scaled = (known - location) / scale
        cond = {**cond, KNOWN: scaled, LEVEL: level}
        D = self.denoiser(params, cond, numbers)
        x_0 = self.reference(scaled) + self.diffusion.solve(D, prior_key, noise_key, ids, cond)
        x = location + scale * x_0
        return {"samples": jnp.where(jnp.isfinite(known), known, x)}

    def evaluations(self) -> int | None:
        return self.diffusion.evaluations()

    @property
    def batch(self) -> dict[str, Spec]:
        return {"x": self.makes}

    @property
    def conditions(self) -> Conditions:
        """The conditions of samples, among them the known values that `operator` leaves of held-out windows."""
        found = dict(self.diffusion.conditions)
        return Conditions({**found, KNOWN: known_values(self.operator)} if KNOWN in found else found)

    @property
    def networks(self) -> Mapping[str, Placed]:
        return self.diffusion.networks
