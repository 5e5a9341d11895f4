"""The modes of the command: train, sample, evaluate and plan a config in a work directory."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from diffusion_jax import data, modalities
from diffusion_jax.config import build
from diffusion_jax.config import data as config_data
from diffusion_jax.config.sections import ConfigError, refusal
from diffusion_jax.data import Source
from diffusion_jax.data.captions import texts_of
from diffusion_jax.evaluation import sheets
from diffusion_jax.evaluation.report import format_report, write_evaluation
from diffusion_jax.networks.functional import count_parameters
from diffusion_jax.run import planning, requests, workdir
from diffusion_jax.run.job import Job, averaged, fresh_state, load_params, prepare, train_step
from diffusion_jax.training import faults
from diffusion_jax.training import mesh as meshes
from diffusion_jax.training.checkpoints import Checkpoints
from diffusion_jax.training.loop import Interrupt, train_loop
from diffusion_jax.training.profiling import Trace
from diffusion_jax.training.rows import in_batches
from diffusion_jax.training.step import TrainState
from diffusion_jax.types import Params


def train(config: ConfigDict, directory: pathlib.Path) -> None:
    """Train, or go on from the newest checkpoint in `directory`; then evaluate if the config says so."""
    job, settings = prepare(config), config.training
    source = build.source(config)
    build.metrics(config, source, directory)  # refuse now what could not be evaluated after training
    workdir.check_writable(directory)
    differences = workdir.check_same_model(config, directory, resume=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(job.mesh))
        checkpoints = stack.enter_context(
            Checkpoints(directory / "checkpoints", keep_last=settings.keep_last, keep_every=settings.keep_every)
        )
        sharding = meshes.batch_sharding(job.mesh)
        with refusal("config.mesh"):
            share, shares = meshes.process_share(sharding, settings.batch_size)
        batches = data.batches(
            source, batch_size=settings.batch_size, seed=config.seed, process_index=share, process_count=shares
        )
        stack.enter_context(faults.explained(directory))
        start = checkpoints.latest_step()
        if start is not None:
            with refusal("checkpoint"):
                state, start = checkpoints.restore(job.state, batches)
            _say(f"resuming from step {start} in {directory}", *differences)
        else:
            state, start = fresh_state(job), 0
        if start < settings.num_steps:
            stack.enter_context(workdir.only_trainer(directory))
            checkpoints.remove_unfinished()
            if jax.process_index() == 0:
                workdir.write_config(directory, config)
            writer = stack.enter_context(contextlib.closing(build.writers(config, directory, start)))
            stop = stack.enter_context(Interrupt())
            trace = stack.enter_context(Trace(directory / "profile", start=start, **config.profile))
            _say(
                f"training {count_parameters(job.state.params):,} parameters on {jax.device_count()} "
                f"{jax.devices()[0].platform} device(s): {len(source):,} examples, batch {settings.batch_size}; "
                "the first step compiles",
                planning.start(job),
            )

            def draw(state: TrainState, step: int) -> str:
                path = directory / "samples" / f"step_{step:08d}.png"
                params = averaged(job, state.params, state.ema)
                num = min(config.sampling.num_samples, config.sampling.batch_size)
                drawn = job.system.sample(params, jax.random.key(config.sampling.seed), num, _cond(job, num))
                if not drawn:
                    return "saved; a classifier draws no samples"
                if not _picture(job, params, drawn, path):
                    return "no picture of the samples, which are latents or not finite"
                writer.images(step, {"samples": str(path)})
                return f"samples in {path}"

            state = train_loop(
                state,
                jax.jit(train_step(job), donate_argnums=0, out_shardings=(job.layout, None)),
                batches,
                functools.partial(
                    data.device_batches, sharding=sharding, timeout=settings.data_timeout, names=tuple(job.batch)
                ),
                start=start,
                num_steps=settings.num_steps,
                batch_size=settings.batch_size,
                log_every=settings.log_every,
                checkpoint_every=settings.checkpoint_every,
                sample_every=settings.sample_every,
                checkpoints=checkpoints,
                writer=writer,
                learning_rate=job.learning_rate,
                draw=draw,
                stop=stop,
                trace=trace,
                skip_non_finite=config.optimizer.get("skip_non_finite", 0),
            )
            if stop.requested:
                _say(f"stopped; step {int(state.step)} is saved and the same command goes on from there")
                return
        reached = int(state.step)
    picture = directory / "samples" / f"step_{reached:08d}.png"
    _say(
        f"trained to step {reached}",
        f"  checkpoints  {directory / 'checkpoints'}",
        f"  metrics      {directory / 'metrics.jsonl'}",
        *([f"  samples      {picture}"] if picture.exists() else []),
    )
    if config.evaluation.after_training:
        evaluate(config, directory)


def sample(config: ConfigDict, directory: pathlib.Path) -> None:
    """Draw config.sampling.num_samples samples from the newest checkpoint into samples/<file>.npz and .png."""
    job = prepare(config)
    workdir.check_writable(directory)
    num = config.sampling.num_samples
    cond = _cond(job, num)
    params, step = _params(job, directory)
    with jax.set_mesh(job.mesh):
        began = time.monotonic()
        drawn = job.system.sample(params, jax.random.key(config.sampling.seed), num, cond)
        if not drawn:
            raise ConfigError(
                f"config.system.name={config.system.name!r} draws no samples; --mode=evaluate gives its figures, and "
                "config.guidance steers a diffusion model with it"
            )
        seconds = time.monotonic() - began
        path = directory / "samples" / f"{config.sampling.file}.npz"
        if jax.process_index() == 0:
            with refusal("samples"):
                arrays = {"samples": modalities.of(build.makes(config)).stored(drawn["samples"])}
            with faults.replacing(path) as file:
                np.savez(file, **arrays, **requests.recorded(_conditions_of(drawn), _words(job)[1]))
        pictured = _picture(job, params, drawn, path.with_suffix(".png"))
    _say(
        f"{num} samples of step {step} ({_how(config)}) in {seconds:.1f} s with compilation",
        f"  arrays   {path}",
        f"  picture  {path.with_suffix('.png') if pictured else 'none: they are latents or not finite'}",
    )


def evaluate(config: ConfigDict, directory: pathlib.Path) -> None:
    """Compute config.evaluation.metrics with the newest checkpoint; print them and write evaluation.json."""
    job = prepare(config)
    source, held_out = build.source(config), build.source(config, evaluation=True)
    metrics = build.metrics(config, source, directory, held_out)
    workdir.check_writable(directory)
    params, step = _params(job, directory)
    num = config.evaluation.num_samples
    cond = _cond(job, num)
    with jax.set_mesh(job.mesh):
        _say(f"evaluating step {step} with {num} samples ({_how(config)})")
        drawn = job.system.sample(params, jax.random.key(config.sampling.seed), num, cond) if metrics else {}
        figures = {"step": step, "solver": config.solver.name, "steps": config.sampling.steps}
        figures |= {
            "seed": config.sampling.seed,
            "num_samples": num,
            **_guidance(config),
            **_held_out(job, params, held_out),
        }
        for metric in metrics:
            with refusal("config.evaluation.metrics"):
                figures |= metric(drawn)
    if jax.process_index() == 0:
        write_evaluation(directory / "evaluation.json", figures)
    _say(format_report(figures), f"written to {directory / 'evaluation.json'}")


def plan(config: ConfigDict, devices: int | None = None) -> None:
    """Print what the config takes on the devices there are, or on `devices` of them, without allocating it."""
    _say(*planning.plan(prepare(config, devices)))


def _params(job: Job, directory: pathlib.Path) -> tuple[Params, int]:
    """Those of the run in `directory`; of config.weights where it has not been trained."""
    untrained = not (directory / "checkpoints").is_dir()
    return load_params(job, pathlib.Path(job.config.weights) if untrained and job.config.weights else directory)


def _held_out(job: Job, params: Params, source: Source) -> dict[str, float]:
    """Means of `System.evaluate` over at most config.evaluation.num_samples held-out examples."""
    examples = data.shuffled(source, job.config.evaluation.num_samples)
    key = jax.random.key(job.config.sampling.seed)

    @jax.jit
    def compute(params: Params, ids: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return job.system.evaluate(params, jax.random.fold_in(key, ids[0]), batch)

    draw = functools.partial(compute, params)
    figures = in_batches(draw, len(examples["x"]), job.config.training.batch_size, examples)
    return {f"held_out_{name}": float(np.mean(values)) for name, values in figures.items()}


def _cond(job: Job, num: int) -> dict[str, np.ndarray] | None:
    """What `num` samples are made from: the images of a first stage, or the conditions of config.sampling.cond.

    Without the latter those of held-out examples, or None for a model of classes, whose labels go round.
    """
    text, conditions = job.config.sampling.cond, getattr(job.system, "steered", None)
    if conditions is None:
        return build.reconstructed(job.config, num)
    with refusal(f"config.sampling.cond={text!r}"):
        cond = requests.requested(text, conditions, num, _words(job)[0])
    if cond is None and set(conditions.shapes) - {"label"}:
        examples = data.shuffled(build.source(job.config, evaluation=True), num)
        cond = requests.going_round(conditions.of(examples), num)
    return cond


def _words(job: Job) -> tuple[requests.Tokenize | None, requests.Describe]:
    """How captions become token ids (None for their bytes), and ids words."""
    if hasattr(job.system, "tokenize"):
        return job.system.tokenize, job.system.describe
    found = build.tokenizer(job.config)
    return (None, texts_of) if found is None else (found, found.describe)


def _conditions_of(drawn: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value for name, value in drawn.items() if name not in ("samples", "original")}


def _picture(job: Job, params: Params, drawn: dict[str, np.ndarray], path: pathlib.Path) -> bool:
    """Whether `path` is now a picture of the samples: there is none of latents and of samples that are not finite."""
    modality = modalities.of(build.makes(job.config))
    views = dict(config_data.facts(job.config.data))
    if "score" in modality.views:
        if jax.process_count() > 1:
            params = multihost_utils.process_allgather(params, tiled=True)  # process 0 draws with them alone
        views["score"] = build.score(job.system, params)
    if jax.process_index():
        return True
    picture = modality.picture(drawn, requests.captions(_conditions_of(drawn), _words(job)[1]), views)
    if picture is not None:
        sheets.write_png(picture, path)
    return picture is not None


def _how(config: ConfigDict) -> str:
    guidance = [f"{key} {value}" for key, value in _guidance(config).items()]
    solver = [config.solver.name, f"{config.sampling.steps} steps"]
    return ", ".join([*solver, *guidance, f"seed {config.sampling.seed}"])


def _guidance(config: ConfigDict) -> dict[str, Any]:
    """What of config.guidance belongs beside a figure; nothing where there is none."""
    if config.guidance.name == "none":
        return {}
    return {"guidance": config.guidance.name, "scale": config.guidance.get("scale", 1.0)}


def _say(*lines: str) -> None:
    if jax.process_index() == 0:
        print(*lines, sep="\n", flush=True)
