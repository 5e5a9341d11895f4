"""--mode=sample: draw samples of a trained run and write them as arrays and pictures."""

from __future__ import annotations

import pathlib
import time

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
    """Draw config.sampling.num_samples samples from the newest checkpoint into samples/<file>.npz.

    A picture samples/<file>.png and the files of their modality are written next to it. Raises ConfigError.
    """
    job = prepare(config)
    workdir.check_writable(directory)
    num = config.sampling.num_samples
    cond = requests.conditions(job, num, directory)
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
        shown = show(job, params, drawn, path.with_suffix(".png"))
    say(
        f"{num} samples of step {step} ({how(job)}) in {seconds:.1f} s with compilation",
        f"  arrays   {path}",
        f"  shown in {', '.join(map(str, shown)) or 'no picture: the samples are latents, or not finite'}",
    )


def show(job: Job, params: Params, drawn: dict[str, np.ndarray], path: pathlib.Path) -> list[pathlib.Path]:
    """Write the picture `path` of the samples, and next to it the files of their modality; the paths of those written.

    Some kinds of data have no picture, nor have samples that are not finite. Process 0 alone writes.
    """
    modality = modalities.of(job.system.makes)
    views = dict(data.facts(job.config))
    shown = [name for name in modality.views if name in job.recipe.views]
    if shown and jax.process_count() > 1:
        params = multihost_utils.process_allgather(params, tiled=True)  # process 0 draws with them alone
    if jax.process_index():
        return []
    views |= {name: job.recipe.views[name](job.system, params) for name in shown}
    words = requests.captions(conditions_of(drawn), job.system.conditions, job.built.reading.describe)
    image = modality.picture(drawn, words, views)
    path.parent.mkdir(parents=True, exist_ok=True)
    if image is not None:
        sheets.write_png(image, path)
    return [*([path] if image is not None else []), *modality.files(path.with_suffix(""), drawn, words, views)]


def conditions_of(drawn: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The conditions in the output of `System.sample`."""
    return {name: value for name, value in drawn.items() if name not in ("samples", "original")}
