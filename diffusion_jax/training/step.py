"""Train state, and the train step that all systems share: gradient, optimizer, EMA, as one pure function."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from diffusion_jax.training import ema
from diffusion_jax.types import Params, System, Train

Leaf = Any  # an array, or in pytrees that JAX builds a shape, a sharding or a placeholder


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of training. Together with the state of the data iterator it is all that resuming needs."""

    step: Leaf  # int32 []
    params: PyTree[Leaf]  # by group; "frozen" has no gradient, EMA or optimizer
    ema: dict[str, PyTree[Leaf]]  # by rate: averages of the trained groups
    opt_state: PyTree[Leaf]
    key: Leaf  # a typed key []


def trained(params: dict[str, PyTree[Any]]) -> dict[str, PyTree[Any]]:
    """Returns the trained groups of parameters: all except "frozen"."""
    return {group: tree for group, tree in params.items() if group != "frozen"}


def stream(key: Key[Array, ""], purpose: str) -> Key[Array, ""]:
    """The key of one purpose, such as "training": other numbers than of `key`, its splits, or other purposes."""
    return jax.random.fold_in(key, zlib.crc32(purpose.encode()))


def init_state(
    system: System,
    optimizer: optax.GradientTransformation,
    ema_rates: Sequence[float],
    key: Key[Array, ""],
    params: Params | None = None,
) -> TrainState:
    """Returns the train state at step 0, with `params` or else those of `system.init`. Call it inside `jit`.

    Training has a stream of random numbers of its own, so that samples may be drawn with the same key.
    """
    init_key, train_key = jax.random.split(stream(key, "training"))
    params = system.init(init_key) if params is None else params
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=ema.init(params, ema_rates),
        opt_state=optimizer.init(trained(params)),
        key=train_key,
    )


def make_train_step(
    system: System,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    ema_rates: Sequence[float],
    ema_warmup: bool = True,
    ema_rampup: float = 0.0,
    accumulate: int = 1,
) -> Callable[[TrainState, dict[str, Array]], tuple[TrainState, dict[str, Float[Array, ""]]]]:
    """Build `step(state, batch) -> (state, metrics)`: gradient of the mean loss, optimizer, `advance`, EMA.

    The key of step k is fold_in(state.key, k). With `accumulate` > 1 the batch is split into this number of parts,
    whose gradients are averaged in a scan. Metrics are the means of "loss" and of the metrics of the loss, "grad_norm"
    (the global L2 norm before clipping), and with an optimizer that skips gradients that are not finite
    "skipped_steps" and "skipped_in_a_row".
    """

    def gradient(params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train):
        def objective(trained_params: Params):
            loss, metrics = system.loss({**params, **trained_params}, key, batch, train)
            return jnp.mean(loss), {"loss": jnp.mean(loss), **metrics}

        grads, metrics = jax.grad(objective, has_aux=True)(trained(params))
        return grads, metrics

    def accumulated(params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train):
        if accumulate == 1:
            return gradient(params, key, batch, train)
        # Each part has every accumulate-th row, so that it is split over the devices like the batch.
        parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), batch)

        def add(total: PyTree, part: tuple[Key[Array, ""], dict[str, Array]]):
            grads, metrics = gradient(params, *part, train)
            return jax.tree.map(lambda a, b: a + b / accumulate, total, grads), metrics

        zeros = jax.tree.map(jnp.zeros_like, trained(params))
        grads, metrics = jax.lax.scan(add, zeros, (jax.random.split(key, accumulate), parts))
        return grads, metrics

    def step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        train = Train(state.step, num_steps)
        grads, metrics = accumulated(state.params, jax.random.fold_in(state.key, state.step), batch, train)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained(state.params))
        params = {**state.params, **optax.apply_updates(trained(state.params), updates)}
        params = system.advance(params, train, metrics)
        averages = ema.update(state.ema, params, state.step, ema_rates, ema_warmup, ema_rampup)
        if isinstance(opt_state, optax.ApplyIfFiniteState):
            # A skipped step changes nothing: neither what `advance` follows the batch with, nor the averages.
            skipped = ~opt_state.last_finite & (optax.global_norm(updates) == 0)
            before = (state.params, state.ema)
            params, averages = jax.tree.map(lambda a, b: jnp.where(skipped, b, a), (params, averages), before)
        state = dataclasses.replace(state, step=state.step + 1, params=params, ema=averages, opt_state=opt_state)
        logged = {name: value for name, value in metrics.items() if name != "statistics"}
        metrics = {**jax.tree.map(jnp.mean, logged), "grad_norm": optax.global_norm(grads)}
        if isinstance(opt_state, optax.ApplyIfFiniteState):
            metrics["skipped_steps"] = opt_state.total_notfinite.astype(jnp.float32)
            metrics["skipped_in_a_row"] = opt_state.notfinite_count.astype(jnp.float32)
        return state, metrics

    return step
