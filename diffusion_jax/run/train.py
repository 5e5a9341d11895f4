"""--mode=train: train a config in a work directory, or resume from its newest checkpoint."""

from __future__ import annotations

import contextlib
import functools
import pathlib

import jax
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.config import saved
from diffusion_jax.config.sections import ConfigError, refusal
from diffusion_jax.networks.functional import count_parameters
from diffusion_jax.run import plan, report, requests, workdir
from diffusion_jax.run.evaluate import evaluate_job, metrics_of
from diffusion_jax.run.job import Job, prepare, train_step
from diffusion_jax.run.parameters import averaged, fresh_state
from diffusion_jax.run.report import say
from diffusion_jax.run.sample import show
from diffusion_jax.training import faults
from diffusion_jax.training import mesh as meshes
from diffusion_jax.training.checkpoints import Checkpoints
from diffusion_jax.training.loop import Interrupt, train_loop
from diffusion_jax.training.profiling import Trace
from diffusion_jax.training.step import TrainState
from diffusion_jax.training.writers import make_writers


def train(config: ConfigDict, directory: pathlib.Path) -> None:
    """Train, or resume from the newest checkpoint in `directory`; then evaluate if config.evaluation.after_training.

    Raises ConfigError, before anything is compiled or written, and `training.loop.NotFinite`.
    """
    job, settings = prepare(config), config.training
    source, examples = job.source, job.examples
    metrics_of(job, directory)  # refuse now what could not be evaluated after training
    _check_samples(job, directory)
    workdir.check_writable(directory)
    names = source.facts.get("classes", ())
    workdir.check_classes(directory, names)
    runs = job.built.parts.configs_of_runs
    differences = saved.check_same_model(config, directory, resume=True, reads=job.recipe.reads, runs=runs)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(job.mesh))
        checkpoints = stack.enter_context(
            Checkpoints(directory / "checkpoints", keep_last=settings.keep_last, keep_every=settings.keep_every)
        )
        sharding = meshes.batch_sharding(job.mesh)
        with refusal("config.mesh"):
            shard, num_shards = meshes.process_share(sharding, settings.batch_size)
        batches = data.batches(
            examples, batch_size=settings.batch_size, seed=config.seed, process_index=shard, process_count=num_shards
        )
        stack.enter_context(faults.explained(directory))
        start = checkpoints.latest_step()
        if start is not None:
            with refusal("checkpoint"):
                state, start = checkpoints.restore(job.state, batches)
            say(f"resuming from step {start} in {directory}", *differences)
        else:
            state, start = fresh_state(job), 0
        if start < settings.num_steps:
            stack.enter_context(workdir.only_trainer(directory))
            checkpoints.remove_unfinished()
            if jax.process_index() == 0:
                saved.write_config(directory, config, runs)
                workdir.write_classes(directory, names)
            with refusal("config.training.loggers"):
                writer = make_writers(settings.loggers, directory, start, config.to_dict())
            stack.enter_context(contextlib.closing(writer))
            stop = stack.enter_context(Interrupt())
            trace = stack.enter_context(Trace(directory / "profile", start=start, **config.profile))
            say(
                f"training {count_parameters(job.state.params):,} parameters on {jax.device_count()} "
                f"{jax.devices()[0].platform} device(s): {len(examples):,} examples, batch {settings.batch_size}; "
                "the first step compiles",
                plan.start(job),
                *report.classes(source),
            )

            def draw(state: TrainState, step: int) -> str:
                path = directory / "samples" / f"step_{step:08d}.png"
                params = averaged(job, state.params, state.ema)
                num = min(config.sampling.num_samples, config.sampling.batch_size)
                cond = requests.conditions(job, num, directory)
                drawn = job.system.sample(params, jax.random.key(config.sampling.seed), num, cond)
                if not drawn:
                    return "saved; this system draws no samples"
                shown = show(job, params, {**drawn, **requests.compared(job, cond)}, path)
                if not shown:
                    return "no picture of the samples: they are latents, or not finite"
                if path in shown:
                    writer.images(step, {"samples": str(path)})
                return f"samples in {', '.join(map(str, shown))}"

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
            for line in report.skipped(source):
                say(line)
            if stop.requested:
                say(f"stopped; step {int(state.step)} is saved and the same command goes on from there")
                return
        reached = int(state.step)
    sheet = directory / "samples" / f"step_{reached:08d}.png"
    say(
        f"trained to step {reached}",
        f"  checkpoints  {directory / 'checkpoints'}",
        f"  metrics      {directory / 'metrics.jsonl'}",
        *([f"  samples      {sheet}"] if sheet.exists() else []),
    )
    if config.evaluation.after_training:
        evaluate_job(job, directory)


def _check_samples(job: Job, directory: pathlib.Path) -> None:
    """Refuse now what the pictures during and after training, or the evaluation after it, could not be made of.

    Raises ConfigError if the held-out split is missing that they need, or config.sampling.cond does not fit.
    """
    after = job.config.evaluation.after_training
    try:
        if after:
            job.held_out  # noqa: B018 - opens it
        requests.conditions(job, 1, directory)
    except ConfigError as error:
        hint = "; config.evaluation.after_training=False trains without an evaluation" if after else ""
        raise ConfigError(f"{error}{hint}") from error
