"""--mode=evaluate: metrics of samples, and the loss of held-out examples, of a trained run."""

from __future__ import annotations

import functools
import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import data, modalities
from diffusion_jax.config.sections import ConfigError, refusal
from diffusion_jax.evaluation.report import format_report, write_evaluation
from diffusion_jax.run import requests, workdir
from diffusion_jax.run.job import Job, prepare
from diffusion_jax.run.parameters import params_of
from diffusion_jax.run.report import drawn_by, how, say, skipped
from diffusion_jax.training.rows import in_batches
from diffusion_jax.training.step import stream
from diffusion_jax.types import Params


def evaluate(config: ConfigDict, directory: pathlib.Path) -> None:
    """Compute config.evaluation.metrics with the newest checkpoint; print them and write evaluation.json."""
    evaluate_job(prepare(config), directory)


def evaluate_job(job: Job, directory: pathlib.Path) -> None:
    """Evaluate a prepared job, as `evaluate` does for a config."""
    config = job.config
    metrics = metrics_of(job, directory, job.held_out)
    workdir.check_writable(directory)
    params, step = params_of(job, directory)
    num = config.evaluation.num_samples
    cond = requests.conditions(job, num, directory)
    with jax.set_mesh(job.mesh):
        say(f"evaluating step {step} with {num} samples ({how(job)})")
        drawn = job.system.sample(params, jax.random.key(config.sampling.seed), num, cond) if metrics else {}
        values = {"step": step, **drawn_by(job), "num_samples": num, **_held_out(job, params)}
        for metric in metrics:
            with refusal("config.evaluation.metrics"):
                values |= metric(drawn)
    if jax.process_index() == 0:
        write_evaluation(directory / "evaluation.json", values)
    read = (job.held_out, job.source) if metrics else (job.held_out,)
    say(*skipped(*read), format_report(values), f"written to {directory / 'evaluation.json'}")


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
        conditions=tuple(job.system.conditions.shapes),
    )
    try:
        return modalities.metrics(modalities.of(makes), evaluation)
    except ValueError as error:
        raise ConfigError(f"config.{error}") from error


def _held_out(job: Job, params: Params) -> dict[str, float]:
    """Means of `System.evaluate` over at most config.evaluation.num_samples held-out examples."""
    examples = data.shuffled(job.held_out, job.config.evaluation.num_samples)
    key = stream(jax.random.key(job.config.sampling.seed), "evaluation")

    @jax.jit
    def compute(params: Params, ids: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return job.system.evaluate(params, jax.random.fold_in(key, ids[0]), batch)

    draw = functools.partial(compute, params)
    values = in_batches(draw, len(examples["x"]), job.config.training.batch_size, examples)
    return {f"held_out_{name}": float(np.mean(value)) for name, value in values.items()}
