"""Conversion of public checkpoints to work directories and back, for `python -m diffusion_jax.weights`."""

from __future__ import annotations

import pathlib
import pprint
import shutil
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax.config import build, saved
from diffusion_jax.config.trained import restore_averaged
from diffusion_jax.run.configs import config_of, first_stage_folder
from diffusion_jax.run.job import prepare
from diffusion_jax.run.parameters import fresh_state, load_params, lora_groups, random_networks, trained_network
from diffusion_jax.systems.base import at
from diffusion_jax.training.checkpoints import Checkpoints
from diffusion_jax.training.faults import replacing
from diffusion_jax.types import Params, Placed
from diffusion_jax.weights import export, folders, hub
from diffusion_jax.weights.families import named
from diffusion_jax.weights.files import MAX_SHARD_BYTES
from diffusion_jax.weights.lora import Update, components, write_updates
from diffusion_jax.weights.options import with_defaults
from diffusion_jax.weights.public import is_public, load_network
from diffusion_jax.weights.textual_inversion import Learned, write_learned

HUB = "hub:"
VECTORS = "vectors"  # group of the parameters of textual inversion


class Beginning:
    """A data iterator that has not returned a batch yet, for checkpoints of step 0."""

    def get_state(self) -> dict[str, int]:
        return {"next_index": 0}


def to_workdir(source: pathlib.Path, target: pathlib.Path, config: ConfigDict | None = None) -> list[pathlib.Path]:
    """Convert a public checkpoint to a work directory at step 0, and return the folders that were written.

    `target` holds config.json, the same config as config.py, and checkpoints/ with the parameters of `source`, also as
    their EMA. Without `config` it is derived from the folder, see `config_of`. The first stage of a pipeline becomes a
    work directory `target`/first_stage; a text-to-image model goes on reading its tokenizer from `source`.

    Raises:
      FileNotFoundError: `source` or a part of it is missing.
      ValueError: `source` cannot be read or is of another network than `config`, or `target` is not empty.
    """
    _check_empty(target)
    if not is_public(source):
        raise ValueError(f"{source} is neither a file of weights nor a folder of diffusers")
    written = []
    if config is None:
        stage = first_stage_folder(source)
        config = config_of(source, str(target / "first_stage") if stage else "")
        if stage is not None:
            written = to_workdir(stage, target / "first_stage")
    config = config.copy_and_resolve_references()
    config.weights = str(source)
    job = prepare(config)
    with jax.set_mesh(job.mesh):
        state = fresh_state(job)
        with Checkpoints(target / "checkpoints") as checkpoints:
            checkpoints.save(0, state, Beginning(), wait=True)
    config.weights = ""
    if config.system.get("pipeline") == "" and folders.is_pipeline(source):
        config.system.pipeline = str(source)  # whose tokenizer a text-to-image model reads
    saved.write_config(target, config)
    text = pprint.pformat(config.to_dict(), sort_dicts=False, width=100)
    with replacing(target / "config.py", "w") as file:
        file.write(
            f'"""Config of {source.name}, for --config."""\n\nfrom ml_collections import ConfigDict\n\n\n'
            f"def get_config(variant=None):\n    return ConfigDict(\n{text}\n    )\n"
        )
    return [*written, target]


def to_folder(
    source: pathlib.Path,
    target: pathlib.Path,
    config: ConfigDict | None = None,
    *,
    dtype: str = "float32",
    max_bytes: int = MAX_SHARD_BYTES,
) -> list[pathlib.Path]:
    """Write the networks of `source` as folders of diffusers, and return their files.

    `source` is a work directory, whose averaged parameters are written, or a public checkpoint; a single file needs its
    `config`. A U-Net, and a latent diffusion model of one or of a transformer, becomes a pipeline with its scheduler,
    if diffusers has one of the process; a warning says if not. Any other single network, also a ControlNet, is written
    to `target` itself, several to `target`/unet or transformer and `target`/vae or vqvae. A text-to-image model that
    was fine-tuned from a pipeline is written as this pipeline with its own U-Net, the other components in the folder
    copied unchanged; others are written as `target`/unet, text_encoder and vae. `dtype` and `max_bytes` (of a file)
    apply to what is not copied.

    Raises:
      FileNotFoundError: `source` or a part of it is missing.
      ValueError: `source` cannot be read or is of another network, diffusers does not support the network, or `target`
        is not empty.
    """
    _check_empty(target)
    options = dict(dtype=dtype, max_bytes=max_bytes)
    if config is None and is_public(source):
        if source.is_file():
            raise ValueError(f"{source} does not say which network its weights are of; give --config=FILE.py")
        component = folders.open_component(source)
        extra = {key: component.config[key] for key in ("scaling_factor",) if key in component.config}
        arguments = (component.family, component.arguments, component.load())
        return folders.write_component(target, *arguments, extra=extra, **options)
    if config is None:
        config = build.reset_unread(build.trained(str(source), "--from").config)
    if is_public(source):
        config = config.copy_and_resolve_references()
        config.weights = str(source)
    job = prepare(config)
    name, placed = trained_network(job)
    with jax.set_mesh(job.mesh):
        if is_public(source) and random_networks(job):
            # The file holds this network only.
            section = {"name": placed.name, **placed.arguments}
            params = {"network": load_network(source, section, placed.shape, job.params["network"])}
            return _write(target, placed, params, options)
        params, _ = load_params(job, source)
    networks = {other: entry for other, entry in job.system.networks.items() if entry.written}
    pipeline = _pipeline(config) if "text_encoder" in networks else None
    if pipeline is None:
        made = _made(config, networks, target)
        if len(networks) == 1 and made is None:
            return _write(target, placed, params, options)
        written = [path for other in networks for path in _write(target / other, networks[other], params, options)]
        return written if made is None else [*written, *export.write(target, made)]
    # The other components are copied, except for text encoders with low-rank updates from a file.
    updated = {name} | (set(networks) & components(config.lora.weights) if config.lora.weights else set())
    written = [path for other in sorted(updated) for path in _write(target / other, networks[other], params, options)]
    held = {other for other in folders.components(pipeline) if (pipeline / other).is_dir()}
    for other in sorted(held - updated):
        written.append(pathlib.Path(shutil.copytree(pipeline / other, target / other)))
    written.append(pathlib.Path(shutil.copyfile(pipeline / "model_index.json", target / "model_index.json")))
    return written


def to_lora(source: pathlib.Path, target: pathlib.Path, *, kohya: bool = False) -> list[pathlib.Path]:
    """Write the averaged low-rank updates (LoRA) of a work directory for `load_lora_weights` of diffusers.

    With `kohya` they have the names of kohya's scripts, which diffusers and others read as well.

    Raises ValueError if the run has none, or `target` is not empty.
    """
    _check_empty(target)
    config = build.reset_unread(build.trained(str(source), "--from").config)
    job = prepare(config)
    if job.learner is job.system:
        raise ValueError(f"{source} has no low-rank updates: its config.lora.rank is 0")
    with jax.set_mesh(job.mesh):
        params, _ = restore_averaged(source, config, job.state.params, job.state.ema)
    updates = []
    for name, path in lora_groups(job).items():
        placed = job.system.networks[name]
        family = named(placed.name)
        layout = family.layouts(with_defaults(family.network, placed.arguments))[0]
        updates.append(Update(name, layout, at(job.params, placed.path), at(params, path)))
    return [write_updates(target, updates, job.learner.scale, kohya=kohya)]


def to_embeddings(source: pathlib.Path, target: pathlib.Path) -> list[pathlib.Path]:
    """Write the learned vectors of a run of textual inversion for `load_textual_inversion` of diffusers.

    Raises ValueError if the run has none, or `target` is not empty.
    """
    _check_empty(target)
    config = build.reset_unread(build.trained(str(source), "--from").config)
    job = prepare(config)
    if VECTORS not in job.params:
        raise ValueError(f"{source} has no vectors of a token: config.system.name is {config.system.name!r}")
    with jax.set_mesh(job.mesh):
        params, _ = load_params(job, source)
    vectors = params[VECTORS]
    return write_learned(target, Learned(job.system.token, tuple(np.asarray(vectors[i]) for i in sorted(vectors))))


def fetch(source: str) -> pathlib.Path:
    """The local path of `source`. "hub:owner/name", with "/component", "/file" or "@revision", is downloaded first.

    Only the files that are read are downloaded, see `hub.choose`. Without a connection those of an earlier download
    are used. Raises ValueError if it cannot be downloaded.
    """
    if not source.startswith(HUB):
        return pathlib.Path(source).expanduser()
    name, _, revision = source.removeprefix(HUB).partition("@")
    owner, _, rest = name.partition("/")
    repository, _, component = rest.partition("/")
    if not owner or not repository or ".." in name.split("/"):
        raise ValueError(f"{source!r} must be hub:owner/name, hub:owner/name/component or hub:owner/name@revision")
    hint = "; a folder that lies here already can be given by its path"
    try:
        from huggingface_hub import list_repo_files, snapshot_download
    except ImportError as error:
        raise ValueError(f"{source} needs pip install 'diffusion_jax[hub]'{hint}") from error
    place = dict(repo_id=f"{owner}/{repository}", revision=revision or None)
    try:
        files = list_repo_files(**place)
    except Exception as error:  # the client raises many types
        try:
            return pathlib.Path(snapshot_download(**place, local_files_only=True), component)
        except Exception:
            raise _not_downloaded(source, error, hint) from error
    try:
        chosen = hub.choose(files, component)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    try:
        folder = snapshot_download(**place, allow_patterns=chosen)
    except Exception as error:
        raise _not_downloaded(source, error, hint) from error
    return pathlib.Path(folder, component)


def _not_downloaded(source: str, error: Exception, hint: str) -> ValueError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return ValueError(f"{source} cannot be downloaded: {reason}{hint}")


def _write(target: pathlib.Path, placed: Placed, params: Params, options: Mapping[str, Any]) -> list[pathlib.Path]:
    """Write one network of a system as the folder of a component."""
    arguments = dict(placed.arguments)
    if arguments.pop("fourier", ()):
        raise ValueError("config.network.fourier must be empty: diffusers does not support Fourier features")
    if placed.shape:
        arguments = {"image_size": placed.shape[0], "in_channels": placed.shape[-1], **arguments}
    extra = placed.extra(params) if placed.extra else {}
    network = at(params, placed.path)
    return folders.write_component(target, named(placed.name), arguments, network, extra=extra, **options)


def _made(config: ConfigDict, networks: Mapping[str, Placed], target: pathlib.Path) -> export.Pipeline | None:
    """The pipeline of diffusers of a denoiser and its first stage; None, with a warning, if there is none."""
    if not {"unet", "transformer"} & networks.keys():
        return None
    sections = {key: config[key].to_dict() for key in ("process", "parameterization", "solver")}
    sections |= {key: config.sampling[key].to_dict() for key in ("threshold", "grid")}
    try:
        if isinstance(config.system.get("first_stage"), str) and not _only_scaled(config.system):
            raise ValueError("its first stages only scale their latents, here each channel is standardised")
        made = export.pipeline({name: entry.arguments for name, entry in networks.items()}, **sections)
    except ValueError as error:
        warnings.warn(
            f"{target}: neither model_index.json nor a scheduler of diffusers is written: {error}",
            stacklevel=3,
        )
        return None
    if made.differs:
        warnings.warn(f"{target}: {made.differs}", stacklevel=3)
    return made


def _only_scaled(system: ConfigDict) -> bool:
    """Whether the latents of a first stage that is a run are multiplied by one number; each is standardised else."""
    if "normalize" in system:
        return system.normalize != "channels"
    stage = (saved.read_config(pathlib.Path(system.first_stage)) or {}).get("system", {})
    return bool(system.get("latent_scale", stage.get("latent_scale", 0.0)))


def _pipeline(config: ConfigDict) -> pathlib.Path | None:
    """The folder of the pipeline that a model was fine-tuned from; None if there is none.

    Raises ValueError if it has been moved.
    """
    for field, path in (("system.pipeline", config.system.get("pipeline", "")), ("weights", config.weights)):
        if not path:
            continue
        if folders.is_pipeline(pathlib.Path(path)):
            return pathlib.Path(path)
        if not pathlib.Path(path).suffix and not pathlib.Path(path).exists():
            raise ValueError(f"config.{field}={path!r}, which the model was fine-tuned from, does not exist any more")
    return None


def _check_empty(target: pathlib.Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"--to={target} exists and is not an empty folder")
