"""--mode=sample: draw samples of a trained run and write them as arrays and pictures."""

from __future__ import annotations

import itertools
import math
import os
import pathlib
import time
from collections.abc import Collection

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from diffusion_jax import modalities
from diffusion_jax.config import data
from diffusion_jax.config.sections import ConfigError, refusal
from diffusion_jax.evaluation import sheets
from diffusion_jax.evaluation.translation import mean_and_spread
from diffusion_jax.run import requests, workdir
from diffusion_jax.run.job import Job, prepare
from diffusion_jax.run.parameters import params_of
from diffusion_jax.run.report import how, say
from diffusion_jax.training.faults import replacing
from diffusion_jax.training.progress import Progress
from diffusion_jax.types import Cond, Params, Spec

BESIDE = ("uncertainty",)  # what a system may draw beside its samples, one array each


def sample(config: ConfigDict, directory: pathlib.Path) -> None:
    """Draw config.sampling.num_samples samples from the newest checkpoint into samples/<file>.npz.

    A picture samples/<file>.png and the files of their modality are written next to it; with config.sampling.format
    also each sample as a file of its own, in the folder samples/<file>. Of several samples of a condition
    (config.sampling.samples_per_condition) images come with their "mean" and "spread", the standard deviation of each
    value, one array each with one row per condition. Earlier samples of the same name are renamed.
    Raises ConfigError.
    """
    job = prepare(config)
    _check_format(job)
    workdir.check_writable(directory)
    num = config.sampling.num_samples
    check_memory(job.system.makes, "sampling.num_samples", num)
    cond = requests.conditions(job, num, directory)
    params, step = params_of(job, directory)
    with jax.set_mesh(job.mesh):
        start = time.monotonic()
        drawn = draw(job, params, num, cond)
        if not drawn:
            raise ConfigError(
                f"config.system.name={config.system.name!r} draws no samples; --mode=evaluate computes its metrics, "
                "and config.guidance of a diffusion model can use it"
            )
        seconds = time.monotonic() - start
        path = directory / "samples" / f"{config.sampling.file.removesuffix('.npz')}.npz"
        modality = modalities.of(job.system.makes)
        kept = None
        if jax.process_index() == 0:
            with refusal("samples"):
                arrays = {"samples": modality.stored(drawn["samples"])}
            kept = keep_earlier(path)
            with replacing(path) as file:
                if config.editing.name == "none":  # the noise of the prior follows from it, see `data.sources.pairs`
                    arrays["seed"] = np.uint32(config.sampling.seed)
                recorded = requests.recorded(conditions_of(drawn), job.system.conditions, job.built.reading.describe)
                arrays |= {name: drawn[name] for name in BESIDE if name in drawn}
                each = config.sampling.samples_per_condition
                if modality.averaged and cond is not None and 1 < each <= num:
                    arrays["mean"], arrays["spread"] = mean_and_spread(drawn["samples"], each)
                np.savez(file, **arrays, **recorded)
        drawn |= requests.compared(job, cond)
        shown = show(job, params, drawn, path.with_name(f"{path.stem}.png"), format=config.sampling.format)
    part = f", the first {modality.shown} of {num} in the picture" if 0 < modality.shown < num else ""
    say(
        f"{num} samples of step {step} ({how(job)}) in {seconds:.1f} s with compilation",
        f"  arrays   {path}",
        f"  shown in {', '.join(map(str, shown)) or 'no picture: the samples are latents, or not finite'}{part}",
        *([f"  earlier samples of this name are now {kept}"] if kept else []),
    )


def draw(job: Job, params: Params, num: int, cond: Cond) -> dict[str, np.ndarray]:
    """Draw `num` samples with config.sampling.seed and show the progress; {} for a system that draws no samples."""
    if job.system.makes is None:
        return {}
    with Progress(num, label="sample") as progress:
        key = jax.random.key(job.config.sampling.seed)
        return job.system.sample(params, key, num, cond, progress=progress.update)


def check_memory(makes: Spec | None, field: str, num: int) -> None:
    """Raises ConfigError, which names `field`, if the memory of this machine cannot hold `num` samples."""
    if makes is None:
        return
    size = num * math.prod(makes.shape) * np.dtype(makes.dtype).itemsize
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise ConfigError(
            f"config.{field}={num}: that many samples need {size / 2**30:,.0f} GiB, and this machine has "
            f"{memory / 2**30:,.0f}; draw fewer at a time, each with another config.sampling.seed"
        )


def keep_earlier(path: pathlib.Path, suffixes: Collection[str] | None = None) -> pathlib.Path | None:
    """Rename the file `path`, and the files of the same name next to it, as NAME.1, or the next free number, with the
    same suffix. The new path; None if there is nothing to rename.

    `suffixes` are those of the files that are about to be written: files of other suffixes and folders stay, since they
    may be the user's own. Without it everything of this name is renamed, a folder too, since single pictures of two
    runs would be mixed in it.
    """
    others = path.parent.iterdir() if path.parent.is_dir() else ()
    names = {other: other.name if other.is_dir() else other.stem for other in others}
    earlier = [
        other
        for other, name in names.items()
        if name == path.stem and (suffixes is None or (other.suffix in suffixes and not other.is_dir()))
    ]
    if not earlier:
        return None
    new = next(name for n in itertools.count(1) if (name := f"{path.stem}.{n}") not in names.values())
    for other in earlier:
        other.rename(other.with_name(new + other.name.removeprefix(path.stem)))
    return path.with_name(new + path.suffix)


def _check_format(job: Job) -> None:
    name, makes = job.config.sampling.format, job.system.makes
    allowed = modalities.of(makes).formats if makes else ()
    if name and name not in allowed:
        raise ConfigError(
            f"config.sampling.format={name!r} must be '' (one array and one picture)"
            f"{''.join(f' or {choice!r}' for choice in allowed)} for samples of modality "
            f"{makes.modality if makes else 'none'!r}"
        )


def show(
    job: Job, params: Params, drawn: dict[str, np.ndarray], path: pathlib.Path, format: str = ""
) -> list[pathlib.Path]:
    """Write the picture `path` of the samples, and next to it the files of their modality; the paths of those written.

    `format` is one of `Modality.formats`, for a file of each sample.

    Some kinds of data have no picture, nor have samples that are not finite. Process 0 alone writes.
    """
    modality = modalities.of(job.system.makes)
    views = {**data.facts(job.config), "format": format}
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
    return {name: value for name, value in drawn.items() if name not in ("samples", "original", "measured", *BESIDE)}
