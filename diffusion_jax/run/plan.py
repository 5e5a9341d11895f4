"""--mode=plan: parameters, memory, FLOPs and sharding of a job, computed from shapes without allocating arrays."""

from __future__ import annotations

import math

import jax
from ml_collections import ConfigDict

from diffusion_jax.config.sections import ConfigError
from diffusion_jax.networks.functional import count_parameters
from diffusion_jax.run.job import Job, prepare, train_step
from diffusion_jax.run.report import classes as classes_of
from diffusion_jax.run.report import say
from diffusion_jax.training import summary
from diffusion_jax.training.mesh import AXES

SMALL = 2**14  # arrays with fewer elements are not listed one by one


def plan(config: ConfigDict, devices: int | None = None) -> None:
    """Print the plan of a config for the devices of this machine, or for `devices` of them. Raises ConfigError."""
    say(*lines(prepare(config, devices, planning=True)))


def lines(job: Job) -> list[str]:
    """The plan as lines of text: parameters by group, FLOPs per step, memory on each device, sharding of parameters."""
    settings, devices = job.config.training, math.prod(job.mesh.shape.values())
    rows = settings.batch_size // settings.accumulate // (job.mesh.shape["data"] * job.mesh.shape["fsdp"])
    activations = summary.activation_bytes(job.learner, job.state.params, job.batch)
    parts = {**summary.state_bytes(job.state), "gradient": summary.gradient_bytes(job.state)}
    parts["activations"] = (round(activations * rows * devices), round(activations * rows))
    parts["sum"] = tuple(sum(column) for column in zip(*parts.values(), strict=True))
    flops = step_flops(job)
    groups = {group: count_parameters(tree) for group, tree in job.state.params.items()}
    classes = _classes(job) if "label" in job.batch else []
    example = ", ".join(f"{name} {x.shape[1:]}" for name, x in job.batch.items())
    text = [
        f"parameters      {count_parameters(job.state.params):,}",
        *(f"  {group:<14}{count:,}" for group, count in groups.items()),
        f"mesh            {_mesh(job)}: {devices} device(s)",
        f"batch           {settings.batch_size} of {example}",
        f"                in {settings.accumulate} part(s) of {rows} per device",
        *classes,
        f"FLOPs per step  {flops:.3g}, per device {flops / devices:.3g}",
        "",
        f"{'memory':<14}{'on each device':>16}{'on all':>16}",
        *(f"{name:<14}{_mib(one):>16}{_mib(every):>16}" for name, (every, one) in parts.items()),
        f"Activations are those that the gradient needs, {_mib(round(activations))} per example, in {settings.dtype};"
        " the compiler may store fewer. With config.network.remat=True only one per block is stored.",
        "",
        "layout of the parameters: arrays, shape, axes of the mesh over which dimensions are split, on each device",
    ]
    small = [0, 0]
    for path, count, shape, split, size in summary.layout(job.state.params):
        if split == "whole" and math.prod(shape) < SMALL:
            small = [small[0] + count, small[1] + size]
        else:
            text.append(f"{path:<56}{count:>4} x {'x'.join(map(str, shape)):<18}{split:<22}{_mib(size):>14}")
    return [
        *text,
        f"{'arrays of fewer than ' + format(SMALL, ',') + ' elements':<56}{small[0]:>4} {_mib(small[1]):>56}",
    ]


def _classes(job: Job) -> list[str]:
    """The numbers of the classes, as far as the data is on this machine."""
    try:
        lines = classes_of(job.source)
    except (ConfigError, OSError):
        return []
    return [f"classes         {line}" for line in lines]


def start(job: Job) -> str:
    """One line for the start of training: the mesh, and the memory of the train state on each device."""
    parts = ", ".join(f"{name} {_mib(one)}" for name, (_, one) in summary.state_bytes(job.state).items())
    arrays = [leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(job.state.params)]
    return f"mesh {_mesh(job)}; each device holds {parts}; {arrays.count(False)} of {len(arrays)} parameters are split"


def step_flops(job: Job) -> float:
    """Floating-point operations of one train step on all devices, as XLA counts them."""

    def shapes(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)

    # With accumulation the step is a loop over parts of the batch, whose body XLA counts once. Hence accumulate=1.
    step = jax.jit(train_step(job, accumulate=1))
    return (step.lower(shapes(job.state), shapes(job.batch)).cost_analysis() or {}).get("flops", math.nan)


def _mesh(job: Job) -> str:
    return ", ".join(f"{name} {job.mesh.shape[name]}" for name in AXES)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.2f} MiB"
