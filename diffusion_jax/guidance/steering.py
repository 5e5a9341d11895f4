"""The guidance of a system: what steers its samples, with the numbers and networks that it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from diffusion_jax.guidance.classifier import LogLikelihood, classifier
from diffusion_jax.guidance.classifier_free import autoguidance, check, classifier_free, text_and_image
from diffusion_jax.networks.conditions import NO_CONDITIONS, Conditions
from diffusion_jax.parameterizations import bound_to
from diffusion_jax.types import Cond, Denoiser, Embedded, Params, Process

# Factors of the scale by time, 1 on average (arXiv:2404.13040, section 4).
SCHEDULES: dict[str, Callable[[Float[Array, "*n"]], Float[Array, "*n"]]] = {
    "constant": jnp.ones_like,
    "linear": lambda t: 2 * (1 - t),
    "cosine": lambda t: 1 + jnp.cos(jnp.pi * t),
}


class Model(NamedTuple):
    """A denoiser and the condition it is to be sampled under."""

    D: Denoiser  # D(x, t, cond), with cond as `cond` and `null` are
    cond: Any  # as the network has embedded it; None where it reads none
    null: Any  # what stands for no condition, embedded, with a batch axis of size 1
    given: Cond  # the condition as given
    process: Process


class Guidance(NamedTuple):
    """A pair of pure functions.

    `load() -> numbers` is a pytree, read once when samples are first drawn: scales, parameters of other networks.
    `steer(numbers, model) -> D(x, t)` is the denoiser that solvers see, its condition bound.
    `conditions` are those that it steers towards beside those of the network.
    """

    load: Callable[[], PyTree[Array]]
    steer: Callable[[PyTree[Array], Model], Denoiser]
    conditions: Conditions = NO_CONDITIONS


def none() -> Guidance:
    """The conditional model as it is."""
    return Guidance(load=dict, steer=lambda numbers, model: bound_to(model.D, model.cond))


def free(
    scale: float = 1.0,
    schedule: str = "constant",
    interval: tuple[float, ...] = (),
    rescale: float = 0.0,
) -> Guidance:
    """`guidance.classifier_free` of the model and itself without condition; w(t) = 1 + (scale - 1) schedule(t).

    Raises ValueError for a schedule that is not in `SCHEDULES`, an empty interval, or `rescale` outside [0, 1].
    """
    factor, within = _schedule(schedule), tuple(interval) or None
    check(within, rescale)

    def steer(numbers: PyTree[Array], model: Model) -> Denoiser:
        if model.cond is None:
            return bound_to(model.D, None)
        w = lambda t: 1 + (numbers["scale"] - 1) * factor(t)  # noqa: E731
        return bound_to(classifier_free(model.D, w, model.null, within, rescale), model.cond)

    return Guidance(load=lambda: {"scale": jnp.float32(scale)}, steer=steer)


def instruct(scale: float = 7.5, image_scale: float = 1.5, rescale: float = 0.0) -> Guidance:
    """`guidance.text_and_image` of a model of both: w = `scale` for the text, w_I = `image_scale` for the image.

    Raises ValueError for `rescale` outside [0, 1], and when samples are drawn from a model without an image.
    """
    check(None, rescale)

    def steer(numbers: PyTree[Array], model: Model) -> Denoiser:
        if not isinstance(model.cond, Embedded) or model.cond.image is None:
            raise ValueError("guidance by text and image needs a network with the condition 'image'")
        image_only = model.null._replace(image=model.cond.image)
        scales = numbers["scale"], numbers["image_scale"]
        return bound_to(text_and_image(model.D, *scales, image_only, model.null, rescale), model.cond)

    return Guidance(load=lambda: {"scale": jnp.float32(scale), "image_scale": jnp.float32(image_scale)}, steer=steer)


def auto(
    weak: Callable[[Params, Cond], Denoiser],
    load_weak: Callable[[], Params],
    scale: float = 1.0,
    schedule: str = "constant",
    interval: tuple[float, ...] = (),
) -> Guidance:
    """`guidance.autoguidance` by the model `weak(params, cond) -> D(x, t)`; w(t) as in `free`.

    Raises ValueError for a schedule that is not in `SCHEDULES`, or an empty interval.
    """
    factor, within = _schedule(schedule), tuple(interval) or None
    check(within, 0.0)

    def steer(numbers: PyTree[Array], model: Model) -> Denoiser:
        D_weak = weak(numbers["params"], model.given)
        w = lambda t: 1 + (numbers["scale"] - 1) * factor(t)  # noqa: E731
        return autoguidance(bound_to(model.D, model.cond), lambda x, t, _: D_weak(x, t), w, within)

    return Guidance(load=lambda: {"scale": jnp.float32(scale), "params": load_weak()}, steer=steer)


def by_classifier(
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

    def steer(numbers: PyTree[Array], model: Model) -> Denoiser:
        D = bound_to(model.D, model.cond)
        if model.given is None:
            return D
        log_likelihood: LogLikelihood = lambda x, t, _: log_prob(numbers["params"], x, t, model.given)  # noqa: E731
        return classifier(D, log_likelihood, lambda t: numbers["scale"] * factor(t), model.process)

    return Guidance(
        load=lambda: {"scale": jnp.float32(scale), "params": load_classifier()}, steer=steer, conditions=conditions
    )


def _schedule(name: str) -> Callable[[Array], Array]:
    if name not in SCHEDULES:
        raise ValueError(f"schedule is {name!r}; choose one of {', '.join(SCHEDULES)}")
    return SCHEDULES[name]
