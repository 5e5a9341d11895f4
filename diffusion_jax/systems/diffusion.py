"""The diffusion system: one network, one process, any point on the other axes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from diffusion_jax import parameterizations, sampling
from diffusion_jax.grids import Grid
from diffusion_jax.guidance import clip
from diffusion_jax.losses.denoising import Loss
from diffusion_jax.parameterizations import Parameterization
from diffusion_jax.processes import prior
from diffusion_jax.systems.rows import in_batches
from diffusion_jax.types import Apply, Cond, Denoiser, Params, Process, Solver, Train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion:
    """Train a denoiser with `loss_fn`, sample it with `solver` on `grid`. See `diffusion_jax.types.System`.

    Batches are {"x": [batch, *shape], ...}; what else they hold ("label") conditions the network. Parameters are
    {"network": ...}.
    """

    init_network: Callable[[Key[Array, ""]], Params]
    apply: Apply
    process: Process
    param: Parameterization
    loss_fn: Loss
    guidance: Callable[[Denoiser], Denoiser]
    solver: Solver
    grid: Grid
    steps: int
    shape: tuple[int, ...]
    num_classes: int = 0  # of the network's condition; 0: unconditional
    batch_size: int = 128  # of sampling
    clip: bool = False  # limit D to [-1, 1] while sampling
    denoise: bool = False  # end with D at the last time, which removes the noise left there

    def init(self, key: Key[Array, ""]) -> Params:
        return {"network": self.init_network(key)}

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        loss, _ = self.loss_fn(params["network"], key, batch["x"], self._cond(batch), train=train is not None)
        return loss, {}

    def advance(self, params: Params, train: Train, metrics: dict[str, Array]) -> Params:
        return params

    def denoiser(self, params: Params, cond: Cond = None) -> Denoiser:
        """D(x, t) as solvers see it: conditions bound, guidance applied."""
        D = parameterizations.denoiser(
            lambda x, c_noise, cond: self.apply(params["network"], x, c_noise, cond), self.param, self.process
        )
        D = self.guidance(D)
        D = clip(D) if self.clip else D
        return lambda x, t: D(x, t, cond)

    def sample(self, params: Params, key: Key[Array, ""], num: int, cond: Cond = None) -> dict[str, np.ndarray]:
        """`num` samples under "samples", and their labels under "label" where the network takes any.

        Sample i depends on fold_in(key, i) and cond[i] alone. Without `cond`, labels go round the classes.
        """
        if cond is None and self.num_classes:
            cond = {"label": np.arange(num) % self.num_classes}
        draw = functools.partial(self._draw, params, key)
        return {"samples": in_batches(draw, num, self.batch_size, cond), **(cond or {})}

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """The loss of held-out examples, without dropout."""
        return {"loss": self.loss(params, key, batch, None)[0]}

    @functools.cached_property
    def _draw(self) -> Callable[..., Float[Array, "batch *shape"]]:
        @jax.jit
        def draw(params: Params, key: Key[Array, ""], ids: Array, cond: Cond) -> Array:
            prior_key, noise_key = jax.random.split(key)
            D = self.denoiser(params, cond)
            x_T = prior(self.process, prior_key, (len(ids), *self.shape), ids=ids)
            times = self.grid(self.process, self.steps)
            x = sampling.sample(self.solver, self.process, D, noise_key, x_T, times, ids=ids)
            return D(x, times[-1]) if self.denoise else x

        return draw

    def _cond(self, batch: dict[str, Array]) -> Cond:
        return {"label": batch["label"]} if self.num_classes else None
