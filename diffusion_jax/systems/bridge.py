"""Bridge models: from an example x_1 of one data set to x_0 of another, trained on pairs (I2SB, DDBM)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion_jax import parameterizations
from diffusion_jax.guidance.thresholding import Threshold
from diffusion_jax.losses.denoising import Loss
from diffusion_jax.networks.conditions import NO_CONDITIONS, Conditions, image
from diffusion_jax.parameterizations import Parameterization
from diffusion_jax.solvers import sampling
from diffusion_jax.solvers.bridge import kept_outside
from diffusion_jax.solvers.grids import Grid
from diffusion_jax.systems.base import Sampled, entries
from diffusion_jax.types import Apply, BridgeProcess, Cond, Denoiser, Params, Placed, Solver, Spec, Train

START = "image"  # the condition that sampling starts from


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bridge(Sampled):
    """A model of x_0 given x_1, from which sampling starts: a denoiser on bridges between pairs. See `types.System`.

    Batches are {"x": x_0, "image": x_1, ...} with other conditions of the network by name. A network that reads the
    condition "image" receives x_1 in every call. It then learns E[x_0 | x_t, x_1], and samples follow p(x_0 | x_1);
    without it D is E[x_0 | x_t], the marginal of the samples is right and the coupling with x_1 is not.
    With `masked` the last channel of "image" is a mask: where it is at least 0, x_0 is unknown and x_1 is noise; the
    loss counts these pixels alone, and the others stay as they are in x_1. arXiv:2302.05872; arXiv:2309.16948.
    """

    init_network: Callable[[Key[Array, ""]], Params]
    apply: Apply
    process: BridgeProcess
    param: Parameterization
    loss_fn: Loss
    solver: Solver
    grid: Grid
    steps: int
    shape: tuple[int, ...]  # of one example
    modality: str = "array"
    network_conditions: Conditions = NO_CONDITIONS  # conditions that the network reads
    embed: Callable[[Params, Cond], Any] = lambda params, cond: cond  # embeds conditions, once per sample
    masked: bool = False  # inpainting, see above
    threshold: Threshold = lambda D: D  # limits the denoiser's output to the range of the data
    batch_size: int = 128  # number of samples that are drawn at once
    denoise: bool = False  # return D(x, t) at the last time of the grid
    networks: Mapping[str, Placed] = dataclasses.field(default_factory=dict)

    def init(self, key: Key[Array, ""]) -> Params:
        return {"network": self.init_network(key)}

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        x_1, mask = self.end_of(batch)
        loss, _ = self.loss_fn(
            params["network"], key, batch["x"], x_1, self._seen(batch), mask, train=train is not None
        )
        return loss, {}

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """Returns the loss of held-out pairs, without dropout."""
        return {"loss": self.loss(params, key, batch, None)[0]}

    def denoiser(self, params: Params, cond: Cond = None, numbers: PyTree[Array] = None) -> Denoiser:
        """The denoiser D(x, t) = E[x_0 | x_t] of bridges to the x_1 in `cond`, with thresholding."""

        def apply(x: Array, c_noise: Array, cond: Cond) -> Array:
            return self.apply(params["network"], x, c_noise, cond)

        D = parameterizations.denoiser(apply, self.param, self.process)
        return self.threshold(parameterizations.bound_to(D, self.embed(params["network"], self._seen(cond))))

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Cond, numbers: PyTree[Array] = None
    ) -> dict[str, Float[Array, "batch *shape"]]:
        """Draw {"samples": ...} from the x_1 in cond["image"]: row r depends on ids[r] and cond[r] only."""
        x_1, mask = self.end_of(cond)
        D, times = self.denoiser(params, cond), self.grid(self.process.reference, self.steps)
        solver = self.solver if mask is None else kept_outside(self.solver, x_1, mask)
        x = sampling.sample(solver, self.process, D, key, x_1, times, ids=ids)
        return {"samples": D(x, times[-1]) if self.denoise else x}

    def end_of(self, batch: Mapping[str, Array]) -> tuple[Array, Array | None]:
        """(x_1, mask) of a batch; the mask [batch, h, w, 1] is 1 where x_0 is unknown, and None without `masked`."""
        x_1 = batch[START]
        if not self.masked:
            return x_1, None
        return x_1[..., :-1], (x_1[..., -1:] >= 0).astype(x_1.dtype)

    def _seen(self, batch: Mapping[str, Array] | None) -> Cond:
        """The conditions of the network, x_1 without its mask."""
        if not self.network_conditions:
            return None
        return self.network_conditions.of({**batch, START: self.end_of(batch)[0]})

    @property
    def batch(self) -> dict[str, Spec]:
        return entries(self.makes, self.conditions)

    @property
    def makes(self) -> Spec:
        return Spec(self.shape, modality=self.modality)

    @property
    def conditions(self) -> Conditions:
        """The conditions of samples: x_1, and those that the network reads in addition."""
        entry = (*self.shape[:-1], self.shape[-1] + self.masked)
        return Conditions({**self.network_conditions, START: image(entry)._replace(start="paired")})
