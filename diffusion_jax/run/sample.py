"""--mode=sample: draw samples of a trained run and write them as arrays and pictures."""

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
    """Draw config.sampling.num_samples samples from the newest checkpoint into samples/<file>.npz and .png.

    Raises ConfigError.
    """
    job = prepare(config)
    workdir.check_writable(directory)
    num = config.sampling.num_samples
    cond = requests.conditions(job, num)
    params, step = params_of(job, directory)
    with jax.set_mesh(job.mesh):
        start = time.monotonic()
        drawn = job.system.sample(params, jax.random.key(config.sampling.seed), num, cond)
        if not drawn:
            raise ConfigError(
                f"config.system.name={config.system.name!r} draws no samples; --mode=evaluate computes its metrics, "
                "and config.guidance of a diffusion model can use it"
            )
        seconds = time.monotonic() - start
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
        f"  picture  {path.with_suffix('.png') if pictured else 'none: the samples are latents, or not finite'}",
    )


def picture(job: Job, params: Params, drawn: dict[str, np.ndarray], path: pathlib.Path) -> bool:
    """Write a picture of samples to `path` and return whether there is one.

    There is none for some kinds of data, and for samples that are not finite. `drawn` is the output of `System.sample`.
    """
    views = _views(job, params)
    if jax.process_index():
        return True
    image = modalities.of(job.system.makes).picture(drawn, _words(job, drawn), views)
    if image is not None:
        sheets.write_png(image, path)
    return image is not None


def _views(job: Job, params: Params) -> dict[str, Any]:
    """Facts about the data and functions of the model for pictures and files of the modality, by name."""
    available = [name for name in modalities.of(job.system.makes).views if name in job.recipe.views]
    if available and jax.process_count() > 1:
        params = multihost_utils.process_allgather(params, tiled=True)  # only process 0 uses the functions
    functions = {name: job.recipe.views[name](job.system, params) for name in available}
    return {**data.facts(job.config), **functions}


def _words(job: Job, drawn: dict[str, np.ndarray]) -> list[str] | None:
    """The text of each sample: its class or its caption; None without any."""
    return requests.captions(conditions_of(drawn), job.system.conditions, job.built.reading.describe)


def conditions_of(drawn: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The conditions in the output of `System.sample`."""
    return {name: value for name, value in drawn.items() if name not in ("samples", "original")}
