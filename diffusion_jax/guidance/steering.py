"""The guidance of a system: functions from models to models, with the numbers and networks that they need."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from diffusion_jax import guidance
from diffusion_jax.guidance.classifier import LogLikelihood
from diffusion_jax.guidance.classifier_free import check
from diffusion_jax.networks.conditioning import guided
from diffusion_jax.networks.conditions import NO_CONDITIONS, Conditions
from diffusion_jax.parameterizations import bound_to
from diffusion_jax.types import NOTHING, Cond, Denoiser, Needs, Params, Process, Solver

# Factors of the scale by time, 1 on average (arXiv:2404.13040, section 4).
SCHEDULES: dict[str, Callable[[Float[Array, "*n"]], Float[Array, "*n"]]] = {
    "constant": jnp.ones_like,
    "linear": lambda t: 2 * (1 - t),
    "cosine": lambda t: 1 + jnp.cos(jnp.pi * t),
}


class Model(NamedTuple):
    """A denoiser and the condition it is to be sampled under."""

    D: Denoiser  # D(x, t, cond), with cond as `cond` and `null` are
    cond: Any  # as the network has embedded it; None for a network without conditions
    null: Any  # the null condition, embedded, with a batch axis of size 1
    given: Cond  # the condition before it was embedded
    process: Process

    @property
    def bound(self) -> Denoiser:
        """D(x, t) under the condition."""
        return bound_to(self.D, self.cond)


class Guidance(NamedTuple):
    """Guidance as pure functions; `chain` makes one of several.

    `load() -> numbers` is a pytree, read once when samples are first drawn: scales, parameters of other networks.
    `steer(numbers, model) -> model` changes the denoiser; its condition is bound afterwards, by the system.
    `around(solver, cond) -> solver` changes the solver, for methods that see the state at both ends of a step.
    `conditions` are those that it steers towards, in addition to those of the network.
    `values` describe it in reports, such as {"scale": 7.5}.
    """

    load: Callable[[], PyTree[Array]]
    steer: Callable[[PyTree[Array], Model], Model]
    conditions: Conditions = NO_CONDITIONS
    needs: Needs = NOTHING
    values: Mapping[str, float] = {}
    around: Callable[[Solver, Cond], Solver] = lambda solver, cond: solver


def none() -> Guidance:
    """No guidance: the conditional model as it is."""
    return Guidance(load=dict, steer=lambda numbers, model: model)


def chain(*parts: Guidance) -> Guidance:
    """The guidance that applies `parts` one after the other, the first to the denoiser of the network itself.

    Raises ValueError for a later part that evaluates the denoiser under several conditions at once, as classifier-free
    guidance does: those before it hold the condition of the sample.
    """
    for part in parts[1:]:
        if part.needs.unguided:
            raise ValueError("guidance that evaluates the network under a null condition must be the first of a chain")

    def steer(numbers: tuple[PyTree[Array], ...], model: Model) -> Model:
        for part, own in zip(parts, numbers, strict=True):
            model = part.steer(own, model)
        return model

    def around(solver: Solver, cond: Cond) -> Solver:
        for part in parts:
            solver = part.around(solver, cond)
        return solver

    return Guidance(
        load=lambda: tuple(part.load() for part in parts),
        steer=steer,
        around=around,
        conditions=functools.reduce(Conditions.__or__, (part.conditions for part in parts), NO_CONDITIONS),
        needs=functools.reduce(Needs.__or__, (part.needs for part in parts), NOTHING),
        values={i * "then_" + name: value for i, part in enumerate(parts) for name, value in part.values.items()},
    )


def lifted(function: Callable[[Denoiser], Denoiser]) -> Guidance:
    """A function from denoisers to denoisers, such as a threshold, as a link of a chain."""
    return Guidance(load=dict, steer=lambda numbers, model: model._replace(D=function(model.D)))


def classifier_free(
    scale: float = 1.0,
    schedule: str = "constant",
    interval: tuple[float, ...] = (),
    rescale: float = 0.0,
    channels: int = 0,
) -> Guidance:
    """`guidance.classifier_free` of the model and its null condition; w(t) = 1 + (scale - 1) schedule(t).

    With `channels` > 0 only so many channels are guided. Raises ValueError for a schedule that is not in `SCHEDULES`,
    an empty interval, or `rescale` or `channels` out of range.
    """
    factor, within = _schedule(schedule), tuple(interval) or None
    check(within, rescale)
    if channels < 0:
        raise ValueError(f"channels is {channels}; it must be at least 0, where 0 guides all")

    def steer(numbers: PyTree[Array], model: Model) -> Model:
        if model.cond is None:
            return model
        w = lambda t: 1 + (numbers["scale"] - 1) * factor(t)  # noqa: E731
        return model._replace(D=guidance.classifier_free(model.D, w, model.null, within, rescale, channels))

    return Guidance(
        load=lambda: {"scale": jnp.float32(scale)},
        steer=steer,
        needs=Needs(conditional=True, unguided=True, channels=channels, whole_rows=rescale > 0),
        values={"scale": scale},
    )


def embedded(scale: float = 8.0, dim: int = 256) -> Guidance:
    """The guidance that a distilled network imitates by itself, whose `scale` it reads as an embedding of size `dim`.

    See `networks.conditioning.guided`: one evaluation of the network does what `classifier_free` with this scale does
    with two (arXiv:2310.04378, section 4.2).
    """

    def steer(numbers: PyTree[Array], model: Model) -> Model:
        rows = jax.tree.leaves(model.cond)[0].shape[0]
        return model._replace(cond=guided(model.cond, jnp.broadcast_to(numbers["scale"], rows), dim))

    return Guidance(
        load=lambda: {"scale": jnp.float32(scale)},
        steer=steer,
        needs=Needs(conditional=True, unguided=True, guidance_embedding=True),
        values={"scale": scale},
    )


def instruct_pix2pix(scale: float = 7.5, image_scale: float = 1.5, rescale: float = 0.0) -> Guidance:
    """`guidance.instruct_pix2pix` of a model of both: w = `scale` for the text, w_I = `image_scale` for the image.

    Raises ValueError for `rescale` outside [0, 1].
    """
    check(None, rescale)

    def steer(numbers: PyTree[Array], model: Model) -> Model:
        image_only = model.null._replace(image=model.cond.image)
        scales = numbers["scale"], numbers["image_scale"]
        return model._replace(D=guidance.instruct_pix2pix(model.D, *scales, image_only, model.null, rescale))

    return Guidance(
        load=lambda: {"scale": jnp.float32(scale), "image_scale": jnp.float32(image_scale)},
        steer=steer,
        needs=Needs(conditions=("image",), unguided=True, whole_rows=rescale > 0),
        values={"scale": scale, "image_scale": image_scale},
    )


def autoguidance(
    weak: Callable[[Params, Cond], Denoiser],
    load_weak: Callable[[], Params],
    scale: float = 1.0,
    schedule: str = "constant",
    interval: tuple[float, ...] = (),
) -> Guidance:
    """`guidance.autoguidance` by the model `weak(params, cond) -> D(x, t)`; w(t) as in `classifier_free`.

    Raises ValueError for a schedule that is not in `SCHEDULES`, or an empty interval.
    """
    factor, within = _schedule(schedule), tuple(interval) or None
    check(within, 0.0)

    def steer(numbers: PyTree[Array], model: Model) -> Model:
        D_weak = weak(numbers["params"], model.given)
        w = lambda t: 1 + (numbers["scale"] - 1) * factor(t)  # noqa: E731
        return model._replace(D=guidance.autoguidance(model.D, lambda x, t, _: D_weak(x, t), w, within))

    return Guidance(
        load=lambda: {"scale": jnp.float32(scale), "params": load_weak()}, steer=steer, values={"scale": scale}
    )


def classifier(
    log_prob: Callable[..., Float[Array, "batch"]],
    load_classifier: Callable[[], Params],
    conditions: Conditions,
    scale: float = 1.0,
    schedule: str = "constant",
) -> Guidance:
    """`guidance.classifier` with the log-likelihood `log_prob(params, x_t, t, cond)`; w(t) = scale schedule(t).

    Raises ValueError for a schedule that is not in `SCHEDULES`.
    """
    factor = _schedule(schedule)

    def steer(numbers: PyTree[Array], model: Model) -> Model:
        if model.given is None:
            return model
        log_likelihood: LogLikelihood = lambda x, t, _: log_prob(numbers["params"], x, t, model.given)  # noqa: E731
        w = lambda t: numbers["scale"] * factor(t)  # noqa: E731
        return model._replace(D=guidance.classifier(model.D, log_likelihood, w, model.process))

    return Guidance(
        load=lambda: {"scale": jnp.float32(scale), "params": load_classifier()},
        steer=steer,
        conditions=conditions,
        needs=Needs(alpha=True),
        values={"scale": scale},
    )


def _schedule(name: str) -> Callable[[Array], Array]:
    if name not in SCHEDULES:
        raise ValueError(f"schedule is {name!r}; choose one of {', '.join(SCHEDULES)}")
    return SCHEDULES[name]
