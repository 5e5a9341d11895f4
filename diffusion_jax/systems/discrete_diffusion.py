"""Discrete diffusion: a network and a categorical process, for texts and grey levels (MDLM, D3PM, SEDD)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion_jax import token_parameterizations
from diffusion_jax.guidance import editing, steering
from diffusion_jax.guidance.editing import Editing
from diffusion_jax.guidance.steering import Guidance, Model
from diffusion_jax.losses import categorical as losses
from diffusion_jax.losses.categorical import TokenLoss
from diffusion_jax.networks.conditions import NO_CONDITIONS, Conditions
from diffusion_jax.processes import row_keys
from diffusion_jax.processes.categorical import CategoricalProcess, normalized, row_categorical
from diffusion_jax.solvers import sampling
from diffusion_jax.solvers.grids import Grid
from diffusion_jax.systems.base import Sampled, entries
from diffusion_jax.token_parameterizations import TokenParameterization
from diffusion_jax.types import Apply, Cond, Denoiser, Params, Placed, Solver, Spec, Train

UNGUIDED = steering.none()
UNEDITED = editing.none()
_LAST = 2**30  # number of the step in which what is left is drawn


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteDiffusion(Sampled):
    """A diffusion model of tokens: train D(x_t, t, cond) = log p(x_0 | x_t), sample with `solver` at times of `grid`.

    Batches are {"x": [batch, *shape], ...}. `to_ids` makes integers in 0..K-1 of x, and `of_ids` x of them, for data
    that is stored otherwise, such as grey levels. Parameters are {"network": ...}. Guidance extrapolates
    log-probabilities, which are normalised afterwards: log D = log D_null + w (log D_cond - log D_null) + constant.
    """

    init_network: Callable[[Key[Array, ""]], Params]
    apply: Apply
    process: CategoricalProcess
    param: TokenParameterization
    loss_fn: TokenLoss
    solver: Solver
    grid: Grid
    steps: int
    spec: Spec  # of one example
    to_ids: Callable[[Array], Int[Array, "batch *shape"]] = lambda x: x
    of_ids: Callable[[Int[Array, "batch *shape"]], Array] = lambda x: x
    network_conditions: Conditions = NO_CONDITIONS
    cond_dropout: float = 0.0  # probability that training replaces the conditions by their null values
    embed: Callable[[Params, Cond], Any] = lambda params, cond: cond
    guidance: Guidance = UNGUIDED
    editing: Editing = UNEDITED
    batch_size: int = 128  # number of samples that are drawn at once
    denoise: bool = False  # draw x_0 from D at the last time of the grid
    num_times: int = 64  # of the estimate of the bound of a held-out example
    pad: int | None = None  # the token that ends an example and fills it up; None where all have the same length
    networks: Mapping[str, Placed] = dataclasses.field(default_factory=dict)

    def init(self, key: Key[Array, ""]) -> Params:
        return {"network": self.init_network(key)}

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        cond = self.network_conditions.of(batch)
        if self.cond_dropout and train is not None:
            key, drop_key = jax.random.split(key)
            cond = self.network_conditions.dropped(drop_key, cond, self.cond_dropout, {})
        loss, aux = self.loss_fn(params["network"], key, self.to_ids(batch["x"]), cond, train=train is not None)
        return loss, {name: value for name, value in aux.items() if name != "t"}

    def model(self, params: Params, cond: Cond = None) -> Model:
        """The denoiser of the network before guidance, with the embedded condition and null condition."""
        apply = functools.partial(self.apply, params["network"])
        D = token_parameterizations.denoiser(apply, self.param, self.process)
        conditions = self.network_conditions.of(cond)
        embedded = self.embed(params["network"], conditions)
        null = self.embed(params["network"], self.network_conditions.nulled(conditions))
        return Model(D=D, cond=embedded, null=null, given=cond, process=self.process)

    def denoiser(self, params: Params, cond: Cond = None, numbers: PyTree[Array] = None) -> Denoiser:
        """The denoiser D(x, t) that solvers call: log-probabilities under `cond`, guided and normalised."""
        numbers = self.guidance.load() if numbers is None else numbers
        D = self.guidance.steer(numbers, self.model(params, cond)).bound
        return lambda x, t: normalized(D(x, t))

    def numbers(self) -> PyTree[Array]:
        """Parameters of guidance, loaded once, outside of `jit`."""
        return self.guidance.load()

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """Returns the loss of held-out examples, and the bound of their code length in bits per token.

        The bound is that of the process from alpha = 1 to alpha = 0, or of its steps if it has a number of them. See
        `losses.categorical.code_length` for examples that end with `pad`.
        """
        process = getattr(self.process, "exact", self.process)
        model = dataclasses.replace(self, process=process).model(params, self.network_conditions.of(batch))
        x_0 = self.to_ids(batch["x"])
        nats = losses.bound(process, model.bound, jax.random.fold_in(key, 1), x_0, self.num_times)
        values = {"loss": self.loss(params, key, batch, None)[0]}
        return values | losses.code_length(nats, x_0, self.pad)

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Cond, numbers: PyTree[Array] = None
    ) -> dict[str, Array]:
        """Draw {"samples": ...}: row r depends on ids[r] and cond[r] only. A pure function, for use under `jit`."""
        prior_key, noise_key = jax.random.split(key)
        D, keys = self.denoiser(params, cond, numbers), row_keys(prior_key, ids)
        x_T = self.process.prior(keys, (len(ids), *self.spec.shape))
        times = self.grid(self.process, self.steps)
        x, times = self.editing.start(self.process, _no_encoding, keys, x_T, times, cond)
        solver = self.editing.around(self.solver, cond)
        x = sampling.sample(solver, self.process, D, noise_key, x, times, ids=ids)
        if self.denoise:
            x = row_categorical(row_keys(row_keys(noise_key, ids), _LAST), D(x, times[-1]))
        return {"samples": self.of_ids(self.editing.finish(x, cond))}

    @property
    def batch(self) -> dict[str, Spec]:
        return entries(self.spec, self.network_conditions)

    @property
    def makes(self) -> Spec:
        return self.spec

    @property
    def conditions(self) -> Conditions:
        """The conditions of samples: of the network, of guidance and of editing."""
        return self.network_conditions | self.guidance.conditions | self.editing.conditions(self.spec.shape)


def _no_encoding(x: Array, times: Array) -> Array:
    """Of editing that encodes what it starts from, which is for real numbers."""
    return x
