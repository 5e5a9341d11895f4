"""A config made ready: every object built and checked, and the state it trains or samples from."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from diffusion_jax.config import build, checks
from diffusion_jax.config.recipes import text_to_image
from diffusion_jax.config.sections import ConfigError, refusal
from diffusion_jax.config.trained import restore_averaged
from diffusion_jax.run import workdir
from diffusion_jax.systems.low_rank import LowRank, learner, merge, plain
from diffusion_jax.training import mesh as meshes
from diffusion_jax.training.ema import init as averages_of
from diffusion_jax.training.mesh import path_name
from diffusion_jax.training.step import TrainState, init_state, make_train_step
from diffusion_jax.types import Params, System
from diffusion_jax.weights import public
from diffusion_jax.weights.lora import components


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What every mode needs. Once it exists the config is known to fit together; nothing is allocated yet."""

    config: ConfigDict
    system: System
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
    learner: System  # what is trained: `system`, or low-rank updates of it
    state: TrainState  # of the learner; abstract: shapes, dtypes and layout on the mesh
    params: PyTree[jax.ShapeDtypeStruct]  # of `system`, likewise
    batch: dict[str, jax.ShapeDtypeStruct]

    @property
    def layout(self) -> PyTree[jax.sharding.Sharding]:
        return jax.tree.map(lambda x: x.sharding, self.state)


def prepare(config: ConfigDict, devices: int | None = None) -> Job:
    """Build and check what `config` describes, for the devices there are, or for a plan on `devices` of them.

    Raises ConfigError, naming the field.
    """
    checks.check_keys(config)
    with refusal("config.mesh"):
        mesh = meshes.make_mesh(**config.mesh, devices=devices)
    with refusal("config.training"):
        meshes.check_batch(mesh, config.training.batch_size // config.training.accumulate)
    system = build.system(config)
    optimizer, learning_rate = build.optimizer(config)
    batch = {"x": jax.ShapeDtypeStruct((config.training.batch_size, *build.data_shape(config)), np.float32)}
    for name, entry in build.conditions(config).shapes.items():
        batch[name] = jax.ShapeDtypeStruct((config.training.batch_size, *entry.shape), entry.dtype)
    with refusal(f"config.network ({config.network.name}) does not fit the data or config.ema"):
        state = jax.eval_shape(lambda key: init_state(system, optimizer, config.ema.rates, key), jax.random.key(0))
        jax.eval_shape(lambda p, b: system.loss(p, jax.random.key(0), b, None), state.params, batch)
    state = _laid_out(mesh, state)
    params = state.params
    with refusal("config.lora"):
        trained = learner(config.lora, system)
    if trained is not system:
        if "codebook_weight" in config.system:
            raise ConfigError(f"config.lora.rank={config.lora.rank} must be 0: a codebook changes without gradients")
        state = jax.eval_shape(lambda key: init_state(trained, optimizer, config.ema.rates, key), jax.random.key(0))
        state = _laid_out(mesh, state)
    return Job(
        config=config,
        system=system,
        optimizer=optimizer,
        learning_rate=learning_rate,
        mesh=mesh,
        learner=trained,
        state=state,
        params=params,
        batch=batch,
    )


def train_step(job: Job, accumulate: int | None = None) -> Callable:
    """The step that trains `job`, see `make_train_step`; `accumulate` stands in for config.training.accumulate."""
    return make_train_step(
        job.learner,
        job.optimizer,
        num_steps=job.config.training.num_steps,
        ema_rates=job.config.ema.rates,
        ema_warmup=job.config.ema.warmup,
        accumulate=accumulate or job.config.training.accumulate,
    )


def fresh_state(job: Job) -> TrainState:
    """The state of step 0, with the parameters of config.weights and of the runs that the system stands on."""

    def start(key: Any, params: Params | None) -> TrainState:
        return init_state(job.learner, job.optimizer, job.config.ema.rates, key, params)

    key = jax.random.key(job.config.seed)
    given = load_params(job, pathlib.Path(job.config.weights))[0] if job.config.weights else None
    if given is not None:
        if isinstance(job.learner, LowRank):
            given = _with_factors(job, key, given)
        # The averages are copies, because the train step gives away every buffer of its state once.
        return jax.jit(start, out_shardings=job.layout, donate_argnums=1)(key, given)
    if job.learner is not job.system:
        raise ConfigError(
            f"config.lora.rank={job.config.lora.rank} fine-tunes weights that are there; give config.weights"
        )
    others = build.pretrained(job.config)
    state = jax.jit(start, out_shardings=job.layout)(key, None)
    placed = jax.device_put(others, _part(job.layout.params, others))
    state = dataclasses.replace(state, params=_filled(state.params, placed))
    if "network" not in others:
        return state
    averages = functools.partial(averages_of, rates=job.config.ema.rates)
    return dataclasses.replace(state, ema=jax.jit(averages, out_shardings=job.layout.ema)(state.params))


def averaged(job: Job, params: Params, ema: dict[str, Params]) -> Params:
    """The parameters of `job.system` that samples come from, with the average of config.sampling.ema_rate put in."""
    return plain(job.learner, {**params, **ema[checks.ema_rate(job.config)]} if ema else params)


def load_params(job: Job, directory: pathlib.Path) -> tuple[Params, int]:
    """The averaged parameters of the newest checkpoint in the work directory `directory`, and its step.

    `directory` may also be a public checkpoint, see `public`: the network comes from it, everything else from a fresh
    start, and the step is 0. Low-rank updates of its run, and those of config.lora.weights, are added to the network.

    Raises ConfigError if there is none or it is of another model.
    """
    if public.is_public(directory):
        params, step, held = _public_params(job, directory), 0, ""
    else:
        params, step = _of_run(job, directory)
        held = _saved_lora(job, directory).get("weights", "")  # a run that began with them has them in its network
    given = job.config.lora.weights
    if (
        given
        and not job.config.lora.rank
        and not (held and pathlib.Path(held).resolve() == pathlib.Path(given).resolve())
    ):
        with refusal("config.lora.weights"):
            params = _with_updates(job, params)
    return params, step


def _of_run(job: Job, directory: pathlib.Path) -> tuple[Params, int]:
    if not (directory / "checkpoints").is_dir():
        raise ConfigError(
            f"{directory} holds no checkpoint; train first, or give its --workdir, or as config.weights that of another"
            " run, a folder of diffusers or a file of weights"
        )
    workdir.check_same_model(job.config, directory, resume=False)
    section = dict(rank=0, alpha=0.0, modules="") | _saved_lora(job, directory)
    with refusal(f"{directory}: config.lora"):
        trained = learner(section, job.system)
    start = functools.partial(init_state, trained, job.optimizer, job.config.ema.rates)
    state = _laid_out(job.mesh, jax.eval_shape(start, jax.random.key(0)))
    params, step = restore_averaged(directory, job.config, state.params, state.ema)
    return plain(trained, params), step


def _saved_lora(job: Job, directory: pathlib.Path) -> dict[str, Any]:
    """The section lora of the config of a run; where the run has none that of the job, but for its file."""
    saved = (workdir.read_config(directory) or {"lora": {**job.config.lora.to_dict(), "weights": ""}}).get("lora", {})
    return saved if isinstance(saved, dict) else {}


def _laid_out(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, state: TrainState) -> TrainState:
    """An abstract state with its layout on the mesh."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state,
        meshes.state_sharding(mesh, state),
    )


def _with_factors(job: Job, key: Any, params: Params) -> Params:
    """The parameters of the learner, with new factors or those of config.lora.weights."""
    adopted = jax.jit(job.learner.adopt, donate_argnums=1, out_shardings=job.layout.params)(key, params)
    section = job.config.lora
    if not section.weights:
        return adopted
    with refusal("config.lora.weights"):
        if others := components(section.weights) - {"", public.prefix_of(job.config.network.name)}:
            raise ValueError(
                f"{section.weights} also updates {', '.join(sorted(others))}, and config.lora.rank={section.rank} "
                "trains the network alone; rank 0 adds them all"
            )
        factors = public.read_factors(section.weights, job.config.network.to_dict(), job.params["network"])
        shapes = [{path_name(p): x.shape for p, x in jax.tree.leaves_with_path(t)} for t in (factors, adopted["lora"])]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{section.weights} has updates of {len(shapes[0]) // 2} layers, not those that config.lora.rank="
                f"{section.rank} and modules={section.modules!r} make, of {len(shapes[1]) // 2}"
            )
        # B holds the scale of the file.
        factors = jax.tree.map_with_path(
            lambda p, x: x / job.learner.scale if path_name(p).endswith("up") else x, factors
        )
    return {**adopted, "lora": jax.device_put(factors, job.layout.params["lora"])}


def _with_updates(job: Job, params: Params) -> Params:
    """`params` with the updates of config.lora.weights added to the network, and to text encoders."""
    section, add = job.config.lora, jax.jit(merge, donate_argnums=0)
    denoiser = public.prefix_of(job.config.network.name)
    held = components(section.weights)
    is_text_to_image = job.config.system.name == "text_to_image"
    encoders = text_to_image.encoder_sections(job.config) if is_text_to_image else {}
    if unknown := held - {"", denoiser, *encoders}:
        raise ValueError(f"{section.weights} updates {', '.join(sorted(unknown))}, which this model does not have")
    if job.config.network.name == "controlnet" and held - set(encoders):  # updates are of the U-Net that it corrects
        frozen = params["frozen"]
        unet = text_to_image.unet_section(job.config)
        factors = public.read_factors(section.weights, unet, job.params["frozen"]["unet"])
        params = {**params, "frozen": {**frozen, "unet": add(frozen["unet"], factors, section.scale)}}
    elif not held or held - set(encoders):
        factors = public.read_factors(section.weights, job.config.network.to_dict(), job.params["network"])
        params = {**params, "network": add(params["network"], factors, section.scale)}
    for i, (name, encoder) in enumerate(encoders.items()):
        if name in held:
            text = params["frozen"]["text"]
            factors = public.read_factors(section.weights, encoder, job.params["frozen"]["text"][str(i)], name)
            text = {**text, str(i): add(text[str(i)], factors, section.scale)}
            params = {**params, "frozen": {**params["frozen"], "text": text}}
    return params


def _public_params(job: Job, path: pathlib.Path) -> Params:
    """Those of a fresh start, with the network from a public checkpoint; both parts are laid out on the mesh."""
    abstract = job.params
    layout = jax.tree.map(lambda x: x.sharding, abstract)
    given = getattr(job.system, "diffusion", job.system)  # of latents, where there is a first stage
    with refusal("config.weights"):
        section = job.config.network.to_dict()
        network = public.load_network(path, section, given.shape, abstract["network"])
        others = build.pretrained(job.config)
        if job.config.system.name == "text_to_image" and not others:
            raise ValueError(
                f"{path} is not a whole model; give config.system.pipeline, a folder of diffusers or one file, for the "
                "first stage and the text encoders"
            )
        rest = {group: layout[group] for group in layout if group != "network"}
        start = jax.jit(lambda key: _part(job.system.init(key), rest), out_shardings=rest)
        rest = _filled(start(jax.random.key(job.config.seed)), jax.device_put(others, _part(layout, others)))
        return public.completed(job.system, network, rest)


def _part(tree: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """What `tree` holds under the names of `wanted`."""
    return {k: _part(tree[k], v) if isinstance(v, dict) else tree[k] for k, v in wanted.items()}


def _filled(tree: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`tree` with the leaves of `given`."""
    return {
        k: v if k not in given else _filled(v, given[k]) if isinstance(given[k], dict) else given[k]
        for k, v in tree.items()
    }
