"""Tiny runs of the command: configs that train in a second, and the command line without a new process."""

import os
import pathlib
import subprocess
import sys
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from diffusion_jax import defaults, main

ROOT = pathlib.Path(__file__).parents[1]
TOY = str(ROOT / "tests" / "tiny_config.py")


def toy(**changes: Any) -> ConfigDict:
    """tiny_config.py with `changes` such as network__hidden=8."""
    config = defaults.read(TOY)
    for name, value in changes.items():
        *sections, last = name.replace("__", ".").split(".")
        section = config
        for name in sections:
            section = section[name]
        section[last] = value
    return config


def digits(**changes: Any) -> ConfigDict:
    """The embedded digits with a small MLP, otherwise like `toy`."""
    config = toy(**changes)
    config.data = ConfigDict(dict(name="digits", split="train", eval_split="test", image_size=8, channels=1, path=""))
    config.evaluation.metrics = ()
    return config


def flag(config: str, **changes: Any) -> list[str]:
    """The command line of a config with changes."""
    settings = {name.replace("__", "."): value for name, value in changes.items()}
    return [f"--config={config}", *(f"--config.{name}={value}" for name, value in settings.items())]


def command(monkeypatch: Any, *arguments: str) -> None:
    """What `python -m diffusion_jax.main` does with `arguments`, in this process."""
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    for name in ("config", "workdir", "mode"):
        flags.FLAGS[name].unparse()
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


def listing(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below `folder` with its time and size."""
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted([folder, *folder.rglob("*")])}
