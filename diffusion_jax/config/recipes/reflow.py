"""The recipe of reflow: a rectified flow that is trained on the pairs of noise and sample of another one."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping

from diffusion_jax import systems
from diffusion_jax.config.parts import Parts
from diffusion_jax.config.recipes import teacher
from diffusion_jax.config.recipes.diffusion import diffusion, score
from diffusion_jax.config.recipes.recipe import SAMPLING, TRAINING, Recipe, check_likelihood_levels
from diffusion_jax.config.sections import ConfigError, construct, refusal
from diffusion_jax.data import Source
from diffusion_jax.data.sources.pairs import open_pairs
from diffusion_jax.types import Params, Spec

_OWN = (*teacher.KEYS, "pairs")
_FILE = "pairs.npz"  # of the samples of the teacher, by default


def build(parts: Parts) -> systems.Diffusion:
    """A diffusion model whose examples come with their noise; it starts as a copy of its teacher. Raises ConfigError.

    config.system.pairs is the file of pairs, by default samples/pairs.npz in the run of the teacher.
    """
    config = parts.config
    for field, usual, reason in (
        ("process", "rectified_flow", "the straight paths between noise and sample are its own"),
        ("loss", "denoising", "the others draw their noise themselves"),
    ):
        if config[field].name != usual:
            raise ConfigError(
                f"config.{field}.name={config[field].name!r} must be {usual!r} for config.system.name='reflow': "
                f"{reason}"
            )
    teacher.check_same_network(parts)
    run = teacher.run_of(parts)
    for field in ("process", "parameterization"):
        if run.config[field] != config[field]:
            raise ConfigError(
                f"{run.field}={str(run.directory)!r} has config.{field} {run.config[field].to_dict()}, here it is "
                f"{config[field].to_dict()}: reflow continues the training of the same flow"
            )
    section = {key: value for key, value in parts.section("system").items() if key not in _OWN}
    model = construct({"reflow": functools.partial(_unaugmented, parts)}, "system", section)
    return dataclasses.replace(model, paired=True)


def _unaugmented(parts: Parts, cond_dropout: float = 0.0) -> systems.Diffusion:
    return diffusion(parts, cond_dropout)


def pairs(parts: Parts, source: Source) -> Source:
    """The pairs of config.system.pairs. Raises ConfigError if there are none, or they do not fit the training split."""
    config = parts.config
    run = teacher.run_of(parts)
    path = pathlib.Path(config.system.get("pairs", "") or run.directory / "samples" / _FILE)
    if not path.is_file():
        raise ConfigError(
            f"config.system.pairs: {path} does not exist. Sample the teacher: python -m diffusion_jax.main --config="
            f"{config.system.get('teacher_config', '') or 'CONFIG'} --workdir={run.directory} --mode=sample "
            f"--config.sampling.file={_FILE.removesuffix('.npz')} --config.sampling.num_samples=10000"
        )
    conditions = parts.network().conditions.specs
    with refusal("config.system.pairs"):
        return open_pairs(path, {"x": source.entries["x"], "noise": Spec(source.shape), **conditions})


def stands_on(parts: Parts) -> Mapping[str, Callable[[], Params]]:
    """The network, which starts with the parameters of the teacher."""
    return {"network": lambda: teacher.run_of(parts).load()["network"]}


RECIPE = Recipe(
    build=build,
    reads=TRAINING | SAMPLING | {"evaluation.likelihood"},
    stands_on=stands_on,
    check=check_likelihood_levels,
    examples=pairs,
    supplies=frozenset({"noise"}),
    views={"score": score},
    role="denoiser",
)
