"""Parameters of a job: initialised, restored from a checkpoint, loaded from a public file, with low-rank updates."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import jax

from diffusion_jax.config import checks, saved
from diffusion_jax.config.sections import ConfigError, refusal
from diffusion_jax.config.trained import restore_averaged
from diffusion_jax.run.job import Job, laid_out
from diffusion_jax.run.schedules import check_schedule
from diffusion_jax.systems.base import at, replaced_at
from diffusion_jax.systems.low_rank import TEXT, learner, merge, plain
from diffusion_jax.training.checkpoints import Checkpoints
from diffusion_jax.training.ema import init as averages_of
from diffusion_jax.training.mesh import path_name
from diffusion_jax.training.step import TrainState, init_state
from diffusion_jax.types import Params, Placed
from diffusion_jax.weights import public
from diffusion_jax.weights.lora import components

_DENOISERS = ("unet", "transformer")  # a file of LoRA without names of networks updates the first of these


def fresh_state(job: Job) -> TrainState:
    """The train state at step 0, with the parameters of config.weights and of the runs that the system depends on.

    Raises ConfigError if these do not fit the model.
    """

    def start(key: Any, params: Params | None) -> TrainState:
        return init_state(job.learner, job.optimizer, job.config.ema.rates, key, params)

    key = jax.random.key(job.config.seed)
    params = load_params(job, pathlib.Path(job.config.weights))[0] if job.config.weights else None
    if params is not None:
        if job.learner is not job.system:
            params = _with_factors(job, key, params)
        # The EMA is a copy, because the train step donates every buffer of its state, and only once.
        return jax.jit(start, out_shardings=job.layout, donate_argnums=1)(key, params)
    if job.learner is not job.system:
        params = _with_factors(job, key, _copied(job))
        return jax.jit(start, out_shardings=job.layout, donate_argnums=1)(key, params)
    with refusal("config.system.pipeline"):
        check_schedule(job, None)
    others = stands_on(job)
    state = jax.jit(start, out_shardings=job.layout)(key, None)
    placed = jax.device_put(others, _part(job.layout.params, others))
    state = dataclasses.replace(state, params=_filled(state.params, placed))
    if not others.keys() - {"frozen"}:
        return state
    averages = functools.partial(averages_of, rates=job.config.ema.rates)
    return dataclasses.replace(state, ema=jax.jit(averages, out_shardings=job.layout.ema)(state.params))


def _copied(job: Job) -> Params:
    """The parameters of the system at step 0, whose network starts as a copy of that of another run.

    Raises ConfigError for a system whose network starts at random: there is nothing that low-rank updates are added to.
    """
    if "network" not in job.recipe.stands_on(job.built.parts):
        raise ConfigError(f"config.lora.rank={job.config.lora.rank} fine-tunes existing weights; set config.weights")
    layout, others = jax.tree.map(lambda x: x.sharding, job.params), stands_on(job)
    params = jax.jit(job.system.init, out_shardings=layout)(jax.random.key(job.config.seed))
    return _filled(params, jax.device_put(others, _part(layout, others)))


def stands_on(job: Job) -> Params:
    """Loads the parameters that a fresh start takes from other runs and public files, as a nested dict."""
    params: Params = {}
    for path, load in job.recipe.stands_on(job.built.parts).items():
        params = replaced_at(params, tuple(path.split("/")), load())
    return params


def averaged(job: Job, params: Params, ema: dict[str, Params]) -> Params:
    """Returns the parameters of `job.system` for sampling: the EMA with the rate config.sampling.ema_rate."""
    params = {**params, **ema[checks.ema_rate(job.config)]} if ema else params
    return plain(job.learner, job.system, params)


def params_of(job: Job, directory: pathlib.Path) -> tuple[Params, int]:
    """Loads parameters and step of the run in `directory`, or of config.weights if it has no checkpoints."""
    untrained = job.config.weights and not _has_checkpoint(directory)
    return load_params(job, pathlib.Path(job.config.weights) if untrained else directory)


def _has_checkpoint(directory: pathlib.Path) -> bool:
    if not (directory / "checkpoints").is_dir():
        return False
    with Checkpoints(directory / "checkpoints") as checkpoints:
        return checkpoints.latest_step() is not None


def load_params(job: Job, directory: pathlib.Path) -> tuple[Params, int]:
    """Loads the averaged parameters of the newest checkpoint in the work directory `directory`, and its step.

    `directory` may also be a public checkpoint, see `weights.public`: then the network is loaded from it, all other
    parameters are those of a fresh start, and the step is 0. The low-rank updates of the run, and those of
    config.lora.weights, are merged into the kernels.

    Raises ConfigError if there is no checkpoint or it is of another model.
    """
    if public.is_public(directory):
        params, step, start = _public_params(job, directory), 0, ""
    else:
        params, step = _of_run(job, directory)
        start = _saved_lora(job, directory).get("weights", "")  # the updates that the run started from
    weights = job.config.lora.weights
    merged = start and pathlib.Path(start).resolve() == pathlib.Path(weights).resolve()
    if weights and not job.config.lora.rank and not merged:
        with refusal("config.lora.weights"):
            params = _with_updates(job, params)
    return params, step


def _of_run(job: Job, directory: pathlib.Path) -> tuple[Params, int]:
    if not _has_checkpoint(directory):
        raise ConfigError(
            f"{directory} holds no checkpoint; train first, or give the folder of a trained run as --workdir, or a "
            "run, a folder of diffusers or a file of weights as config.weights"
        )
    saved.check_same_model(
        job.config, directory, resume=False, reads=job.recipe.reads, runs=job.built.parts.configs_of_runs
    )
    section = dict(rank=0, alpha=0.0, modules="") | _saved_lora(job, directory)
    with refusal(f"{directory}: config.lora"):
        trained = learner(section, job.system)
    start = functools.partial(init_state, trained, job.optimizer, job.config.ema.rates)
    state = laid_out(job.mesh, jax.eval_shape(start, jax.random.key(0)))
    params, step = restore_averaged(directory, job.config, state.params, state.ema)
    return plain(trained, job.system, params), step


def _saved_lora(job: Job, directory: pathlib.Path) -> dict[str, Any]:
    """The section lora of the config of a run; without a config.json, that of the job without its file."""
    section = (saved.read_config(directory) or {"lora": {**job.config.lora.to_dict(), "weights": ""}}).get("lora", {})
    return section if isinstance(section, dict) else {}


def trained_network(job: Job) -> tuple[str, Placed]:
    """Returns the public name and the description of the network that is trained. Raises ValueError if none is."""
    for name, placed in job.system.networks.items():
        if placed.path == ("network",):
            return name, placed
    raise ValueError(f"config.system.name={job.config.system.name!r} trains no network: all of its are frozen")


def _section(placed: Placed) -> dict[str, Any]:
    """The section of a config that describes the network."""
    return {"name": placed.name, **placed.arguments}


def _with_factors(job: Job, key: Any, params: Params) -> Params:
    """The parameters of the learner for those of the system, with new factors or those of config.lora.weights."""
    adopted = jax.jit(job.learner.adopt, donate_argnums=1, out_shardings=job.layout.params)(key, params)
    section = job.config.lora
    if not section.weights:
        return adopted
    name, _ = trained_network(job)
    groups = lora_groups(job)
    with refusal("config.lora.weights"):
        if others := components(section.weights) - {"", *groups}:
            raise ValueError(
                f"{section.weights} also updates {', '.join(sorted(others))}, and config.lora.rank={section.rank} "
                "trains the network alone; set config.lora.text_modules to train text encoders too. With rank 0 all "
                "updates are added"
            )
        for component, path in groups.items():
            if component != name and component not in components(section.weights):
                continue  # the updates of text encoders start from zero
            placed = job.system.networks[component]
            shapes = at(job.params, placed.path)
            factors = public.read_factors(section.weights, _section(placed), shapes, component)
            adopted = replaced_at(adopted, path, _fitting(job, factors, at(adopted, path), component))
    layout = {path[0]: job.layout.params[path[0]] for path in groups.values()}
    return {**adopted, **jax.device_put({group: adopted[group] for group in layout}, layout)}


def lora_groups(job: Job) -> dict[str, tuple[str, ...]]:
    """The paths of the factors of low-rank updates among the parameters, by the public names of the networks."""
    name, _ = trained_network(job)
    return {name: ("lora",), **{other: (TEXT, other) for other in job.learner.updated()}}


def _fitting(job: Job, factors: Params, own: Params, component: str) -> Params:
    """The factors of a file of updates, without their scale, which the file includes in B.

    Raises ValueError unless they have the shapes of the factors `own` that are trained.
    """
    section = job.config.lora
    shapes = [{path_name(p): x.shape for p, x in jax.tree.leaves_with_path(tree)} for tree in (factors, own)]
    if shapes[0] != shapes[1]:
        key = "modules" if component == trained_network(job)[0] else "text_modules"
        raise ValueError(
            f"{section.weights} has updates of {len(shapes[0]) // 2} layers of {component}, which do not fit "
            f"config.lora.rank={section.rank} and {key}={section[key]!r} with {len(shapes[1]) // 2}"
        )
    return jax.tree.map_with_path(lambda p, x: x / job.learner.scale if path_name(p).endswith("up") else x, factors)


def _with_updates(job: Job, params: Params) -> Params:
    """Returns `params` with the updates of config.lora.weights merged into each network that the file updates."""
    section, add = job.config.lora, jax.jit(merge, donate_argnums=0)
    networks, updates = job.system.networks, components(section.weights)
    if unknown := updates - {"", *networks}:
        raise ValueError(f"{section.weights} updates {', '.join(sorted(unknown))}, which this model does not have")
    main = next((name for name in (*_DENOISERS, *networks) if name in networks), "")
    updated = (updates - {""}) | ({main} if not updates or "" in updates else set())
    for name in sorted(updated):
        placed = networks[name]
        factors = public.read_factors(section.weights, _section(placed), at(job.params, placed.path), name)
        params = replaced_at(params, placed.path, add(at(params, placed.path), factors, section.scale))
    return params


def _public_params(job: Job, path: pathlib.Path) -> Params:
    """The parameters of a fresh start with the network of a public checkpoint, laid out on the mesh."""
    abstract = job.params
    layout = jax.tree.map(lambda x: x.sharding, abstract)
    _, placed = trained_network(job)
    with refusal("config.weights"):
        check_schedule(job, path)
        network = public.load_network(path, _section(placed), placed.shape, abstract["network"])
        others = stands_on(job)
        if missing := random_networks(job):
            raise ValueError(
                f"{path} is not a whole model: {', '.join(missing)} would stay random; set config.system.pipeline to a "
                "folder of diffusers or a file that has them"
            )
        rest = {group: layout[group] for group in layout if group != "network"}
        start = jax.jit(lambda key: _part(job.system.init(key), rest), out_shardings=rest)
        rest = _filled(start(jax.random.key(job.config.seed)), jax.device_put(others, _part(layout, others)))
        params = {**rest, "network": network}
        return placed.adopt(params, network) if placed.adopt else params


def random_networks(job: Job) -> list[str]:
    """Frozen networks that neither another run nor a public file supplies: a fresh start initialises them randomly."""
    supplied = [tuple(path.split("/")) for path in job.recipe.stands_on(job.built.parts)]
    return [
        name
        for name, placed in job.system.networks.items()
        if placed.path[0] == "frozen" and not any(placed.path[: len(path)] == path for path in supplied)
    ]


def _part(tree: dict[str, Any], structure: dict[str, Any]) -> dict[str, Any]:
    """The leaves of `tree` whose paths are in `structure`."""
    return {k: _part(tree[k], v) if isinstance(v, dict) else tree[k] for k, v in structure.items()}


def _filled(tree: dict[str, Any], leaves: dict[str, Any]) -> dict[str, Any]:
    """`tree` with `leaves`, a nested dict of a part of its paths, instead of its own."""
    return {
        k: v if k not in leaves else _filled(v, leaves[k]) if isinstance(leaves[k], dict) else leaves[k]
        for k, v in tree.items()
    }
