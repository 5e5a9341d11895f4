"""Joining a cluster: the same program as many processes, on JAX's own runtime."""

from __future__ import annotations

import os
from collections.abc import Mapping

import jax

from diffusion_jax.sections import ConfigError


def initialize(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Become one of several processes where there are several; do nothing on a single machine.

    With `coordinator` ("HOST:PORT" of process 0), `num_processes` and `process_id` the cluster is the given one.
    Otherwise SLURM, Open MPI and TPU pods are recognised by their environment, and JAX reads the addresses from it.
    Call it before anything else touches a device. Processes on CPUs talk by Gloo.

    Raises ConfigError for a part of the three arguments, or numbers that do not fit.
    """
    given = bool(coordinator) or num_processes > 0 or process_id >= 0
    if given and not (coordinator and num_processes > 0 and 0 <= process_id < num_processes):
        raise ConfigError(
            f"--coordinator={coordinator!r}, --num_processes={num_processes} and --process_id={process_id} must be "
            "given together, with 0 <= process_id < num_processes"
        )
    if given and ":" not in coordinator:
        raise ConfigError(f"--coordinator={coordinator!r} must be HOST:PORT")
    if not given and not in_cluster(os.environ):
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    arguments = (coordinator, num_processes, process_id) if given and num_processes > 1 else ()
    if arguments or not given:
        jax.distributed.initialize(*arguments)


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether the environment is that of one process among several.

    A single task is not, nor is a SLURM batch script outside of srun, whose other tasks would be waited for in vain.
    """
    return (
        ("SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1)
        or int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
        or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
        or "MEGASCALE_COORDINATOR_ADDRESS" in environment
    )
