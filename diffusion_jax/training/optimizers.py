"""Optimizers (Adam, AdamW, Lion, ...) with learning-rate schedule, clipping, weight decay and parameter groups."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from diffusion_jax.types import Params, check, check_choice

# name -> (b1, b2, eps) -> transformation of gradients to directions, before weight decay and learning rate.
DIRECTIONS: dict[str, Callable[[float, float, float], optax.GradientTransformation]] = {
    "adam": lambda b1, b2, eps: optax.scale_by_adam(b1, b2, eps),
    "adamw": lambda b1, b2, eps: optax.scale_by_adam(b1, b2, eps),
    "amsgrad": lambda b1, b2, eps: optax.scale_by_amsgrad(b1, b2, eps),
    "radam": lambda b1, b2, eps: optax.scale_by_radam(b1, b2, eps),
    "lion": lambda b1, b2, eps: optax.scale_by_lion(b1, b2),
    "rmsprop": lambda b1, b2, eps: optax.scale_by_rms(decay=b2, eps=eps),
    "sgd": lambda b1, b2, eps: optax.trace(decay=b1),
}
DECOUPLED = ("adamw", "lion")  # decoupled weight decay; for others it is an L2 term of the gradient
SCHEDULES = ("constant", "cosine", "linear", "inverse_sqrt", "sawtooth", "multistep")
_STAGED = ("sawtooth", "multistep")
DECAYS = ("kernels", "no_biases", "all")
_FIXED = ("time_proj", "map_noise")  # modules of random Fourier frequencies, which are not trained
_TABLE = "embedding"  # end of the name of a codebook, or of a table of tokens, classes or positions


def make_schedule(
    *,
    learning_rate: float,
    num_steps: int,
    warmup_steps: int = 0,
    schedule: str = "constant",
    final_factor: float = 0.0,
    stages: tuple[int, ...] = (),
) -> optax.Schedule:
    """Learning-rate schedule: the rate as a function of the number k of past optimizer steps.

    For k < w = `warmup_steps` the rate is learning_rate k / w, as in DDPM (arXiv:2006.11239) and score SDEs
    (arXiv:2011.13456). After that, with u = (k - w) / (num_steps - w) in [0, 1] and f = `final_factor`:

    - constant: learning_rate
    - cosine: learning_rate (f + (1 - f) (1 + cos(pi u)) / 2)  (arXiv:1608.03983, eq. 5)
    - linear: learning_rate (1 - (1 - f) u)
    - inverse_sqrt: learning_rate sqrt(max(w, 1) / max(k, 1))  (arXiv:1706.03762, eq. 3)
    - sawtooth: linear in each of `stages`, numbers of steps, u running from 0 to 1 in every one; steps after the last
      stage have its final rate (arXiv:2202.00512, algorithm 2, where training starts again in every stage)
    - multistep: learning_rate f^i in the i-th of `stages`, counted from 0, as torch's MultiStepLR

    Raises ValueError for an unknown schedule, one in stages without stages of at least one step or with a warm-up, a
    rate that is not positive and finite, a negative warm-up, fewer than one step, or a `final_factor` outside [0, 1].
    """
    check(0 < learning_rate < math.inf, "optimizer learning_rate", learning_rate, "positive and finite")
    check(num_steps >= 1, "optimizer num_steps", num_steps, "at least 1")
    check(warmup_steps >= 0, "optimizer warmup_steps", warmup_steps, "at least 0")
    check_choice("optimizer schedule", schedule, SCHEDULES)
    check(0 <= final_factor <= 1, "optimizer final_factor", final_factor, "in [0, 1]")
    staged, names = schedule in _STAGED, " and ".join(_STAGED)
    check(bool(stages) == staged, "optimizer stages", stages, f"given for the schedules {names}, and for no others")
    check(all(steps >= 1 for steps in stages), "optimizer stages", stages, "numbers of at least 1 step")
    check(not (staged and warmup_steps), "optimizer warmup_steps", warmup_steps, f"0 for the schedules {names}")
    decay_steps = max(num_steps - warmup_steps, 1)  # a short trial run may end within the warm-up

    after = {
        "constant": optax.constant_schedule(learning_rate),
        "cosine": optax.cosine_decay_schedule(learning_rate, decay_steps, alpha=final_factor),
        "linear": optax.linear_schedule(learning_rate, learning_rate * final_factor, decay_steps),
        "sawtooth": _sawtooth(learning_rate, final_factor, stages),
        "multistep": optax.piecewise_constant_schedule(learning_rate, dict.fromkeys(_ends(stages), final_factor)),
        "inverse_sqrt": lambda k: learning_rate * (max(warmup_steps, 1) / jnp.maximum(k + warmup_steps, 1)) ** 0.5,
    }[schedule]
    if warmup_steps == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup_steps), after], [warmup_steps])


def _sawtooth(learning_rate: float, final_factor: float, stages: tuple[int, ...]) -> optax.Schedule:
    ramps = [optax.linear_schedule(learning_rate, learning_rate * final_factor, steps) for steps in stages]
    return optax.join_schedules(ramps, _ends(stages)) if ramps else optax.constant_schedule(learning_rate)


def _ends(stages: tuple[int, ...]) -> list[int]:
    """The steps at which all but the last of the stages end."""
    return list(itertools.accumulate(stages))[:-1]


def make_optimizer(
    *,
    name: str = "adam",
    learning_rate: float,
    num_steps: int,
    warmup_steps: int = 0,
    schedule: str = "constant",
    final_factor: float = 0.0,
    stages: tuple[int, ...] = (),
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decay: str = "kernels",
    clip_norm: float = 0.0,
    skip_non_finite: int = 0,
    groups: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """An optimizer and its learning-rate schedule.

    The gradient is clipped to a global L2 norm of `clip_norm` (0: not clipped), transformed by the method `name`, and
    scaled by minus the learning rate of `make_schedule`. `b1` is the momentum of sgd, `b2` the decay of rmsprop.
    `weight_decay` is decoupled for adamw and lion (arXiv:1711.05101), an L2 term of the gradient otherwise. It applies
    to the parameters that `decay` names, see `decay_mask`.

    `groups` maps a group of parameters (a top-level key) to other keywords of this function for this group, for example
    `{"discriminator": {"learning_rate": 1e-4, "b1": 0.5}}`. Each of these groups is clipped by its own norm; all other
    groups share one norm and the returned schedule.

    Steps whose gradient is not finite are skipped, up to `skip_non_finite` in a row: they change neither the parameters
    nor the state of the optimizer. After that, or with 0, such gradients are applied.

    Raises ValueError for a value out of range or an unknown keyword in `groups`, and, when the optimizer is
    initialised, for a group that the parameters do not have.
    """
    check_choice("optimizer name", name, DIRECTIONS)
    check(0 <= b1 < 1, "optimizer b1", b1, "in [0, 1)")
    check(0 <= b2 < 1, "optimizer b2", b2, "in [0, 1)")
    check(eps > 0, "optimizer eps", eps, "positive")
    check(0 <= weight_decay < math.inf, "optimizer weight_decay", weight_decay, "at least 0 and finite")
    check_choice("optimizer decay", decay, DECAYS)
    check(0 <= clip_norm < math.inf, "optimizer clip_norm", clip_norm, "at least 0 and finite")
    check(skip_non_finite >= 0, "optimizer skip_non_finite", skip_non_finite, "at least 0")
    rate = make_schedule(
        learning_rate=learning_rate,
        num_steps=num_steps,
        warmup_steps=warmup_steps,
        schedule=schedule,
        final_factor=final_factor,
        stages=stages,
    )
    masked = functools.partial(decay_mask, decay=decay)
    decayed = optax.add_decayed_weights(weight_decay, mask=masked) if weight_decay else optax.identity()
    direction = DIRECTIONS[name](b1, b2, eps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        *((direction, decayed) if name in DECOUPLED else (decayed, direction)),
        optax.scale_by_learning_rate(rate),
    )
    if not groups:
        return _skipping(optimizer, skip_non_finite), rate

    shared = dict(
        name=name,
        learning_rate=learning_rate,
        num_steps=num_steps,
        warmup_steps=warmup_steps,
        schedule=schedule,
        final_factor=final_factor,
        stages=stages,
        b1=b1,
        b2=b2,
        eps=eps,
        weight_decay=weight_decay,
        decay=decay,
        clip_norm=clip_norm,
    )
    transforms = {_label(group): _group_optimizer(group, shared, groups[group]) for group in groups}
    transforms[_label(None)] = optimizer
    optimizer = optax.multi_transform(transforms, lambda params: _labels(params, groups))
    return _skipping(optimizer, skip_non_finite), rate


def decay_mask(params: Params, decay: str = "kernels") -> PyTree[bool]:
    """Which parameters weight decay applies to, as a tree of booleans.

    - kernels: matrices and convolution kernels; no biases, norm scales, codebooks, tables of embeddings or positions.
    - no_biases: all except biases, as in the code of VDM (arXiv:2107.00630), where norms are decayed.
    - all: all trained parameters, as torch.optim.AdamW does without parameter groups (latent diffusion, ADM).

    Random Fourier frequencies are never decayed, as they are not trained. Raises ValueError for another `decay`.
    """
    check_choice("optimizer decay", decay, DECAYS)

    def decays(path: tuple[Any, ...], leaf: Any) -> bool:
        *modules, name = ["", *(str(entry.key) for entry in path)]
        if modules and modules[-1] in _FIXED:
            return False
        if decay == "kernels":
            return leaf.ndim >= 2 and not name.endswith(_TABLE)
        return decay == "all" or name != "bias"

    return jax.tree_util.tree_map_with_path(decays, params)


def _skipping(optimizer: optax.GradientTransformation, most: int) -> optax.GradientTransformation:
    return optax.apply_if_finite(optimizer, most) if most else optimizer


def _group_optimizer(
    group: str, shared: Mapping[str, Any], overrides: Mapping[str, Any]
) -> optax.GradientTransformation:
    check(group != "frozen", "optimizer groups", group, 'a trained group: "frozen" has no optimizer')
    unknown = sorted(set(overrides) - set(shared))
    check(not unknown, f"optimizer groups.{group}", unknown, f"keywords among {', '.join(shared)}")
    try:
        return make_optimizer(**{**shared, **overrides})[0]
    except ValueError as error:
        raise ValueError(f"groups.{group}: {error}") from None


def _label(group: str | None) -> str:
    return "others" if group is None else f"group_{group}"


def _labels(params: Params, groups: Mapping[str, Any]) -> dict[str, str]:
    missing = sorted(set(groups) - set(params))
    check(not missing, "optimizer groups", missing, f"groups of the parameters: {', '.join(sorted(params))}")
    return {group: _label(group if group in groups else None) for group in params}
