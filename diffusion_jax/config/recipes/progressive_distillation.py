"""The recipe of `systems.ProgressiveDistillation`: a run that samples in few DDIM steps, from one that takes many."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

from diffusion_jax import systems
from diffusion_jax.config import fits
from diffusion_jax.config.parts import Parts
from diffusion_jax.config.recipes import teacher
from diffusion_jax.config.recipes.diffusion import diffusion
from diffusion_jax.config.recipes.recipe import SAMPLING, Recipe
from diffusion_jax.config.sections import ConfigError, construct
from diffusion_jax.types import Params


def build(parts: Parts) -> systems.ProgressiveDistillation:
    """The student of a config and its teacher, a copy of the same network. Raises ConfigError."""
    section = {key: value for key, value in parts.section("system").items() if key not in teacher.KEYS}
    _check_teacher(parts)
    system = construct({section["name"]: functools.partial(_student, parts)}, "system", section)
    _check_schedule(parts, system)
    return system


def _student(parts: Parts, teacher_steps: int, stages: tuple) -> systems.ProgressiveDistillation:
    model = diffusion(parts)
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    own = dict(teacher_steps=teacher_steps, stages=tuple(stages), weighting=parts.weighting)
    return systems.ProgressiveDistillation(**fields, **own)


def _check_teacher(parts: Parts) -> None:
    """Raises ConfigError unless the student with the parameters of the teacher is the teacher at equal SNR."""
    config, run = parts.config, teacher.run_of(parts)
    teacher.check_same_network(parts)
    named = f"{run.field}={str(run.directory)!r}"
    if run.config.parameterization != config.parameterization:
        raise ConfigError(
            f"{named} has config.parameterization {run.config.parameterization.to_dict()}, here it is "
            f"{config.parameterization.to_dict()}: the student starts as a copy of its teacher"
        )
    if run.config.process != config.process and config.parameterization.name != "edm":
        raise ConfigError(
            f"{named} has config.process {run.config.process.to_dict()}, here it is {config.process.to_dict()}: a copy "
            "of its network is the same denoiser on another process only with config.parameterization.name='edm', "
            "which depends on sigma / alpha alone"
        )
    if run.system.learned_variance:
        raise ConfigError(f"{named} learns variances, which DDIM does not use and a student does not learn")


def _check_schedule(parts: Parts, system: systems.ProgressiveDistillation) -> None:
    """Raises ConfigError unless training ends with a stage, DDIM samples its student, and the rate fits the stages."""
    config, num_steps = parts.config, parts.config.training.num_steps
    if num_steps not in system.ends:
        raise ConfigError(
            f"config.training.num_steps={num_steps} must be the end of a stage, among "
            f"{', '.join(map(str, system.ends))} for config.system.stages={system.stages}"
        )
    steps = system.teacher_steps >> (system.ends.index(num_steps) + 1)
    if steps % config.sampling.steps:
        raise ConfigError(
            f"config.sampling.steps={config.sampling.steps} must be {steps}, the steps of the student after "
            f"config.training.num_steps={num_steps}, or divide it: it was not trained at other times"
        )
    grid = config.sampling.grid
    uniform = grid.name == "uniform" and grid.get("t_min", 1e-3) == 0 and grid.get("t_max", 1.0) == 1
    if (
        config.solver.name != "ddim"
        or config.solver.get("eta", 0.0) != 0
        or not uniform
        or grid.get("denoising", False)
    ):
        raise ConfigError(
            f"{fits.described(config, 'solver', 'sampling.grid')}: a student is trained for config.solver.name='ddim' "
            "with eta=0 on config.sampling.grid=dict(name='uniform', t_min=0.0)"
        )
    optimizer = config.optimizer
    if optimizer.get("schedule") == "sawtooth" and tuple(optimizer.get("stages", ())) != system.stages:
        raise ConfigError(
            f"config.optimizer.stages={optimizer.get('stages', ())} must be config.system.stages={system.stages}, in "
            "each of which the learning rate falls"
        )


def stands_on(parts: Parts) -> Mapping[str, Callable[[], Params]]:
    """The teacher of the first stage, and the student as its copy."""
    return teacher.stands_on(parts, copied=True)


RECIPE = Recipe(
    build=build,
    reads=SAMPLING | {"process", "parameterization", "weighting", "network"},
    stands_on=stands_on,
    trains_lora=False,
)
