"""Tiny runs of the command: configs that train in a second, and the command line without a new process."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import optax
from absl import flags
from ml_collections import ConfigDict

from diffusion_jax import data, main
from diffusion_jax.config import build, from_file, parts, saved
from diffusion_jax.config import data as data_section
from diffusion_jax.run import convert, train
from diffusion_jax.run.job import prepare
from diffusion_jax.training.checkpoints import Checkpoints
from diffusion_jax.training.step import init_state

ROOT = pathlib.Path(__file__).parents[1]
TOY = str(ROOT / "tests" / "tiny_config.py")


def toy(**changes: Any) -> ConfigDict:
    """tiny_config.py with `changes` such as network__hidden=8."""
    return changed(from_file(TOY), **changes)


def changed(config: ConfigDict, **changes: Any) -> ConfigDict:
    """The config with `changes` such as network__hidden=8, which are made in place."""
    for name, value in changes.items():
        *sections, last = name.replace("__", ".").split(".")
        section = config
        for name in sections:
            section = section[name]
        section[last] = value
    return config


def brief(config: ConfigDict, **changes: Any) -> ConfigDict:
    """The config with four steps of training on 16 examples and no evaluation, and `changes`, made in place."""
    usual = dict(num_steps=4, batch_size=16, log_every=1, checkpoint_every=2, sample_every=0)
    usual = {f"training__{name}": value for name, value in usual.items()}
    return changed(config, **{**usual, "evaluation__after_training": False, **changes})


def text_to_image(name: str, **changes: Any) -> ConfigDict:
    """The config "FILE.py:VARIANT" of digits that are drawn from words, with the smallest networks."""
    encoder = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    network = dict(
        block_out_channels=(8,), transformer_layers=(1,), norm_num_groups=4, num_attention_heads=2, token_dim=8
    )
    sizes = {f"system__text_encoder__{key}": value for key, value in encoder.items()}
    sizes |= {f"network__{key}": value for key, value in network.items()}
    return changed(from_file(str(ROOT / "configs" / name)), **{**sizes, "sampling__steps": 2, **changes})


def untrained(config: ConfigDict, folder: pathlib.Path) -> pathlib.Path:
    """The work directory of a run at step 0, with a network of which no parameter is zero."""
    system, random = build.system(config), np.random.default_rng(0)
    start = lambda key: init_state(system, optax.sgd(0.1), config.ema.rates, key)
    state = jax.jit(start)(jax.random.key(0))
    shaken = lambda x: x + np.float32(0.1) * random.standard_normal(x.shape).astype(np.float32)
    network = jax.tree.map(shaken, state.params["network"])
    averages = {rate: {"network": network} for rate in state.ema}
    state = dataclasses.replace(state, params={**state.params, "network": network}, ema=averages)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(0, state, convert.Beginning(), wait=True)
    saved.write_config(folder, config)
    return folder


def parts_of(config: ConfigDict) -> parts.Parts:
    """The points that a config names, without its system."""
    return parts.Parts(config, data_section.spec(config), lambda config: (build.system(config), ""))


def source_of(config: ConfigDict, *, evaluation: bool = False) -> data.Source:
    """The data that the system of a config is trained on, or compared with."""
    return build.build(config).source(evaluation=evaluation)


def digits(**changes: Any) -> ConfigDict:
    """The embedded digits with a small MLP, otherwise like `toy`."""
    config = toy(**changes)
    config.data = ConfigDict(dict(name="digits", split="train", eval_split="test", image_size=8, channels=1, path=""))
    config.evaluation.metrics = ()
    return config


def with_devices(num: int) -> dict[str, str]:
    """The environment of a program that sees `num` simulated devices, with the flags of the suite."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def flag(config: str, **changes: Any) -> list[str]:
    """The command line of a config with changes."""
    settings = {name.replace("__", "."): value for name, value in changes.items()}
    return [f"--config={config}", *(f"--config.{name}={value}" for name, value in settings.items())]


def forget_flags() -> None:
    """Undo the parsing of a command line, so that another one can be parsed."""
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    for name in ("config", "workdir", "mode", "to", "from", "devices"):
        flags.FLAGS[name].unparse()


def given_config() -> ConfigDict:
    """The config of the command line that was parsed last."""
    return flags.FLAGS.config


def command(monkeypatch: Any, *arguments: str) -> None:
    """What `python -m diffusion_jax.main` does with `arguments`, in this process."""
    forget_flags()
    monkeypatch.setattr(sys, "argv", ["main", *arguments])
    main.main(main.parse(sys.argv))


def start(*arguments: str, **environment: str) -> subprocess.Popen:
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "diffusion_jax.main", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def logged_rows(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; the last line may be unfinished."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().split("\n")[:-1]]


def final_state(config: ConfigDict, folder: pathlib.Path) -> tuple[int, dict[str, np.ndarray], dict[str, int]]:
    """Step, every array of the last train state (keys as integers) by its path, and the position in the data."""
    job = prepare(config)
    batches = data.batches(job.source, batch_size=config.training.batch_size, seed=config.seed)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        state, step = checkpoints.restore(job.state, batches)
    raw = jax.tree.map(
        lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x, state
    )
    arrays = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(raw)}
    return step, arrays, batches.get_state()


def resumed(config: ConfigDict, folder: pathlib.Path, num_steps: int, **first: Any) -> dict[str, np.ndarray]:
    """Train at once, and with an interruption after `num_steps` steps: step, position in the data and all arrays of the
    train state must be the same. Returns these arrays. `first` are further changes of the config of the first part.
    """
    half = changed(config.copy_and_resolve_references(), training__num_steps=num_steps, **first)
    train.train(config, folder / "whole")
    for part in (half, config):
        train.train(part, folder / "broken")
    states = (final_state(config, folder / name) for name in ("whole", "broken"))
    (step, whole, position), (again, broken, there) = states
    assert (step, position) == (again, there) == (config.training.num_steps, position)
    for path in whole:
        np.testing.assert_array_equal(whole[path], broken[path], err_msg=path)
    return whole


def listing(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below `folder` with its time and size."""
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted([folder, *folder.rglob("*")])}
