"""Names shared by every module: array aliases and the Protocols that the axes of the algebra meet at."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree


class Embedded(NamedTuple):
    """Conditions as the trunk of a network takes them. None: there is no condition of this kind."""

    vector: Float[Array, "batch emb"] | None = None  # added to the embedding of c_noise
    context: Float[Array, "batch n c"] | None = None  # what cross-attention looks at
    mask: Bool[Array, "batch n"] | None = None  # which places of `context` there are; None: all
    image: Float[Array, "batch h w c"] | None = None  # concatenated to x; by a ControlNet added to its activations
    # Added to the activations that the way up of a U-Net reads, in their order, the last to those in the middle.
    residuals: tuple[Float[Array, "batch _ _ _"], ...] = ()


class Controlled(NamedTuple):
    """Conditions as a U-Net with a ControlNet takes them."""

    unet: Embedded
    controlnet: Embedded


Params = PyTree[Array]
# Named conditions of a batch, e.g. {"label": int[batch]}, or what a network has made of them, once per sample.
Cond = dict[str, Array | np.ndarray] | Embedded | Controlled | None
Denoiser = Callable[..., Float[Array, "batch *shape"]]  # D(x_t, t, cond=None) -> E[x_0 | x_t]
Apply = Callable[..., Array]  # apply(params, x, c_noise, cond, *, key=None) -> array


def pytree(cls):
    """Make `cls` a frozen, keyword-only dataclass that is a JAX pytree.

    Numbers are leaves, so one can differentiate or vmap through them; fields declared with
    `metadata=dict(static=True)` are not.
    """
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, kw_only=True)(cls))


@runtime_checkable
class Process(Protocol):
    """How data is destroyed: x_t = alpha(t) x_0 + sigma(t) eps, with t in [0, 1] and noise growing with t."""

    def alpha(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]: ...

    def sigma(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]: ...


class Coefficients(NamedTuple):
    """D = c_skip x + c_out F(c_in x, c_noise); each has the shape of t."""

    c_in: Array
    c_skip: Array
    c_out: Array
    c_noise: Array


class Spec(NamedTuple):
    """One entry of an example, declared by the data."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    modality: str = "array"
    values: int = 0  # classes, vocabulary


class Train(NamedTuple):
    """What a loss may know about the training it is part of; `None` stands for evaluation."""

    step: Array
    num_steps: int


class Solver(NamedTuple):
    """One discretisation of the reverse process, as a pair of pure functions.

    `init(x) -> carry` and `step(process, D, keys, x, t, s, carry) -> (x_s, carry)`, which goes from time t to
    s < t (an ODE solver also to s > t: inversion). `t` and `s` are scalars, `keys: [batch]` holds one key per row.
    """

    init: Callable[[Array], Any]
    step: Callable[..., tuple[Array, Any]]


@runtime_checkable
class System(Protocol):
    """What the trainer drives. It hides which process, networks, losses and solvers are in play.

    `params` is a nested dict whose top-level keys are parameter groups. The group "frozen" is neither
    differentiated nor averaged nor touched by an optimizer; other groups may each have an optimizer of their own.
    """

    def init(self, key: Key[Array, ""]) -> Params: ...

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, PyTree[Array]]]:
        """Per-example loss and metrics. An adversarial system adds its losses with stop_gradient between groups.

        The entry "followed" of the metrics, of any structure, is for `advance` alone and not logged."""

    def advance(self, params: Params, train: Train, metrics: dict[str, PyTree[Array]]) -> Params:
        """What changes without a gradient after each optimizer step: target networks, codebooks. Often nothing."""

    def sample(self, params: Params, key: Key[Array, ""], num: int, cond: Cond = None) -> dict[str, Array]: ...

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """Per-example figures of held-out data, e.g. {"loss": [batch]}."""
