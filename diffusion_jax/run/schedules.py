"""The noise schedule that a public checkpoint states, compared with that of the config that loads it."""

from __future__ import annotations

import math
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion_jax.run.job import Job
from diffusion_jax.weights import public
from diffusion_jax.weights.statements import Said

# Keys of a section `process` by those of a scheduler_config.json.
_KEYS = {
    "num_train_timesteps": "num_steps",
    "beta_schedule": "betas",
    "beta_start": "beta_start",
    "beta_end": "beta_end",
    "rescale_betas_zero_snr": "zero_terminal_snr",
}
_CONTINUOUS = 0.01  # largest difference of alpha between a process in continuous time and the table that it stands for


def check_schedule(job: Job, source: pathlib.Path | None) -> None:
    """Compare what `source` and config.system.pipeline say of their schedule with the config, before anything is read.

    A system without a process is not compared. What `source` does not say is taken from the pipeline. A differing
    threshold or variance of the sampler, of which a config may choose another, is a warning.

    Raises:
      ValueError: prediction type, betas, or terminal SNR differ, all named with both values; or they cannot be read, or
        have no counterpart here.
    """
    if "parameterization" not in job.recipe.reads:
        return
    pipeline = job.config.system.get("pipeline", "")
    said = public.said([source, pathlib.Path(pipeline) if pipeline else None])
    if said is None:
        return
    different = [*_of_prediction(job, said), *_of_process(job, said)]
    if different:
        raise ValueError(
            f"{said.where} states another noise schedule or prediction than the config: {'; '.join(different)}"
        )
    here = {"sampling.threshold": _plain(job.config.sampling.threshold.to_dict())}
    if job.config.solver.name == "ancestral":
        here["solver.variance"] = job.config.solver.get("variance", "beta_tilde")
    for key, there, ours, value in said.sampler:
        value = _plain(value) if isinstance(value, dict) else value
        if ours in here and here[ours] != value:
            warnings.warn(f"{said.where}: {key}={there!r} there, config.{ours}={here[ours]!r} here", stacklevel=2)


def _of_prediction(job: Job, said: Said) -> Iterator[str]:
    here = job.config.parameterization.get("prediction", job.config.parameterization.name)
    if said.prediction and said.prediction[2] != here:
        key, value, name = said.prediction
        yield f"{key}={value!r} there, config.parameterization.name={here!r} here, which must be {name!r}"
    if said.process and said.process["name"] == "ve" and here != "score":
        yield f"the network predicts the score there, config.parameterization.name={here!r} here"


def _of_process(job: Job, said: Said) -> Iterator[str]:
    section, process = job.config.process.to_dict(), job.built.parts.process
    if said.process and said.process["name"] == "ve":
        # A network that was trained on images in [0, 1] has half the noise of one on [-1, 1].
        scale = 2 if job.config.parameterization.get("label") == "log_sigma_unit" else 1
        here = {key: section.get(key) for key in ("sigma_min", "sigma_max")}
        there = {key: scale * said.process[key] for key in here}
        if section["name"] != "ve":
            yield f"ScoreSdeVeScheduler there, config.process.name={section['name']!r} here, which must be 've'"
        elif any(here[key] is None or not np.isclose(here[key], there[key], rtol=1e-3) for key in here):
            yield f"{there} there, config.process={here} here"
        return
    discrete = section["name"] == "discrete_vp"
    if said.zero_snr and not (discrete and section.get("zero_terminal_snr", False)):
        yield (
            f"the terminal SNR is zero there, config.process.zero_terminal_snr="
            f"{section.get('zero_terminal_snr', False)} here"
        )
    table = said.alpha_squared
    if table is None or said.zero_snr:
        return
    steps = len(table)
    if discrete:
        here = np.asarray(process.alpha_squared)[1:]
        # A table in a file may have been rounded to bfloat16.
        same = len(here) == steps and np.allclose(here, table, rtol=2e-3 if said.process else 2e-2, atol=1e-6)
    else:
        t = jnp.arange(1, steps + 1) / steps
        alpha, sigma = process.alpha(t), process.sigma(t)
        here = np.asarray(alpha**2 / (alpha**2 + sigma**2))
        same = np.allclose(np.sqrt(here), np.sqrt(table), rtol=0, atol=_CONTINUOUS)
    if same:
        return
    keys = [
        f"{key}={said.process[ours]!r} there, config.process.{ours}={section.get(ours)!r} here"
        for key, ours in _KEYS.items()
        if discrete and said.process and ours in said.process and said.process[ours] != section.get(ours)
    ]
    if discrete and said.process and section.get("zero_terminal_snr") and "zero_terminal_snr" not in said.process:
        keys.append("rescale_betas_zero_snr=False there, config.process.zero_terminal_snr=True here")
    yield from keys or [
        f"alphas_cumprod of {steps} timesteps that end at {table[-1]:.4g} there, config.process={section} with "
        f"{len(here)} that end at {here[-1]:.4g} here"
    ]


def _plain(threshold: dict[str, Any]) -> dict[str, Any]:
    """A section `sampling.threshold` without the options that have their default."""
    defaults = {"bound": 1.0, "percentile": 0.995, "largest": math.inf}
    return {key: value for key, value in threshold.items() if value != defaults.get(key)}
