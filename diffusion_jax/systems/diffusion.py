"""Diffusion system: one denoising network and one process, with any loss, sampler, guidance and editing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion_jax import parameterizations
from diffusion_jax.guidance import editing, inversion, steering
from diffusion_jax.guidance.editing import Editing
from diffusion_jax.guidance.steering import Guidance, Model
from diffusion_jax.guidance.thresholding import Threshold
from diffusion_jax.likelihood.ode import Likelihood
from diffusion_jax.losses.denoising import Loss
from diffusion_jax.losses.times import Resampler
from diffusion_jax.networks.conditions import NO_CONDITIONS, Conditions
from diffusion_jax.parameterizations import Parameterization
from diffusion_jax.processes import bcast, prior, row_keys, sampling_keys
from diffusion_jax.projections import Projection, on_subspace, projected, whole
from diffusion_jax.solvers import sampling
from diffusion_jax.solvers.grids import Grid
from diffusion_jax.systems.base import Sampled, entries
from diffusion_jax.types import Apply, Cond, Denoiser, Params, Placed, Process, Solver, Spec, Train

UNGUIDED = steering.none()
UNEDITED = editing.none()
Augment = Callable[[Key[Array, ""], Array], tuple[Array, Array]]  # (key, x) -> (augmented x, augmentation labels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion(Sampled):
    """A diffusion model: train a denoiser D(x_t, t, cond) with `loss_fn`, sample with `solver` at the times of `grid`.

    Batches are {"x": [batch, *shape], ...} with the `network_conditions` by name. Parameters are {"network": ...}, and
    with a `resampler` also {"frozen": {"resampler": statistics of past losses}}. See `diffusion_jax.types.System`.
    """

    init_network: Callable[[Key[Array, ""]], Params]
    apply: Apply
    process: Process
    param: Parameterization
    loss_fn: Loss | None  # None: a model that is only sampled
    solver: Solver
    grid: Grid
    steps: int
    shape: tuple[int, ...]  # of one example
    modality: str = "array"  # kind of data of the example
    network_conditions: Conditions = NO_CONDITIONS  # conditions that the network reads
    cond_dropout: float = 0.0  # probability that training replaces all conditions by their null values, jointly
    cond_dropouts: Mapping[str, float] = dataclasses.field(default_factory=dict)  # the same, for each one separately
    augment: Augment | None = None  # augmentation of training images; the labels are the condition "augment"
    embed: Callable[[Params, Cond], Any] = lambda params, cond: cond  # embeds conditions, once per sample
    project: Projection = whole  # of examples with conditions to the entries that exist, see `projections`
    guidance: Guidance = UNGUIDED
    editing: Editing = UNEDITED
    threshold: Threshold = lambda D: D  # limits the denoiser's output to the range of the data
    batch_size: int = 128  # number of samples that are drawn at once
    denoise: bool = False  # return D(x, t) at the last time of the grid, which removes the remaining noise
    likelihood: Likelihood | None = None  # log-likelihood that `evaluate` estimates in addition to the loss
    learned_variance: bool = False  # the network has a second output, see `parameterizations.LearnedVariance`
    paired: bool = False  # training examples come with their noise, the entry "noise"; `loss_fn` takes it as `eps`
    resampler: Resampler | None = None  # importance sampling of the times of `loss_fn` by their "vlb" terms
    networks: Mapping[str, Placed] = dataclasses.field(default_factory=dict)
    # (params, x, c_noise, cond) -> activations of the decoder path of the network; None where nobody asks for them
    activations: Callable[..., list[Array]] | None = None

    def init(self, key: Key[Array, ""]) -> Params:
        params = {"network": self.init_network(key)}
        return params if self.resampler is None else {**params, "frozen": {"resampler": self.resampler.init()}}

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        arguments = {"train": train is not None}
        if self.resampler is not None:
            arguments["times"] = self.resampler.draw(params["frozen"]["resampler"])
        if "noise" in batch:
            arguments["eps"] = batch["noise"]
        key, x, cond = self.prepared(key, batch, train)
        if (P := self.project(cond)) is not None:
            arguments["projector"] = P
        loss, aux = self.loss_fn(params["network"], key, x, cond, **arguments)
        logged = (("t",) if self.resampler else ()) + (("vlb",) if self.learned_variance else ())
        return loss, {name: aux[name] for name in logged}

    def prepared(
        self, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Key[Array, ""], Float[Array, "batch *shape"], Cond]:
        """(key of the loss, examples, conditions), in training with conditions dropped and examples augmented."""
        cond, x = self.network_conditions.of(batch), batch["x"]
        if (self.cond_dropout or self.cond_dropouts) and train is not None:
            key, drop_key = jax.random.split(key)
            cond = self.network_conditions.dropped(drop_key, cond, self.cond_dropout, self.cond_dropouts)
        if self.augment is not None and train is not None:
            key, augment_key = jax.random.split(key)
            x, labels = self.augment(augment_key, x)
            cond = {**(cond or {}), "augment": labels}
        return key, x, cond

    def advance(self, params: Params, train: Train, metrics: dict[str, Array]) -> Params:
        if self.resampler is None:
            return params
        # With gradient accumulation there is one row of metrics per part of the batch.
        times, losses = metrics["t"].reshape(-1), metrics["vlb"].reshape(-1)
        return {**params, "frozen": {"resampler": self.resampler.update(params["frozen"]["resampler"], times, losses)}}

    @property
    def reads_null(self) -> bool:
        """Whether the loss reads the null condition of guidance, in systems that distil guidance."""
        return False

    def model(self, params: Params, cond: Cond = None) -> Model:
        """The denoiser of the network before guidance, with the embedded condition and null condition."""
        make = parameterizations.learned_variance_denoiser if self.learned_variance else parameterizations.denoiser
        D = make(lambda x, c_noise, cond: self.apply(params["network"], x, c_noise, cond), self.param, self.process)
        conditions = self.network_conditions.of(cond)
        embedded = self.embed(params["network"], conditions)
        null = self.embed(params["network"], self.network_conditions.nulled(conditions))
        return Model(D=D, cond=embedded, null=null, given=cond, process=self.process)

    def features(
        self, params: Params, x: Float[Array, "batch *shape"], t: Array, cond: Cond = None
    ) -> list[Float[Array, "batch _ _ _"]]:
        """The activations of the decoder path of the network for noisy x at time t, a scalar or [batch], in [0, 1].

        Raises NotImplementedError for a network without such a path.
        """
        c = self.param(self.process, jnp.broadcast_to(t, x.shape[:1]))
        cond = self.network_conditions.of(cond)
        return self.activations(params["network"], bcast(c.c_in, x) * x, c.c_noise, cond)

    def denoiser(self, params: Params, cond: Cond = None, numbers: PyTree[Array] = None) -> Denoiser:
        """The denoiser D(x, t) that solvers call: conditioned on `cond`, guided, and thresholded.

        `numbers` are the parameters of guidance, by default from `guidance.load()`.
        """
        numbers = self.guidance.load() if numbers is None else numbers
        return self.steered(self.model(params, cond), cond, numbers)

    def steered(self, model: Model, cond: Cond, numbers: PyTree[Array]) -> Denoiser:
        """The denoiser D(x, t) of `model` with guidance, editing and thresholding applied and its condition bound."""
        D = self.threshold(self.editing.steer(self.guidance.steer(numbers, model), cond).bound)
        P = self.project(cond)
        return D if P is None else projected(D, P)

    def numbers(self) -> PyTree[Array]:
        """Parameters of guidance, loaded once, outside of `jit`."""
        return self.guidance.load()

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """Returns the loss of held-out examples, without dropout, and the values of `likelihood`, without guidance."""
        metrics = {"loss": self.loss(params, key, batch, None)[0]}
        if self.likelihood:
            D = self.unguided.denoiser(params, self.network_conditions.of(batch))
            metrics |= self.likelihood(self.process, D, jax.random.fold_in(key, 1), batch["x"])
        return metrics

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Cond, numbers: PyTree[Array] = None
    ) -> dict[str, Float[Array, "batch *shape"]]:
        """Draw {"samples": ...}: row r depends on ids[r] and cond[r] only. A pure function, for use under `jit`."""
        prior_key, noise_key = sampling_keys(key)
        D = self.denoiser(params, cond, numbers)
        source = self.editing.source and self.unguided.denoiser(params, self.editing.source(cond))
        return {"samples": self.solve(D, prior_key, noise_key, ids, cond, source)}

    def solve(
        self,
        D: Denoiser,
        prior_key: Key[Array, ""],
        noise_key: Key[Array, ""],
        ids: Int[Array, "batch"],
        cond: Cond,
        source: Denoiser | None = None,
    ) -> Float[Array, "batch *shape"]:
        """Solve the reverse process from the prior, or from the start that editing gives, to the last time of the grid.

        An entry "image" of `cond`, which editing reads, has the shape of x, and a "mask" its height and width. Images
        are encoded by the denoiser `source`, by default D.
        """
        times = self.grid(self.process, self.steps)
        x_T = prior(self.process, prior_key, (len(ids), *self.shape), ids=ids, t=times[0])

        P = self.project(cond)
        own = self.solver if P is None else on_subspace(self.solver, P)

        def encode(x: Array, times: Array) -> Array:
            return sampling.sample(own, self.process, source or D, noise_key, x, times[::-1], ids=ids)

        x, times = self.editing.start(self.process, encode, row_keys(prior_key, ids), x_T, times, cond)
        solver = self.editing.around(self.guidance.around(own, cond), cond)
        x = sampling.sample(solver, self.process, D, noise_key, x, times, ids=ids)
        x = D(x, times[-1]) if self.denoise else x
        return self.editing.finish(x if P is None else P(x), cond)

    def evaluations(self) -> int | None:
        """Evaluations of the network for one sample (NFE), forward passes alone; None for an adaptive solver.

        They are counted while a sample is drawn with a network that is 0, so that no parameters are needed.
        """
        if self.solver.adaptive:
            return None
        calls = []

        def apply(params: Params, x: Array, c_noise: Array, cond: Any, **options: Any) -> Array:
            jax.debug.callback(lambda: calls.append(x.shape[0]))
            return jnp.tile(0 * x, 2) if self.learned_variance else 0 * x

        counting = dataclasses.replace(self, apply=apply, embed=lambda params, cond: cond)
        cond = {name: jnp.zeros((1, *spec.shape), spec.dtype) for name, spec in self.conditions.specs.items()}
        draw = jax.jit(lambda numbers: counting.draw({"network": {}}, jax.random.key(0), jnp.arange(1), cond, numbers))
        jax.block_until_ready(draw(self.numbers()))
        jax.effects_barrier()
        return sum(calls)

    @property
    def batch(self) -> dict[str, Spec]:
        noise = {"noise": Spec(self.shape)} if self.paired else {}
        return entries(self.makes, self.network_conditions) | noise

    @property
    def makes(self) -> Spec:
        return Spec(self.shape, modality=self.modality)

    @property
    def conditions(self) -> Conditions:
        """The conditions of samples: of the network, of guidance and of editing."""
        return self.network_conditions | self.guidance.conditions | self.edited(self.shape, self.network_conditions)

    def edited(self, shape: tuple[int, ...], network_conditions: Conditions) -> Conditions:
        """The conditions that editing reads for samples of `shape`, among them those of the network of its source."""
        sources = network_conditions.prefixed(inversion.SOURCE) if self.editing.source else NO_CONDITIONS
        return self.editing.conditions(shape) | sources

    @property
    def unguided(self) -> Diffusion:
        """The same model without guidance and editing."""
        return dataclasses.replace(self, guidance=UNGUIDED, editing=UNEDITED)


class OnDiffusion(Sampled):
    """Base class of systems that draw their samples with the diffusion system in their field `diffusion`."""

    diffusion: Diffusion

    @property
    def batch(self) -> dict[str, Spec]:
        return self.diffusion.batch

    @property
    def makes(self) -> Spec | None:
        return self.diffusion.makes

    @property
    def batch_size(self) -> int:
        """Number of samples that are drawn at once."""
        return self.diffusion.batch_size

    @property
    def conditions(self) -> Conditions:
        return self.diffusion.conditions

    def numbers(self) -> PyTree[Array]:
        """Parameters of guidance, loaded once, outside of `jit`."""
        return self.diffusion.numbers()
