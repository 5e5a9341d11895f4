"""--mode=sample: draw samples of a trained run, and the files and pictures of them."""

from __future__ import annotations

import pathlib
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from diffusion_jax import modalities
from diffusion_jax.config import data
from diffusion_jax.config.sections import ConfigError, refusal
from diffusion_jax.evaluation import sheets
from diffusion_jax.run import requests, workdir
from diffusion_jax.run.job import Job, prepare
from diffusion_jax.run.parameters import params_of
from diffusion_jax.run.report import how, say
from diffusion_jax.training.faults import replacing
from diffusion_jax.types import Params


def sample(config: ConfigDict, directory: pathlib.Path) -> None:
    """Draw config.sampling.num_samples samples from the newest checkpoint into samples/<file>.npz and .png."""
    job = prepare(config)
    workdir.check_writable(directory)
    num = config.sampling.num_samples
    cond = requests.conditions(job, num)
    params, step = params_of(job, directory)
    with jax.set_mesh(job.mesh):
        began = time.monotonic()
        drawn = job.system.sample(params, jax.random.key(config.sampling.seed), num, cond)
        if not drawn:
            raise ConfigError(
                f"config.system.name={config.system.name!r} draws no samples; --mode=evaluate gives its metrics, and "
                "config.guidance guides a diffusion model with it"
            )
        seconds = time.monotonic() - began
        path = directory / "samples" / f"{config.sampling.file}.npz"
        if jax.process_index() == 0:
            with refusal("samples"):
                arrays = {"samples": modalities.of(job.system.makes).stored(drawn["samples"])}
            with replacing(path) as file:
                recorded = requests.recorded(conditions_of(drawn), job.system.conditions, job.built.reading.describe)
                np.savez(file, **arrays, **recorded)
        pictured = picture(job, params, drawn, path.with_suffix(".png"))
        views, files = _views(job, params), []
        if jax.process_index() == 0:
            files = modalities.of(job.system.makes).files(path.with_suffix(""), drawn, _words(job, drawn), views)
    say(
        f"{num} samples of step {step} ({how(job)}) in {seconds:.1f} s with compilation",
        f"  arrays   {path}",
        *(f"  file     {file}" for file in files),
        f"  picture  {path.with_suffix('.png') if pictured else 'none: of latents, or of values that are not finite'}",
    )


def picture(job: Job, params: Params, drawn: dict[str, np.ndarray], path: pathlib.Path) -> bool:
    """Whether `path` is now a picture of the samples: some kinds of data have none, nor have samples that are not
    finite."""
    views = _views(job, params)
    if jax.process_index():
        return True
    image = modalities.of(job.system.makes).picture(drawn, _words(job, drawn), views)
    if image is not None:
        sheets.write_png(image, path)
    return image is not None


def _views(job: Job, params: Params) -> dict[str, Any]:
    """What pictures and files of the modality show next to samples: facts of the data, functions of the model."""
    shown = [name for name in modalities.of(job.system.makes).views if name in job.recipe.views]
    if shown and jax.process_count() > 1:
        params = multihost_utils.process_allgather(params, tiled=True)  # process 0 draws with them alone
    functions = {name: job.recipe.views[name](job.system, params) for name in shown}
    return {**data.facts(job.config), **functions}


def _words(job: Job, drawn: dict[str, np.ndarray]) -> list[str] | None:
    """What is written with each sample: its class or its caption."""
    return requests.captions(conditions_of(drawn), job.system.conditions, job.built.reading.describe)


def conditions_of(drawn: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The conditions that samples were drawn under."""
    return {name: value for name, value in drawn.items() if name not in ("samples", "original")}
