"""Trained runs that another model depends on (first stage, classifier, weaker model), opened by work directory."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from diffusion_jax.config import checks, saved
from diffusion_jax.config.defaults import defaults, from_file, replace
from diffusion_jax.config.sections import ConfigError, refusal
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.systems.low_rank import learner, plain
from diffusion_jax.training import ema as averages
from diffusion_jax.training import mesh as meshes
from diffusion_jax.training.checkpoints import Checkpoints
from diffusion_jax.types import Params, System


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained run with its config and system; `load` restores its parameters."""

    directory: pathlib.Path
    config: ConfigDict
    system: System
    field: str  # key of the config that names the run

    def load(self) -> Params:
        """Restores the averaged parameters of its newest checkpoint, replicated over the current mesh.

        Raises ConfigError if no checkpoint can be read or they do not belong to config.json.
        """
        mesh = jax.sharding.get_mesh()
        with refusal(f"{self.field}: config.lora"):
            trained = learner(self.config.lora.to_dict(), self.system)
        params = jax.eval_shape(trained.init, jax.random.key(0))
        ema = jax.eval_shape(lambda p: averages.init(p, self.config.ema.rates), params)
        if not mesh.empty:
            everywhere = meshes.replicated(mesh)
            params, ema = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), (params, ema)
            )
        with refusal(self.field):
            params, _ = restore_averaged(self.directory, self.config, params, ema)
            return plain(trained, self.system, params)


def open_run(
    path: str,
    field: str,
    build: Callable[[ConfigDict], tuple[System, str]],
    role: str = "",
    *,
    config_file: str = "",
    planning: bool = False,
) -> Trained:
    """Open the run in the work directory `path`, the value of the key `field` of a config.

    `build` returns the system of a config and its role, see `recipes.recipe.Recipe`. `config_file`, "FILE.py:VARIANT",
    is the config that trains such a run; with `planning` it describes a run that does not exist yet, whose parameters
    cannot be loaded. Raises ConfigError if there is no run, if its config is invalid, or if its role is not `role` ("":
    any).
    """
    directory = pathlib.Path(path)
    exists = bool(path) and (directory / "checkpoints").is_dir()
    if not exists and not (planning and config_file):
        hint = f". Train it with python -m diffusion_jax.main --config={config_file} --workdir={path or 'DIR'}"
        raise ConfigError(
            f"{field}={path!r} must be the work directory of a trained run, with config.json in it"
            f"{hint if config_file else ''}"
        )
    if exists and not (directory / "config.json").exists():
        raise ConfigError(f"{field}={path!r} has no config.json, which describes the model of its checkpoints")
    origin = "its config.json" if exists else f"{field}_config={config_file!r}"
    try:
        config = _saved_config(directory) if exists else from_file(config_file)
        checks.check_keys(config)
        system, own_role = build(config)
    except Exception as error:  # the file may hold anything
        cause = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"{field}={path!r}: {origin} describes no model: {cause[:1000]}") from error
    if role and own_role != role:
        raise ConfigError(
            f"{field}={path!r} must be the run of a {role.replace('_', ' ')}; it is a run of "
            f"config.system.name={config.system.name!r}"
        )
    return Trained(directory=directory, config=config, system=system, field=field)


def check_same_conditions(run: Trained, here: Conditions, there: Conditions, reason: str) -> None:
    """Raises ConfigError, with the `reason`, unless the conditions `here` are those of the run, `there`."""
    for name in sorted(here.specs.keys() | there.specs.keys()):
        if here.specs.get(name) != there.specs.get(name):
            raise ConfigError(
                f"{run.field}={str(run.directory)!r}: the condition {name!r} is {here.specs.get(name)} here and "
                f"{there.specs.get(name)} there; {reason}"
            )


def restore_averaged(
    directory: pathlib.Path, config: ConfigDict, params: PyTree[Any], ema: dict[str, PyTree[Any]]
) -> tuple[Params, int]:
    """Restores the parameters for sampling from the newest checkpoint of a run, and returns them with its step.

    `params` and `ema` are abstract. Only the EMA with the rate config.sampling.ema_rate is read, and the groups of
    parameters that have no EMA.
    """
    if ema:
        rate = checks.ema_rate(config)
        ema = {rate: ema[rate]}
        params = {group: tree for group, tree in params.items() if group not in ema[rate]}
    state = {name: tree for name, tree in {"params": params, "ema": ema}.items() if tree}
    with Checkpoints(directory / "checkpoints") as checkpoints, refusal("checkpoint"):
        restored, step = checkpoints.restore_state(state)
    return {**restored.get("params", {}), **(restored["ema"][rate] if ema else {})}, step


def _saved_config(directory: pathlib.Path) -> ConfigDict:
    # The file may be older than a key of the defaults.
    return replace(defaults(), **_with_tuples(saved.read_config(directory)))


def _with_tuples(value: Any) -> Any:
    """Replaces the lists of JSON by tuples, which configs have."""
    if isinstance(value, dict):
        return {key: _with_tuples(entry) for key, entry in value.items()}
    return tuple(_with_tuples(entry) for entry in value) if isinstance(value, list) else value
