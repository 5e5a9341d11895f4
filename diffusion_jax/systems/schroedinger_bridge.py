"""Schroedinger bridges between two unpaired data sets by diffusion bridge matching: DSBM (IMF, IPF), and online."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion_jax import parameterizations
from diffusion_jax.losses.denoising import Loss
from diffusion_jax.networks.conditions import Conditions, image
from diffusion_jax.parameterizations import Parameterization
from diffusion_jax.processes.base import row_normal
from diffusion_jax.processes.bridge import Reversed
from diffusion_jax.processes.gaussian_bridge import GaussianBridge
from diffusion_jax.solvers import sampling
from diffusion_jax.solvers.grids import Grid
from diffusion_jax.systems.base import Sampled, entries
from diffusion_jax.systems.bridge import START
from diffusion_jax.training import ema
from diffusion_jax.types import Apply, BridgeProcess, Denoiser, Params, Placed, Solver, Spec, Train, check, check_choice

COUPLINGS = ("independent", "reference", "gaussian")
LARGEST = 1024  # numbers of an example whose covariance is taken
_RIDGE = 1e-3  # added to variances: some pixels never change
DIRECTIONS = {"backward": START, "forward": "source_x"}  # the condition that holds where sampling starts
Pair = tuple[Array, Array]  # (x_0, x_1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SchroedingerBridge(Sampled):
    """The process between the sets of x_0 and of x_1 that is nearest to the reference process, from unpaired examples.

    Two networks, the groups "backward" and "forward", are denoisers of the same bridge process seen from its two ends:
    E[x_0 | x_t] carries x_1 to x_0, E[x_1 | x_t] carries x_0 to x_1. Both are always trained, each on pairs that the
    other one makes: the backward network on (x_0, forward(x_0)), the forward network on (backward(x_1), x_1). For the
    first `pretrain` steps the pairs come from `coupling` instead: "independent" examples of the two sets, which is
    iterative Markovian fitting (DSBM-IMF), or the "reference" process from x_0 and from x_1, which is iterative
    proportional fitting (DSBM-IPF; then the two networks are two chains of it, one from each end). arXiv:2303.16852.
    "gaussian" is IPF that starts from the Schroedinger bridge between Gaussians with the means and covariances of the
    two sets (arXiv:2202.05722) instead of the reference: from x_0 to x_1 given x_0, and from x_1 to x_0 given x_1. Like
    the reference process it has the density f(x_0) g(x_1) relative to it, so the fixed point is the same, which between
    Gaussians is reached at once. The moments are those of all batches so far, in frozen.moments.

    The networks that make pairs are in frozen.target. With `refresh` = n they are replaced every n steps after
    `pretrain` by averages of the networks, one iteration of DSBM each; with 0 they are the averages at every step, the
    online algorithm (arXiv:2409.09347). Averages have the decay `rate`. Pairs are made in `inner_steps` steps.

    Batches are {"x": x_0, "image": x_1}, whose rows are drawn independently. Sampling goes `direction` "backward", to
    x_0 from x_1 as the condition "image", or "forward", to x_1 from x_0 as the condition "source_x".
    """

    init_network: Callable[[Key[Array, ""]], Params]
    apply: Apply
    process: BridgeProcess
    param: Parameterization
    loss_fn: Loss  # of the backward network
    forward_loss_fn: Loss  # of the forward network, on the reversed process
    solver: Solver
    grid: Grid
    steps: int
    shape: tuple[int, ...]
    modality: str = "array"
    coupling: str = "independent"
    pretrain: int = 1000
    refresh: int = 0
    rate: float = 0.999
    inner_steps: int = 20
    direction: str = "backward"
    batch_size: int = 128  # number of samples that are drawn at once
    networks: Mapping[str, Placed] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("coupling", self.coupling, COUPLINGS)
        check_choice("direction", self.direction, DIRECTIONS)
        check(self.pretrain >= 1, "pretrain", self.pretrain, "at least 1: the networks that make pairs need a start")
        check(self.refresh >= 0, "refresh", self.refresh, "at least 0")
        check(0 <= self.rate < 1, "rate", self.rate, "in [0, 1)")
        check(self.inner_steps >= 1, "inner_steps", self.inner_steps, "at least 1")
        if self.coupling == "gaussian" and math.prod(self.shape) > LARGEST:
            raise ValueError(
                f"coupling='gaussian' takes covariances of examples of at most {LARGEST} numbers, not of shape "
                f"{self.shape}; 'independent' takes none"
            )

    def init(self, key: Key[Array, ""]) -> Params:
        backward, forward = (self.init_network(key) for key in jax.random.split(key))
        trained = {"backward": backward, "forward": forward}
        frozen = {"target": trained} | ({"average": trained} if self.refresh else {})
        if self.coupling == "gaussian":
            d = math.prod(self.shape)
            frozen["moments"] = {name: {"mean": jnp.zeros(d), "square": jnp.eye(d)} for name in ("x", START)}
        return {**trained, "frozen": frozen}

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        """The sum of the losses of both directions; in evaluation on the pairs that the networks themselves make."""
        pair_key, *keys = jax.random.split(key, 3)
        ends, frozen = (batch["x"], batch[START]), params.get("frozen", {})
        if train is None:
            pairs = self.made_pairs(params, pair_key, *ends)
        else:
            pairs = jax.lax.cond(
                train.step < self.pretrain,
                lambda: self.first_pairs(frozen.get("moments"), pair_key, *ends),
                lambda: self.made_pairs(frozen["target"], pair_key, *ends),
            )
        (x_0, y_1), (y_0, x_1) = jax.lax.stop_gradient(pairs)
        backward, _ = self.loss_fn(params["backward"], keys[0], x_0, y_1, train=train is not None)
        forward, _ = self.forward_loss_fn(params["forward"], keys[1], x_1, y_0, train=train is not None)
        metrics = {"backward": backward, "forward": forward}
        if train is not None and self.coupling == "gaussian":
            metrics["statistics"] = {name: _moments(x) for name, x in zip(("x", START), ends, strict=True)}
        return backward + forward, metrics

    def advance(self, params: Params, train: Train, metrics: dict[str, PyTree[Array]]) -> Params:
        frozen, trained = params["frozen"], {name: params[name] for name in DIRECTIONS}
        if self.coupling == "gaussian":
            frozen = frozen | {"moments": _mean_of_all(frozen["moments"], metrics["statistics"], train)}
        averages = frozen["average" if self.refresh else "target"]
        averages = ema.follow(averages, trained, ema.warmed_up(self.rate, train.step))
        if not self.refresh:
            return {**params, "frozen": {**frozen, "target": averages}}
        since = train.step + 1 - self.pretrain
        replaced = (since >= 0) & (since % self.refresh == 0)
        target = jax.tree.map(lambda new, old: jnp.where(replaced, new, old), averages, frozen["target"])
        return {**params, "frozen": {**frozen, "target": target, "average": averages}}

    def first_pairs(
        self, moments: PyTree[Array] | None, key: Key[Array, ""], x_0: Array, x_1: Array
    ) -> tuple[Pair, Pair]:
        """The pairs of `coupling`, (x_0, y_1) for the backward and (y_0, x_1) for the forward network.

        `moments`, of "gaussian" alone, are those in frozen.moments.
        """
        if self.coupling == "independent":
            return (x_0, x_1), (x_0, x_1)
        sigma = self.process.reference.sigma(jnp.float32(1))
        rows = [jax.random.split(key, len(x_0)) for key in jax.random.split(key)]
        noise_1, noise_0 = row_normal(rows[0], x_0), row_normal(rows[1], x_1)
        if self.coupling == "reference":
            return (x_0, x_0 + sigma * noise_1), (x_1 + sigma * noise_0, x_1)
        exact = gaussian_bridge(moments, sigma**2)

        def end(direction: str, x: Array, noise: Array) -> Array:
            y = exact.end_given_start(direction, x.reshape(len(x), -1), noise.reshape(len(x), -1))
            return y.reshape(x.shape)

        return (x_0, end("forward", x_0, noise_1)), (end("backward", x_1, noise_0), x_1)

    def made_pairs(self, params: Params, key: Key[Array, ""], x_0: Array, x_1: Array) -> tuple[Pair, Pair]:
        """The pairs that the networks in `params` make of x_0 and x_1, as in `first_pairs`."""
        forward_key, backward_key = jax.random.split(key)
        y_1 = self.carried("forward", params["forward"], forward_key, x_0, self.inner_steps)
        return (x_0, y_1), (self.carried("backward", params["backward"], backward_key, x_1, self.inner_steps), x_1)

    def seen_from(self, direction: str) -> BridgeProcess:
        """The bridge process whose time 0 is where `direction` leads."""
        return self.process if direction == "backward" else Reversed(bridge=self.process)

    def denoiser_of(self, direction: str, network: Params) -> Denoiser:
        """D(x, u) = E[end of `direction` | x], with the time u that falls from 1 at its start to 0."""

        def apply(x: Array, c_noise: Array, cond: Any) -> Array:
            return self.apply(network, x, c_noise, cond)

        return parameterizations.denoiser(apply, self.param, self.seen_from(direction))

    def carried(
        self,
        direction: str,
        network: Params,
        key: Key[Array, ""],
        x: Array,
        steps: int,
        *,
        ids: Int[Array, "batch"] | None = None,
        trajectory: bool = False,
    ) -> Array:
        """Carry examples x of one set to the other, in `steps` steps of the solver; see `sampling.sample`."""
        times, process = self.grid(self.process.reference, steps), self.seen_from(direction)
        D = self.denoiser_of(direction, network)
        return sampling.sample(self.solver, process, D, key, x, times, ids=ids, trajectory=trajectory)

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """Returns the losses of held-out examples on pairs that the networks make."""
        loss, metrics = self.loss(params, key, batch, None)
        return {"loss": loss, **metrics}

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Any, numbers: PyTree[Array] = None
    ) -> dict[str, Float[Array, "batch *shape"]]:
        """Draw {"samples": ...} from the examples in the condition: row r depends on ids[r] and cond[r] only."""
        x = cond[DIRECTIONS[self.direction]]
        return {"samples": self.carried(self.direction, params[self.direction], key, x, self.steps, ids=ids)}

    @property
    def batch(self) -> dict[str, Spec]:
        return entries(self.makes, Conditions({START: image(self.shape)}))

    @property
    def makes(self) -> Spec:
        return Spec(self.shape, modality=self.modality)

    @property
    def conditions(self) -> Conditions:
        """The condition that sampling starts from."""
        return Conditions({DIRECTIONS[self.direction]: image(self.shape)._replace(start="unpaired")})


def gaussian_bridge(moments: PyTree[Array], variance: Float[Array, ""]) -> GaussianBridge:
    """The bridge between Gaussians of these moments, {"x" and "image": {"mean", "square"}}, in x_0 and x_1."""
    means = [moments[name]["mean"] for name in ("x", START)]
    squares = [moments[name]["square"] for name in ("x", START)]
    a, b = (q - jnp.outer(m, m) + _RIDGE * jnp.eye(len(m)) for q, m in zip(squares, means, strict=True))
    return GaussianBridge(mean_0=means[0], mean_1=means[1], covariance_0=a, covariance_1=b, variance=variance)


def _moments(x: Float[Array, "batch *shape"]) -> dict[str, Array]:
    rows = x.reshape(len(x), -1)
    return {"mean": rows.mean(0), "square": rows.T @ rows / len(rows)}


def _mean_of_all(moments: PyTree[Array], batch: PyTree[Array], train: Train) -> PyTree[Array]:
    """The mean of `batch` and of the train.step batches before."""
    # With gradient accumulation there is one row per part of the batch.
    part = jax.tree.map(lambda old, new: new.reshape(-1, *old.shape).mean(0), moments, batch)
    return ema.follow(moments, part, train.step / (train.step + 1))
