"""Initialisation of JAX on several processes: SLURM, Open MPI, TPU pods, or an explicit coordinator."""

from __future__ import annotations

import os
from collections.abc import Mapping

import jax

from diffusion_jax.config.sections import ConfigError


def initialize(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Call `jax.distributed.initialize` if this process is one of several; otherwise do nothing.

    With `coordinator` ("HOST:PORT" of process 0), `num_processes` and `process_id` the arguments describe the cluster.
    Without them SLURM, Open MPI and TPUs on Kubernetes are recognised by their environment, and JAX reads the addresses
    from it. With `coordinator` "auto" JAX also asks the metadata server of a TPU's machine, or the API server of
    Kubernetes (which needs the package `kubernetes` and the right to read pods and jobs).
    Call this before any device is used. Processes on CPUs communicate by Gloo.

    Raises ConfigError if only some of the three arguments are set, if numbers are out of range, or if JAX cannot
    connect.
    """
    auto = coordinator == "auto" and num_processes <= 0 and process_id < 0
    explicit = not auto and (bool(coordinator) or num_processes > 0 or process_id >= 0)
    if explicit and not (coordinator and num_processes > 0 and 0 <= process_id < num_processes):
        raise ConfigError(
            f"--coordinator={coordinator!r}, --num_processes={num_processes} and --process_id={process_id} must be "
            "set together, with 0 <= process_id < num_processes; --coordinator=auto takes neither of the others"
        )
    if explicit and ":" not in coordinator:
        raise ConfigError(f"--coordinator={coordinator!r} must be HOST:PORT")
    if not (explicit or auto or in_cluster(os.environ)) or (explicit and num_processes == 1):
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(*((coordinator, num_processes, process_id) if explicit else ()))
    except (ImportError, ValueError, RuntimeError) as error:
        raise ConfigError(f"jax.distributed cannot be initialised: {error}") from error


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether environment variables say that this is one process of several.

    False for a single task, and for a SLURM batch script outside of srun, where the other tasks do not run.
    """
    return (
        ("SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1)
        or int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
        or "," in environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES", ""))
        or "MEGASCALE_COORDINATOR_ADDRESS" in environment
    )
