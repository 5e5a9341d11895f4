"""A config made ready: every object built and checked, and the state it trains or samples from."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from diffusion_jax import build, checks, public, workdir
from diffusion_jax.pretrained import restore_averaged
from diffusion_jax.sections import ConfigError, refusal
from diffusion_jax.training import mesh as meshes
from diffusion_jax.training.step import TrainState, init_state, make_train_step
from diffusion_jax.types import Params, System


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What every mode needs. Once it exists the config is known to fit together; nothing is allocated yet."""

    config: ConfigDict
    system: System
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
    state: TrainState  # abstract: shapes, dtypes and layout on the mesh
    batch: dict[str, jax.ShapeDtypeStruct]

    @property
    def layout(self) -> PyTree[jax.sharding.Sharding]:
        return jax.tree.map(lambda x: x.sharding, self.state)


def prepare(config: ConfigDict, devices: int | None = None) -> Job:
    """Build and check what `config` describes, for the devices there are, or for a plan on `devices` of them.

    Raises ConfigError, naming the field.
    """
    checks.check_keys(config)
    with refusal("config.mesh"):
        mesh = meshes.make_mesh(**config.mesh, devices=devices)
    with refusal("config.training"):
        meshes.check_batch(mesh, config.training.batch_size // config.training.accumulate)
    system = build.system(config)
    optimizer, learning_rate = build.optimizer(config)
    batch = {"x": jax.ShapeDtypeStruct((config.training.batch_size, *build.data_shape(config)), np.float32)}
    for name, entry in build.conditions(config).shapes.items():
        batch[name] = jax.ShapeDtypeStruct((config.training.batch_size, *entry.shape), entry.dtype)
    with refusal(f"config.network ({config.network.name}) does not fit the data or config.ema"):
        state = jax.eval_shape(lambda key: init_state(system, optimizer, config.ema.rates, key), jax.random.key(0))
        jax.eval_shape(lambda p, b: system.loss(p, jax.random.key(0), b, None), state.params, batch)
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state,
        meshes.state_sharding(mesh, state),
    )
    return Job(
        config=config,
        system=system,
        optimizer=optimizer,
        learning_rate=learning_rate,
        mesh=mesh,
        state=state,
        batch=batch,
    )


def train_step(job: Job, accumulate: int | None = None) -> Callable:
    """The step that trains `job`, see `make_train_step`; `accumulate` stands in for config.training.accumulate."""
    return make_train_step(
        job.system,
        job.optimizer,
        num_steps=job.config.training.num_steps,
        ema_rates=job.config.ema.rates,
        ema_warmup=job.config.ema.warmup,
        accumulate=accumulate or job.config.training.accumulate,
    )


def fresh_state(job: Job) -> TrainState:
    """The state of step 0, with the parameters of config.weights and of the runs that the system stands on."""

    def start(key: Any) -> TrainState:
        return init_state(job.system, job.optimizer, job.config.ema.rates, key)

    given = load_params(job, pathlib.Path(job.config.weights)) if job.config.weights else None
    others = {} if given else build.pretrained(job.config)
    state = jax.jit(start, out_shardings=job.layout)(jax.random.key(job.config.seed))
    if given is None:
        placed = jax.device_put(others, _part(job.layout.params, others))
        return dataclasses.replace(state, params=_filled(state.params, placed))
    params, _ = given
    # The average is a copy, because the train step gives away every buffer of its state once.
    ema = {
        rate: {group: jax.tree.map(lambda x: x.copy(), params[group]) for group in state.ema[rate]}
        for rate in state.ema
    }
    return dataclasses.replace(state, params=params, ema=ema)


def averaged(job: Job, params: Params, ema: dict[str, Params]) -> Params:
    """The parameters that samples come from: `params` with the average of config.sampling.ema_rate put in."""
    return {**params, **ema[checks.ema_rate(job.config)]} if ema else params


def load_params(job: Job, directory: pathlib.Path) -> tuple[Params, int]:
    """The averaged parameters of the newest checkpoint in the work directory `directory`, and its step.

    `directory` may also be a public checkpoint, see `public`: the network comes from it, everything else from a fresh
    start, and the step is 0.

    Raises ConfigError if there is none or it is of another model.
    """
    if public.is_public(directory):
        return _public_params(job, directory), 0
    if not (directory / "checkpoints").is_dir():
        raise ConfigError(
            f"{directory} holds no checkpoint; train first, or give its --workdir, or as config.weights that of another"
            " run, a folder of diffusers or a file of weights"
        )
    workdir.check_same_model(job.config, directory, resume=False)
    return restore_averaged(directory, job.config, job.state.params, job.state.ema)


def _public_params(job: Job, path: pathlib.Path) -> Params:
    """Those of a fresh start, with the network from a public checkpoint; both parts are laid out on the mesh."""
    abstract, layout = job.state.params, job.layout.params
    given = getattr(job.system, "diffusion", job.system)  # of latents, where there is a first stage
    with refusal("config.weights"):
        section = job.config.network.to_dict()
        network = public.load_network(path, section, given.shape, abstract["network"])
        others = build.pretrained(job.config)
        rest = {group: layout[group] for group in layout if group != "network"}
        start = jax.jit(lambda key: _part(job.system.init(key), rest), out_shardings=rest)
        rest = _filled(start(jax.random.key(job.config.seed)), jax.device_put(others, _part(layout, others)))
        return public.completed(job.system, network, rest)


def _part(tree: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """What `tree` holds under the names of `wanted`."""
    return {k: _part(tree[k], v) if isinstance(v, dict) else tree[k] for k, v in wanted.items()}


def _filled(tree: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`tree` with the leaves of `given`."""
    return {
        k: v if k not in given else _filled(v, given[k]) if isinstance(given[k], dict) else given[k]
        for k, v in tree.items()
    }
