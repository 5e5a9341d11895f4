"""--mode=evaluate: metrics of samples, and the loss of held-out examples, of a trained run."""

from __future__ import annotations

import functools
import math
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import data, modalities
from diffusion_jax.config.sections import ConfigError, refusal
from diffusion_jax.evaluation.report import append_evaluation, format_report, write_evaluation
from diffusion_jax.processes import row_keys
from diffusion_jax.run import requests, workdir
from diffusion_jax.run.job import Job, prepare
from diffusion_jax.run.parameters import params_of
from diffusion_jax.run.report import drawn_by, how, say, skipped
from diffusion_jax.run.sample import check_memory, draw
from diffusion_jax.training.progress import Progress
from diffusion_jax.training.rows import in_batches
from diffusion_jax.training.step import stream
from diffusion_jax.types import Params

_NAMED = 20  # examples without a finite metric that are named


def evaluate(config: ConfigDict, directory: pathlib.Path) -> None:
    """Compute config.evaluation.metrics with the newest checkpoint; print them and write evaluation.json."""
    evaluate_job(prepare(config), directory)


def evaluate_job(job: Job, directory: pathlib.Path) -> None:
    """Evaluate a prepared job, as `evaluate` does for a config."""
    config = job.config
    metrics = metrics_of(job, directory, job.held_out)
    if metrics:
        check_memory(job.system.makes, "evaluation.num_samples", config.evaluation.num_samples)
    workdir.check_writable(directory)
    params, step = params_of(job, directory)
    num = config.evaluation.num_samples
    distinct = max(num // config.evaluation.samples_per_condition, 1)
    cond = requests.conditions(job, num, directory, distinct)
    with jax.set_mesh(job.mesh):
        say(f"evaluating step {step} with {num} samples ({how(job)})")
        drawn = draw(job, params, num, cond) if metrics else {}
        values = {"step": step, **drawn_by(job), "num_samples": num}
        if metrics and "vjps" in values and (nfe := job.system.evaluations()) is not None:
            values["nfe"] = nfe
        values |= _held_out(job, params)
        for metric in metrics:
            try:
                with refusal("config.evaluation.metrics"):
                    values |= metric(drawn)
            except ConfigError:
                say(format_report(values))  # what was computed before is not lost
                raise
    read = (job.held_out, job.source) if metrics else (job.held_out,)
    say(*skipped(*read), format_report(values))
    if jax.process_index() == 0:
        path = directory / "evaluation.json"
        history = append_evaluation(path, values)
        write_evaluation(path, values)
        say(f"written to {path}; {history} has all evaluations")


def metrics_of(
    job: Job, directory: pathlib.Path | None, held_out: data.Source | None = None
) -> list[modalities.Metric]:
    """The metrics of config.evaluation.metrics, as functions of samples; without `held_out` they are only checked.

    Raises ConfigError for a metric that the modality does not have, or for which the data or the config lack something.
    """
    config, makes = job.config, job.system.makes
    if makes is None:
        if set(config.evaluation.metrics) - {modalities.AUTO}:
            raise ConfigError(
                f"config.evaluation.metrics={config.evaluation.metrics!r} must be (): config.system.name="
                f"{config.system.name!r} draws no samples"
            )
        return []
    evaluation = modalities.Evaluation(
        options={**config.evaluation, "levels": job.built.parts.likelihood_levels},
        train=job.source,
        test=held_out,
        makes=makes,
        data=config.data.to_dict(),
        cache=directory and directory / "statistics",
        conditions=job.system.conditions,
    )
    try:
        return modalities.metrics(modalities.of(makes), evaluation)
    except ValueError as error:
        raise ConfigError(f"config.{error}") from error


def _held_out(job: Job, params: Params) -> dict[str, Any]:
    """Means of `System.evaluate` over at most config.evaluation.num_samples held-out examples, see `means`.

    Example i has the key fold_in(key, i), so that the values do not depend on config.training.batch_size.
    """
    examples = data.shuffled(job.held_out, job.config.evaluation.num_samples)
    key = stream(jax.random.key(job.config.sampling.seed), "evaluation")

    @jax.jit
    def compute(params: Params, ids: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        def one(key: jax.Array, row: dict[str, jax.Array]) -> dict[str, jax.Array]:
            values = job.system.evaluate(params, key, jax.tree.map(lambda x: x[None], row))
            return jax.tree.map(lambda x: x[0], values)

        return jax.vmap(one)(row_keys(key, ids), batch)

    num = len(examples["x"])
    with Progress(num, label="held-out") as progress:
        compute = functools.partial(compute, params)
        return means(in_batches(compute, num, job.config.training.batch_size, examples, progress.update))


def means(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The mean of each metric over the examples for which it is finite, under "held_out_NAME".

    Code lengths, "bits_...", come with the standard error of their mean over examples. If it is not finite for some,
    "held_out_NAME_num" is the number of the others, "held_out_not_finite" the number of
    examples with such a metric and "held_out_not_finite_examples" the first 20 of them, and a warning says so.
    """
    result: dict[str, Any] = {}
    finite = {name: np.isfinite(np.asarray(value, np.float64)) for name, value in values.items()}
    for name, value in values.items():
        rows = np.asarray(value, np.float64)[finite[name]]
        result[f"held_out_{name}"] = float(rows.mean()) if len(rows) else math.nan
        if name.startswith("bits_") and len(rows) > 1:
            result[f"held_out_{name}_standard_error"] = float(rows.std(ddof=1) / math.sqrt(len(rows)))
        if len(rows) < len(value):
            result[f"held_out_{name}_num"] = len(rows)
    lost = np.flatnonzero(~np.all(list(finite.values()), axis=0))
    if len(lost):
        first = lost[:_NAMED].tolist()
        result |= {"held_out_not_finite": len(lost), "held_out_not_finite_examples": first}
        names = [name for name, rows in finite.items() if not rows.all()]
        warnings.warn(
            f"{', '.join(names)} of {len(lost)} of {len(next(iter(finite.values())))} held-out examples not finite: "
            f"examples {', '.join(map(str, first))}{', ...' if len(lost) > _NAMED else ''}. The means are over the "
            "others. An ODE that does not reach its end needs a larger config.evaluation.likelihood.max_steps, larger "
            "rtol and atol, or a larger t_min; otherwise the network has diverged",
            stacklevel=3,
        )
    return result
