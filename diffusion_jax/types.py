"""The contracts between the folders: Process, Solver, System, Spec and other types that several of them share."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in the grey value of a picture, ITU-R BT.601


class Embedded(NamedTuple):
    """Embedded conditions, the input of the layers of a network. None: no condition of this kind."""

    vector: Float[Array, "batch emb"] | None = None  # added to the embedding of c_noise
    context: Float[Array, "batch n c"] | None = None  # what cross-attention attends to
    mask: Bool[Array, "batch n"] | None = None  # which positions of `context` exist; None: all
    image: Float[Array, "batch h w c"] | None = None  # concatenated to x; a ControlNet adds it to its activations
    # Added to the activations that the decoder of a U-Net reads, in their order, the last to those in the middle.
    residuals: tuple[Float[Array, "batch _ _ _"], ...] = ()
    others: dict[str, Array] | None = None  # other conditions, not embedded: structures, for example


class Controlled(NamedTuple):
    """Embedded conditions of a U-Net with a ControlNet."""

    unet: Embedded
    controlnet: Embedded


Params = PyTree[Array]
# Conditions of a batch by name, such as {"label": int[batch]}, or embedded by the network, once per sample.
Cond = dict[str, Array | np.ndarray] | Embedded | Controlled | None
Denoiser = Callable[..., Float[Array, "batch *shape"]]  # D(x_t, t, cond=None) -> E[x_0 | x_t]
Apply = Callable[..., Array]  # apply(params, x, c_noise, cond, *, key=None) -> array


def pytree(cls):
    """Decorator: makes `cls` a frozen, keyword-only dataclass that is a JAX pytree.

    Fields are leaves, so that one can differentiate and vmap over numbers, except for those that are declared with
    `metadata=dict(static=True)`.
    """
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, kw_only=True)(cls))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
    """What a part (solver, grid, loss, parameterization, guidance) needs of the parts that it is combined with.

    Conditions on alpha and sigma hold at the times at which the part is evaluated: for a solver, those at which its
    steps start. `config/fits.py` refuses combinations in which a need is not met.
    """

    num_steps: bool = False  # a discrete process
    unit_alpha: bool = False  # alpha = 1
    alpha: bool = False  # alpha > 0
    alpha_after: bool = False  # alpha > 0 at the times at which steps end
    sigma: bool = False  # sigma > 0
    sigma_after: bool = False  # sigma > 0 at the times at which steps end
    bridge: bool = False  # a bridge between two data sets
    time: bool = False  # t > 0
    derivatives: bool = False  # finite derivatives of alpha and sigma
    final_derivatives: bool = False  # and at t = 1 too, to which churn may raise a time
    least_sigma: float | None = None  # sigma(0) greater than this number
    distinct_times: bool = False  # no step from a time to itself; `sample` skips such steps
    falling_times: bool = False  # steps to smaller times only
    alone: bool = False  # no editing that changes the state between steps
    learned_variance: bool = False  # a network that learns variances
    flow_map: bool = False  # a denoiser that is a flow map, see `parameterizations.FlowMap`
    conditional: bool = False  # a network that reads any condition
    conditions: tuple[str, ...] = ()  # a network that reads all of these conditions
    unguided: bool = False  # the denoiser without other guidance
    guidance_embedding: bool = False  # a network that reads an embedding of the scale of its guidance
    channels: int = 0  # examples of at least so many channels
    categorical: tuple[str, ...] = ()  # a categorical process with these methods, such as "reverse"
    time_free: bool = False  # a network that does not read t
    whole_rows: bool = False  # examples whose entries all count: it takes norms or quantiles over a row

    def __or__(self, other: Needs) -> Needs:
        """Combines the needs of two parts."""
        both: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            here, there = getattr(self, field.name), getattr(other, field.name)
            both[field.name] = here or there
        least = [needs.least_sigma for needs in (self, other) if needs.least_sigma is not None]
        both["least_sigma"] = max(least, default=None)
        both["channels"] = max(self.channels, other.channels)
        for name in ("conditions", "categorical"):
            both[name] = tuple(dict.fromkeys(getattr(self, name) + getattr(other, name)))
        return Needs(**both)


NOTHING = Needs()


def needs_of(part: Any) -> Needs:
    """Returns the declared needs of a part, its attribute `needs`; `NOTHING` without one."""
    return getattr(part, "needs", NOTHING)


def needing(*parts: Any, **needs: Any) -> Callable[[Callable], Callable]:
    """Decorator that declares the needs of a function: `needs`, and those of the `parts` that it uses."""

    def declare(function: Callable) -> Callable:
        function.needs = functools.reduce(Needs.__or__, map(needs_of, parts), Needs(**needs))
        return function

    return declare


def spread(cls: type, **defaults: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: replaces the parameter with the annotation `cls`, a dataclass, by keywords, one for each field.

    `f(x, options: Options, *, key)` becomes `f(x, *, key, **fields of Options)`. The signature lists the fields with
    types and defaults, because sections of configs are checked against `inspect.signature`. `defaults` override those
    of `cls`.
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
            arguments = {name: keywords.pop(name) for name in fields if name in keywords}
            return function(*args, **{target: cls(**{**defaults, **arguments})}, **keywords)

        others = [p for name, p in signature.parameters.items() if name != target]
        positional = [p for p in others if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        keyword_only = [p for p in others if p.kind is inspect.Parameter.KEYWORD_ONLY]
        call.__signature__ = signature.replace(parameters=[*positional, *fields.values(), *keyword_only])
        return call

    return decorate


def check(allowed: bool, field: str, value: Any, words: str) -> None:
    """Raises ValueError, which names the field, its value and `words`, what it must be, unless `allowed`."""
    if not allowed:
        raise ValueError(f"{field} is {value!r}; it must be {words}")


def check_key(key: Any) -> None:
    """Raises TypeError unless `key` is a typed key of JAX."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        legacy = dtype == np.uint32 and np.shape(key)[-1:] == (2,)
        described = "made by jax.random.PRNGKey" if legacy else f"{key!r}"[:80]
        raise TypeError(f"key is {described}; it must be a typed key, such as jax.random.key(0)")


def check_made(field: str, value: Any, kind: str) -> None:
    """Raises TypeError if `value` is the class or function that makes a `kind`, and was not called."""
    if isinstance(value, type) or (inspect.isroutine(value) and not inspect.ismethod(value)):
        name = getattr(value, "__name__", repr(value))
        raise TypeError(f"{field} is {name}, which makes a {kind}; call it, as in {name}()")


def check_choice(field: str, value: Any, choices: Collection[str]) -> None:
    """Raises ValueError, which lists the `choices`, unless `value` is one of them."""
    if value not in choices:
        *first, last = choices
        raise ValueError(f"{field} is {value!r}; choose {', '.join(first)}{' or ' if first else ''}{last}")


@runtime_checkable
class Process(Protocol):
    """A diffusion process (noise schedule): x_t = alpha(t) x_0 + sigma(t) eps, t in [0, 1]; noise grows with t.

    `num_steps` is the number of steps of a discrete process, None for a continuous one.
    """

    @property
    def num_steps(self) -> int | None: ...

    def alpha(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]: ...

    def sigma(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]: ...


@runtime_checkable
class BridgeProcess(Protocol):
    """A bridge between two data sets: x_t = near(t) x_0 + far(t) x_1 + sigma(t) eps, t in [0, 1].

    near(0) = far(1) = 1 and near(1) = far(0) = 0, at least in a limit. `reference` is the process whose bridges these
    are, which grids and distributions of times refer to; `noisy` is False where sigma = 0 throughout.
    """

    @property
    def reference(self) -> Process: ...

    @property
    def noisy(self) -> bool: ...

    def near(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]: ...

    def far(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]: ...

    def sigma(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]: ...


class Coefficients(NamedTuple):
    """Preconditioning of a network F: D = c_skip x + c_out F(c_in x, c_noise). Each coefficient has the shape of t."""

    c_in: Array
    c_skip: Array
    c_out: Array
    c_noise: Array


class Spec(NamedTuple):
    """One entry of an example, declared by the data: shape and dtype without the batch axis, and kind of data.

    `values` is the number of values of integers (classes, vocabulary); 0: any.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    modality: str = "array"
    values: int = 0


class Placed(NamedTuple):
    """One network of a system and the path of its parameters, for import, export and LoRA.

    `name` and `arguments` are a section of a config, `path` leads to the parameters. `shape` is the shape of an input,
    for the arguments `image_size` and `in_channels`. `adopt(params, network)` returns the parameters of the system with
    a network that was trained elsewhere. `extra(params)` are further entries of the config.json that export writes.
    `written`: export of the system writes this network.
    """

    name: str
    arguments: Mapping[str, Any]
    path: tuple[str, ...]
    shape: tuple[int, ...] = ()
    adopt: Callable[[Params, Params], Params] | None = None
    extra: Callable[[Params], Mapping[str, Any]] | None = None
    written: bool = True


class Train(NamedTuple):
    """Progress of training, an argument of losses; None in evaluation."""

    step: Array
    num_steps: int


class Solver(NamedTuple):
    """A solver (sampler): one discretisation of the reverse process, as a pair of pure functions.

    `init(x) -> carry` and `step(process, D, keys, x, t, s, carry) -> (x_s, carry)`, a step from time t to s < t (ODE
    solvers also step to s > t: inversion). `t` and `s` are scalars, `keys: [batch]` holds one key per row.
    `needs` declares what the solver needs of the process, the denoiser and the times. `stages` are the solvers that a
    step consists of, if there are several, such as a predictor and a corrector, see `solvers.base.staged`. `adaptive`:
    how often it evaluates the denoiser depends on the data. `within(P)` is the same solver with its norms over rows
    taken in the range of a projection P, see `projections.on_subspace`; None for a solver without such norms, or one
    that cannot be given P.
    """

    init: Callable[[Array], Any]
    step: Callable[..., tuple[Array, Any]]
    needs: Needs = NOTHING
    stages: tuple[Solver, ...] = ()
    adaptive: bool = False
    within: Callable[[Any], Solver] | None = None


@runtime_checkable
class System(Protocol):
    """A system: what is trained and sampled. The trainer and the command use these members only.

    `params` is a nested dict whose top-level keys are groups of parameters. The group "frozen" has no gradient, EMA or
    optimizer; every other group may have its own optimizer.
    """

    @property
    def batch(self) -> Mapping[str, Spec]:
        """Specs of the entries of a batch: "x", the example, and conditions; {} for a system that reads no data."""

    @property
    def conditions(self) -> Any:
        """The `networks.conditions.Conditions` of samples: of the network, of guidance and of editing."""

    @property
    def makes(self) -> Spec | None:
        """Spec of one sample; None for a system that draws no samples."""

    @property
    def networks(self) -> Mapping[str, Placed]:
        """The networks by public name, that of the component in a pipeline of diffusers, such as "unet" or "vae"."""

    def init(self, key: Key[Array, ""]) -> Params: ...

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, PyTree[Array]]]:
        """Returns the loss of each example, and metrics. `train` is None in evaluation.

        An adversarial system adds its losses, with stop_gradient between groups. The entry "statistics" of the metrics,
        of any structure, is for `advance` and is not logged.
        """

    def advance(self, params: Params, train: Train, metrics: dict[str, PyTree[Array]]) -> Params:
        """Returns the parameters after updates without a gradient: target networks, codebooks, teachers."""

    def numbers(self) -> PyTree[Array]:
        """Arrays that `draw` needs and that are loaded once, outside of `jit`, such as the parameters of guidance."""

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Array, cond: Cond, numbers: PyTree[Array]
    ) -> dict[str, Array]:
        """Draw {"samples": ...}: row r depends on ids[r] and cond[r] only. A pure function, for use under `jit`."""

    def sample(
        self,
        params: Params,
        key: Key[Array, ""],
        num: int,
        cond: Cond = None,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> dict[str, np.ndarray]:
        """Draw `num` samples with `draw`; returns them with their conditions, see `systems.base.Sampled.sample`."""

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """Returns metrics of each held-out example, such as {"loss": [batch]}."""
