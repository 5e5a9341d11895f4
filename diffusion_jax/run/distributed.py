"""Joining a cluster: the same program as many processes, on JAX's own runtime."""

from __future__ import annotations

import os
from collections.abc import Mapping

import jax

from diffusion_jax.config.sections import ConfigError


def initialize(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Become one of several processes where there are several; do nothing on a single machine.

    With `coordinator` ("HOST:PORT" of process 0), `num_processes` and `process_id` the cluster is the given one.
    Otherwise SLURM, Open MPI and TPUs on Kubernetes are recognised by their environment, and JAX reads the addresses
    from it. With `coordinator` "auto" JAX looks further: it asks the metadata server of a TPU's machine, or the API
    server of Kubernetes (which needs the package `kubernetes` and the right to read pods and jobs).
    Call it before anything else touches a device. Processes on CPUs talk by Gloo.

    Raises ConfigError for a part of the three arguments, or numbers that do not fit.
    """
    asked = coordinator == "auto" and num_processes <= 0 and process_id < 0
    given = not asked and (bool(coordinator) or num_processes > 0 or process_id >= 0)
    if given and not (coordinator and num_processes > 0 and 0 <= process_id < num_processes):
        raise ConfigError(
            f"--coordinator={coordinator!r}, --num_processes={num_processes} and --process_id={process_id} must be "
            "given together, with 0 <= process_id < num_processes; --coordinator=auto stands alone"
        )
    if given and ":" not in coordinator:
        raise ConfigError(f"--coordinator={coordinator!r} must be HOST:PORT")
    if not (given or asked or in_cluster(os.environ)) or (given and num_processes == 1):
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(*((coordinator, num_processes, process_id) if given else ()))
    except (ImportError, ValueError, RuntimeError) as error:
        raise ConfigError(f"this process cannot join the others: {error}") from error


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether the environment is that of one process among several.

    A single task is not, nor is a SLURM batch script outside of srun, whose other tasks would be waited for in vain.
    """
    return (
        ("SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1)
        or int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
        or "," in environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES", ""))
        or "MEGASCALE_COORDINATOR_ADDRESS" in environment
    )
