"""The diffusion system: one network, one process, any point on the other axes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax import parameterizations, sampling
from diffusion_jax.grids import Grid
from diffusion_jax.guidance import clip
from diffusion_jax.likelihood import Likelihood
from diffusion_jax.losses.denoising import Loss
from diffusion_jax.parameterizations import Parameterization
from diffusion_jax.processes import prior
from diffusion_jax.systems.rows import labelled_rows
from diffusion_jax.times import Resampler
from diffusion_jax.types import Apply, Cond, Denoiser, Params, Process, Solver, Train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion:
    """Train a denoiser with `loss_fn`, sample it with `solver` on `grid`. See `diffusion_jax.types.System`.

    Batches are {"x": [batch, *shape], ...}; what else they hold ("label") conditions the network. Parameters are
    {"network": ...}; with a `resampler`, whose state follows the losses seen, also {"frozen": {"resampler": ...}}.
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
    likelihood: Likelihood | None = None  # what `evaluate` computes beside the loss
    learned_variance: bool = False  # the network has a second output, see `parameterizations.LearnedVariance`
    resampler: Resampler | None = None  # draws the times of `loss_fn` by their "vlb"

    def init(self, key: Key[Array, ""]) -> Params:
        params = {"network": self.init_network(key)}
        return params if self.resampler is None else {**params, "frozen": {"resampler": self.resampler.init()}}

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        arguments = {"train": train is not None}
        if self.resampler is not None:
            arguments["times"] = self.resampler.draw(params["frozen"]["resampler"])
        loss, aux = self.loss_fn(params["network"], key, batch["x"], self._cond(batch), **arguments)
        followed = (("t",) if self.resampler else ()) + (("vlb",) if self.learned_variance else ())
        return loss, {name: aux[name] for name in followed}

    def advance(self, params: Params, train: Train, metrics: dict[str, Array]) -> Params:
        if self.resampler is None:
            return params
        # With gradients accumulated over parts of a batch, there is one row of metrics per part.
        seen = (metrics["t"].reshape(-1), metrics["vlb"].reshape(-1))
        return {**params, "frozen": {"resampler": self.resampler.update(params["frozen"]["resampler"], *seen)}}

    def denoiser(self, params: Params, cond: Cond = None) -> Denoiser:
        """D(x, t) as solvers see it: conditions bound, guidance applied."""
        make = parameterizations.learned_variance_denoiser if self.learned_variance else parameterizations.denoiser
        D = make(lambda x, c_noise, cond: self.apply(params["network"], x, c_noise, cond), self.param, self.process)
        D = self.guidance(D)
        D = clip(D) if self.clip else D
        return parameterizations.bound_to(D, cond)

    def sample(self, params: Params, key: Key[Array, ""], num: int, cond: Cond = None) -> dict[str, np.ndarray]:
        """`num` samples under "samples", and their labels under "label" where the network takes any.

        Sample i depends on fold_in(key, i) and cond[i] alone. Without `cond`, labels go round the classes.
        """
        return labelled_rows(functools.partial(self._draw, params, key), num, self.batch_size, self.num_classes, cond)

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """The loss of held-out examples, without dropout, and the figures of `likelihood`."""
        figures = {"loss": self.loss(params, key, batch, None)[0]}
        if self.likelihood:
            D = self.denoiser(params, self._cond(batch))
            figures |= self.likelihood(self.process, D, jax.random.fold_in(key, 1), batch["x"])
        return figures

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Cond
    ) -> Float[Array, "batch *shape"]:
        """The samples of `ids`, as a pure function for use under `jit`."""
        prior_key, noise_key = jax.random.split(key)
        D = self.denoiser(params, cond)
        x_T = prior(self.process, prior_key, (len(ids), *self.shape), ids=ids)
        times = self.grid(self.process, self.steps)
        x = sampling.sample(self.solver, self.process, D, noise_key, x_T, times, ids=ids)
        return D(x, times[-1]) if self.denoise else x

    @functools.cached_property
    def _draw(self) -> Callable[..., Float[Array, "batch *shape"]]:
        return jax.jit(self.draw)

    def _cond(self, batch: dict[str, Array]) -> Cond:
        return {"label": batch["label"]} if self.num_classes else None
