"""Reflow: a flow whose paths are straight, trained on the samples of another with their noise (arXiv:2209.03003).

    python -m diffusion_jax.main --config=configs/flow.py --workdir=runs/flow
    python -m diffusion_jax.main --config=configs/flow.py --workdir=runs/flow --mode=sample \\
        --config.sampling.file=pairs --config.sampling.num_samples=10000
    python -m diffusion_jax.main --config=configs/reflow.py --workdir=runs/reflow

The second command draws pairs of noise and sample. The third starts from the weights of runs/flow and trains them on
the straight lines between the two, and samples in one step of Euler's method. Without a variant it runs on the 8 x 8
digits of scikit-learn, in minutes on two CPU cores. A third flow has --config.system.teacher=runs/reflow.

`plane` is the same for the points of `flow.py:plane` in runs/flow_plane, whose paths can be drawn
(`python -m benchmarks.straightness`).

`cifar10` is the 2-rectified flow of arXiv:2209.03003 from a run of `flow.py:cifar10`, with a million pairs:

    python -m diffusion_jax.main --config=configs/reflow.py:cifar10 --workdir=runs/reflow_cifar10
"""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, from_file, presets, replace

FOLDER = pathlib.Path(__file__).parent


def reflow(variant: str, run: str, **sections: Any) -> ConfigDict:
    """The config of the teacher, "flow.py:VARIANT" trained in `run`, with its pairs as data and one step of Euler."""
    return replace(
        from_file(f"{FOLDER}/flow.py:{variant}"),
        system=dict(name="reflow", teacher=run, teacher_config=f"configs/flow.py:{variant}", pairs=""),
        solver=dict(name="euler"),
        sampling=dict(steps=1),
        **sections,
    )


def digits() -> ConfigDict:
    return reflow("digits", "runs/flow", training=dict(num_steps=4000))


def plane() -> ConfigDict:
    return reflow("plane", "runs/flow_plane")


def cifar10() -> ConfigDict:
    # Pairs are not flipped: the noise of a flipped sample is not the flipped noise.
    return reflow(
        "cifar10",
        "runs/flow_cifar10",
        network=dict(name="ncsnpp", fir=False, progressive_input="none", embedding="positional", dropout=0.1),
        **presets.cifar10(1_300_000) | dict(data=presets.cifar10_data(flip=False)),
    )


VARIANTS = {"digits": digits, "plane": plane, "cifar10": cifar10}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
