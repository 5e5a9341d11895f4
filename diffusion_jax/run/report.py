"""Messages of the command on standard output: printed by process 0, and how samples were drawn in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from diffusion_jax.data import Source
from diffusion_jax.data.sources.classes import shown
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
        given = {key: value for key, value in config.editing.items() if value != ""}
        values |= {f"editing_{key}" if key != "name" else "editing": value for key, value in given.items()}
    return values


def classes(source: Source) -> list[str]:
    """One line with the names of the classes and their numbers; none for classes that are called like their numbers."""
    names = source.facts.get("classes", ())
    if not names:
        return []
    line = f"{len(names)} classes: {shown(names)}"
    if any(name.isdecimal() for name in names):
        line += "; names that are numbers are sorted as strings, and config.sampling.cond takes the number of a class"
    return [line]


def skipped(*sources: Source) -> list[str]:
    """One line on the damaged images that were skipped, see config.data.skip_damaged; none without any."""
    files = sorted({name for source in sources for name in source.facts.get("skipped", {}).values()})
    return [f"{len(files)} damaged image(s) skipped: {', '.join(files[:5])}{', ...' * (len(files) > 5)}"] * bool(files)


def _chain(section: Mapping[str, Any] | ConfigDict) -> str:
    """The names of guidance and of what follows it, such as "classifier_free then classifier"."""
    return " then ".join([section["name"], *([_chain(section["then"])] if "then" in section else [])])


def say(*lines: str) -> None:
    """Print lines on process 0."""
    if jax.process_index() == 0:
        print(*lines, sep="\n", flush=True)
