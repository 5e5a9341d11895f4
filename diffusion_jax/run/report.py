"""Messages of the command on standard output: printed by process 0, and how samples were drawn in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from diffusion_jax.run.job import Job


def how(job: Job) -> str:
    """Solver, steps, guidance and seed of samples in one line."""
    values = drawn_by(job)
    words = [f"{values.pop('solver')}, {values.pop('steps')} steps"] if "solver" in values else []
    words += [f"{key} {value}" for key, value in values.items() if key != "seed"]
    return ", ".join([*words, f"seed {job.config.sampling.seed}"])


def drawn_by(job: Job) -> dict[str, Any]:
    """The settings of sampling, recorded next to metrics: solver, steps, seed, guidance and editing."""
    config, reads = job.config, job.recipe.reads
    values: dict[str, Any] = {}
    if "solver" in reads:
        values |= {"solver": config.solver.name, "steps": config.sampling.steps}
    values["seed"] = config.sampling.seed
    if "guidance" in reads and config.guidance.name != "none":
        values |= {"guidance": _chain(config.guidance), **job.built.parts.guidance.values}
    if "editing" in reads and config.editing.name != "none":
        values |= {f"editing_{key}" if key != "name" else "editing": value for key, value in config.editing.items()}
    return values


def _chain(section: Mapping[str, Any] | ConfigDict) -> str:
    """The names of guidance and of what follows it, such as "classifier_free then classifier"."""
    return " then ".join([section["name"], *([_chain(section["then"])] if "then" in section else [])])


def say(*lines: str) -> None:
    """Print lines on process 0."""
    if jax.process_index() == 0:
        print(*lines, sep="\n", flush=True)
