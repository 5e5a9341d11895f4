"""Names shared by every module: array aliases and the Protocols that the axes of the algebra meet at."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree


class Embedded(NamedTuple):
    """Conditions as the trunk of a network takes them. None: there is no condition of this kind."""

    vector: Float[Array, "batch emb"] | None = None  # added to the embedding of c_noise
    context: Float[Array, "batch n c"] | None = None  # what cross-attention attends to
    mask: Bool[Array, "batch n"] | None = None  # which positions of `context` exist; None: all
    image: Float[Array, "batch h w c"] | None = None  # concatenated to x; by a ControlNet added to its activations
    # Added to the activations that the decoder of a U-Net reads, in their order, the last to those in the middle.
    residuals: tuple[Float[Array, "batch _ _ _"], ...] = ()
    others: dict[str, Array] | None = None  # conditions of other names, as they are: structures, for example


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
    """What a part (solver, grid, loss, parameterization, guidance) needs of the parts that it is combined with.

    Conditions on alpha and sigma hold at the times at which the part is evaluated: for a solver, those at which its
    steps start. `config/fits.py` refuses combinations in which a need is not met.
    """

    num_steps: bool = False  # a discrete process, which has a number of steps
    unit_alpha: bool = False  # alpha = 1
    alpha: bool = False  # alpha > 0
    alpha_after: bool = False  # alpha > 0 where a step ends
    sigma: bool = False  # sigma > 0
    derivatives: bool = False  # finite alpha' and sigma'
    least_sigma: float | None = None  # sigma(0) above this number
    distinct_times: bool = False  # steps of positive length
    learned_variance: bool = False  # a network that learns variances
    conditional: bool = False  # a network that reads any condition
    conditions: tuple[str, ...] = ()  # a network that reads these
    unguided: bool = False  # the denoiser of the network itself, before other guidance

    def __or__(self, other: Needs) -> Needs:
        """The needs of both."""
        both: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            here, there = getattr(self, field.name), getattr(other, field.name)
            both[field.name] = here or there
        least = [needs.least_sigma for needs in (self, other) if needs.least_sigma is not None]
        both["least_sigma"] = max(least, default=None)
        both["conditions"] = tuple(dict.fromkeys(self.conditions + other.conditions))
        return Needs(**both)


NOTHING = Needs()


def needs_of(part: Any) -> Needs:
    """The declared needs of a part: its attribute `needs`; nothing for a function that declares none."""
    return getattr(part, "needs", NOTHING)


def needing(*parts: Any, **needs: Any) -> Callable[[Callable], Callable]:
    """Decorator that declares the needs of a function: `needs`, and those of the `parts` that it is made of."""

    def declare(function: Callable) -> Callable:
        function.needs = functools.reduce(Needs.__or__, map(needs_of, parts), Needs(**needs))
        return function

    return declare


def spread(cls: type, **defaults: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: the parameter that is annotated as the dataclass `cls` is given by keywords, one for each field.

    `f(x, options: Options, *, key)` becomes `f(x, *, key, **fields of Options)`. Its signature lists the fields with
    their types and defaults, for `inspect.signature` is what a config section is checked against. `defaults` replace
    those of `cls`.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)
        target = next(name for name, p in signature.parameters.items() if p.annotation in (cls, cls.__name__))
        fields = {
            name: p.replace(kind=inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name, p.default))
            for name, p in inspect.signature(cls).parameters.items()
        }

        @functools.wraps(function)
        def call(*args: Any, **keywords: Any) -> Any:
            given = {name: keywords.pop(name) for name in fields if name in keywords}
            return function(*args, **{target: cls(**{**defaults, **given})}, **keywords)

        others = [p for name, p in signature.parameters.items() if name != target]
        kept = [p for p in others if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        own = [p for p in others if p.kind is inspect.Parameter.KEYWORD_ONLY]
        call.__signature__ = signature.replace(parameters=[*kept, *fields.values(), *own])
        return call

    return decorate


def check(allowed: bool, field: str, value: Any, words: str) -> None:
    """Raises ValueError, with the field, its value and what it must be, unless the value is `allowed`."""
    if not allowed:
        raise ValueError(f"{field} is {value!r}; it must be {words}")


def check_choice(field: str, value: Any, choices: Collection[str]) -> None:
    """Raises ValueError, which lists the `choices`, unless `value` is one of them."""
    if value not in choices:
        *first, last = choices
        raise ValueError(f"{field} is {value!r}; choose {', '.join(first)}{' or ' if first else ''}{last}")


@runtime_checkable
class Process(Protocol):
    """How data is destroyed: x_t = alpha(t) x_0 + sigma(t) eps, with t in [0, 1] and noise growing with t.

    `num_steps` is the number of steps of a discrete process, None for a continuous one.
    """

    @property
    def num_steps(self) -> int | None: ...

    def alpha(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]: ...

    def sigma(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]: ...


class Coefficients(NamedTuple):
    """D = c_skip x + c_out F(c_in x, c_noise); each has the shape of t."""

    c_in: Array
    c_skip: Array
    c_out: Array
    c_noise: Array


class Spec(NamedTuple):
    """One entry of an example, declared by the data: its shape and dtype without the batch axis, its kind of data, and
    the number of values that integers take (classes, vocabulary), 0 for any."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    modality: str = "array"
    values: int = 0


class Placed(NamedTuple):
    """One network of a system: what it is, and where its parameters lie. Import, export and LoRA go through these.

    `name` and `arguments` are those of a section of a config, `path` leads to its parameters. `shape` is that of one
    input, of which the arguments `image_size` and `in_channels` are made. `adopt(params, network)` gives the parameters
    of the system when the network has come from elsewhere. `extra(params)` are further entries of the config.json that
    is written with it. `written` tells whether writing the system writes this network.
    """

    name: str
    arguments: Mapping[str, Any]
    path: tuple[str, ...]
    shape: tuple[int, ...] = ()
    adopt: Callable[[Params, Params], Params] | None = None
    extra: Callable[[Params], Mapping[str, Any]] | None = None
    written: bool = True


class Train(NamedTuple):
    """What a loss may know about the training it is part of; `None` stands for evaluation."""

    step: Array
    num_steps: int


class Solver(NamedTuple):
    """One discretisation of the reverse process, as a pair of pure functions.

    `init(x) -> carry` and `step(process, D, keys, x, t, s, carry) -> (x_s, carry)`, which goes from time t to
    s < t (an ODE solver also to s > t: inversion). `t` and `s` are scalars, `keys: [batch]` holds one key per row.
    `needs` declares what the solver needs of the process, the denoiser and the times.
    """

    init: Callable[[Array], Any]
    step: Callable[..., tuple[Array, Any]]
    needs: Needs = NOTHING


@runtime_checkable
class System(Protocol):
    """What is trained and sampled. The trainer and the command ask a system for this and for nothing else.

    `params` is a nested dict whose top-level keys are parameter groups. The group "frozen" is neither
    differentiated nor averaged nor touched by an optimizer; other groups may each have an optimizer of their own.
    """

    @property
    def batch(self) -> Mapping[str, Spec]:
        """What training reads: "x", the example, and conditions by name; {} for a system that reads no data."""

    @property
    def conditions(self) -> Any:
        """The `networks.conditions.Conditions` that samples are drawn under: of the network, guidance and editing."""

    @property
    def makes(self) -> Spec | None:
        """One sample; None for a system that draws none."""

    @property
    def networks(self) -> Mapping[str, Placed]:
        """The networks by their public name, that of the component of a pipeline, such as "unet" or "vae"."""

    def init(self, key: Key[Array, ""]) -> Params: ...

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, PyTree[Array]]]:
        """Per-example loss and metrics. An adversarial system adds its losses with stop_gradient between groups.

        The entry "statistics" of the metrics, of any structure, is for `advance` alone and is not logged."""

    def advance(self, params: Params, train: Train, metrics: dict[str, PyTree[Array]]) -> Params:
        """The parameters after what changes without a gradient: target networks, codebooks, teachers."""

    def numbers(self) -> PyTree[Array]:
        """Numbers that `draw` needs, such as those of guidance. They are read once, outside of `jit`."""

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Array, cond: Cond, numbers: PyTree[Array]
    ) -> dict[str, Array]:
        """The samples of `ids` under "samples": row r is made from ids[r] and cond[r] alone. A pure function."""

    def sample(self, params: Params, key: Key[Array, ""], num: int, cond: Cond = None) -> dict[str, np.ndarray]:
        """`num` samples and their conditions, from `draw`; see `systems.base.Sampled.sample`."""

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """Per-example metrics of held-out data, e.g. {"loss": [batch]}."""
