"""A job: the system, optimizer, mesh and abstract train state of a config, built and checked before anything runs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import optax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from diffusion_jax.config import build, checks
from diffusion_jax.config.recipes.recipe import Recipe
from diffusion_jax.config.sections import ConfigError, refusal
from diffusion_jax.data import Source
from diffusion_jax.systems.low_rank import learner
from diffusion_jax.training import mesh as meshes
from diffusion_jax.training.step import TrainState, init_state, make_train_step
from diffusion_jax.types import System


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What every mode of the command needs. Its parts have been checked against each other; no array is allocated."""

    config: ConfigDict
    built: build.Built
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
    learner: System  # the system that is trained: `system`, or low-rank updates of it
    state: TrainState  # of the learner; abstract: shapes, dtypes and layout on the mesh
    params: PyTree[jax.ShapeDtypeStruct]  # abstract parameters of `system`
    batch: dict[str, jax.ShapeDtypeStruct]

    @property
    def system(self) -> System:
        return self.built.system

    @property
    def recipe(self) -> Recipe:
        return self.built.recipe

    @property
    def layout(self) -> PyTree[jax.sharding.Sharding]:
        """The sharding of each array of the train state."""
        return jax.tree.map(lambda x: x.sharding, self.state)

    @functools.cached_property
    def source(self) -> Source:
        """The training split of the data, see `build.Built.source`."""
        return self.built.source()

    @functools.cached_property
    def examples(self) -> Source:
        """What training reads: the training split, or what the recipe makes of it."""
        return self.recipe.examples(self.built.parts, self.source)

    @functools.cached_property
    def held_out(self) -> Source:
        """The held-out split of the data, for evaluation."""
        return self.built.source(evaluation=True)


def prepare(config: ConfigDict, devices: int | None = None, *, planning: bool = False) -> Job:
    """Build and check the job of a config.

    The mesh has the devices of this machine or cluster, or for a plan `devices` abstract ones. With `planning` the runs
    that it depends on need not be trained yet. Raises ConfigError, which names the key, its value and what is allowed.
    """
    checks.check_keys(config)
    build.check_read(config)
    with refusal("config.mesh"):
        mesh = meshes.make_mesh(**config.mesh, devices=devices)
    with refusal("config.training"):
        meshes.check_batch(mesh, config.training.batch_size // config.training.accumulate)
    built = build.build(config, planning=planning)
    system = built.system
    optimizer, learning_rate = built.parts.optimizer()
    rows = config.training.batch_size
    batch = {name: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype) for name, x in system.batch.items()}
    with refusal(f"config.network ({config.network.name}) does not fit the data or config.ema"):
        state = jax.eval_shape(lambda key: init_state(system, optimizer, config.ema.rates, key), jax.random.key(0))
        jax.eval_shape(lambda p, b: system.loss(p, jax.random.key(0), b, None), state.params, batch)
    state = laid_out(mesh, state)
    params = state.params
    with refusal("config.lora"):
        trained = learner(config.lora.to_dict(), system)
    if trained is not system:
        if not built.recipe.trains_lora:
            raise ConfigError(
                f"config.lora.rank={config.lora.rank} must be 0 for config.system.name={config.system.name!r}: it "
                "replaces whole networks without a gradient, such as a codebook or a teacher by its student"
            )
        state = jax.eval_shape(lambda key: init_state(trained, optimizer, config.ema.rates, key), jax.random.key(0))
        state = laid_out(mesh, state)
    return Job(
        config=config,
        built=built,
        optimizer=optimizer,
        learning_rate=learning_rate,
        mesh=mesh,
        learner=trained,
        state=state,
        params=params,
        batch=batch,
    )


def train_step(job: Job, accumulate: int | None = None) -> Callable:
    """Returns the train step of a job, see `make_train_step`. `accumulate` overrides config.training.accumulate."""
    return make_train_step(
        job.learner,
        job.optimizer,
        num_steps=job.config.training.num_steps,
        ema_rates=job.config.ema.rates,
        ema_warmup=job.config.ema.warmup,
        ema_rampup=job.config.ema.rampup,
        accumulate=accumulate or job.config.training.accumulate,
    )


def laid_out(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, state: TrainState) -> TrainState:
    """Returns an abstract train state with its shardings on the mesh."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state,
        meshes.state_sharding(mesh, state),
    )
