"""Overhead of the training loop over the bare jitted step, cost of a checkpoint, and start-up time.

    python -m benchmarks.training                                            # three models, seconds each
    python -m benchmarks.training --config configs/ddpm.py:cifar10 --set data.name=folder data.path=DIR
    python -m benchmarks.training --startup                                  # with and without the compilation cache

The loop is that of the command: it reads and shuffles the data, moves it to the devices, logs, shows its progress and
saves. The bare step is the same compiled, donated function on one batch that is already on the devices. They are run in
turn, A B A B ..., on the same state. The table shows the median of each and of the ratios, pair by pair, of wall-clock
time and of processor time, which other programs disturb less. A piece has at least as many steps as there are between
two logged ones. A second table shows how long a save blocks the loop and how long it takes in the background, a third
the memory of the compiled step and, on a GPU or TPU, the fraction of its peak FLOPs that the bare step reaches (MFU).
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from benchmarks.peak import peak_flops
from diffusion_jax import data
from diffusion_jax.config import from_file
from diffusion_jax.run import plan
from diffusion_jax.run.job import Job, prepare, train_step
from diffusion_jax.run.parameters import fresh_state
from diffusion_jax.training import loop, summary
from diffusion_jax.training import mesh as meshes
from diffusion_jax.training.checkpoints import Checkpoints
from diffusion_jax.training.profiling import Trace
from diffusion_jax.training.writers import JsonlWriter

DIGITS = ("data.name=digits", "data.eval_split=test")
DEFAULT = {
    "configs/toy2d.py": (),
    "configs/ddpm.py": (),
    "configs/ddpm.py:mnist": DIGITS,
}


def read(name: str, settings: tuple[str, ...]) -> ConfigDict:
    config = from_file(name)
    for setting in settings:
        key, _, value = setting.partition("=")
        with contextlib.suppress(SyntaxError, ValueError):
            value = ast.literal_eval(value)
        config.update_from_flattened_dict({key: value})
    return config


class Rows(JsonlWriter):
    """A writer that records when the last row was written; the devices have then finished its step."""

    def scalars(self, step: int, values: Any) -> None:
        super().scalars(step, values)
        self.at = time.perf_counter()


class Saves(Checkpoints):
    """Checkpoints that save once when `asked`, and record how long that blocked the loop."""

    asked = False
    held = 0.0

    def save(self, *arguments: Any, **keywords: Any) -> None:
        if self.asked:
            self.asked, began = False, time.perf_counter()
            super().save(*arguments, **keywords)
            self.held = time.perf_counter() - began


class Took(NamedTuple):
    seconds: float  # on the clock
    cpu: float  # on all processors


class Loop:
    """The training loop of the command on a job, in pieces of some steps; each piece starts from the last state."""

    def __init__(self, job: Job, folder: pathlib.Path) -> None:
        self.job, self.state, self.step = job, fresh_state(job), 0
        self.compiled = jax.jit(train_step(job), donate_argnums=0, out_shardings=(job.layout, None))
        self.batches = data.batches(job.source, batch_size=job.config.training.batch_size, seed=job.config.seed)
        # One generator for all pieces: closing it would close the data that it reads.
        self.placed = data.device_batches(self.batches, meshes.batch_sharding(job.mesh), names=tuple(job.batch))
        self.writer = Rows(folder / "metrics.jsonl")
        self.checkpoints = Saves(folder / "checkpoints")

    def run(self, num_steps: int) -> Took:
        """Time of `num_steps` steps of the loop, until the devices have finished the last one.

        A requested save happens in the middle.
        """
        began, cpu = time.perf_counter(), time.process_time()
        with contextlib.redirect_stderr(io.StringIO()):
            self.state = loop.train_loop(
                self.state,
                self.compiled,
                self.batches,
                lambda batches: self.placed,
                start=self.step,
                num_steps=self.step + num_steps,
                batch_size=self.job.config.training.batch_size,
                log_every=self.job.config.training.log_every,
                checkpoint_every=self.step + num_steps // 2,
                sample_every=0,
                checkpoints=self.checkpoints,
                writer=self.writer,
                learning_rate=self.job.learning_rate,
                draw=lambda state, step: "",
                stop=loop.Interrupt(),
                trace=Trace(pathlib.Path()),
            )
        self.step += num_steps
        return Took(self.writer.at - began, time.process_time() - cpu)

    def bare(self, num_steps: int, batch: dict[str, jax.Array]) -> Took:
        """Time of `num_steps` calls of the compiled step on one batch."""
        jax.block_until_ready(self.state)
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(num_steps):
            self.state, metrics = self.compiled(self.state, batch)
        jax.block_until_ready((self.state, metrics))
        return Took(time.perf_counter() - began, time.process_time() - cpu)


def compare(job: Job, folder: pathlib.Path, seconds: float, pairs: int) -> dict[str, Any]:
    """Times of the loop and of the bare step, in `pairs` pairs of pieces that take about `seconds` each."""
    running = Loop(job, folder)
    batch = next(running.placed)
    began = time.perf_counter()
    lowered = running.compiled.lower(running.state, batch)
    traced = time.perf_counter()
    memory = lowered.compile().memory_analysis()
    compiled = time.perf_counter()
    running.bare(3, batch)
    steps = max(job.config.training.log_every, round(seconds / (running.bare(3, batch).seconds / 3)))
    running.run(steps)
    times = [(running.run(steps), running.bare(steps, batch)) for _ in range(pairs)]
    saves = []
    for _ in range(4):  # the first one imports and compiles what a save needs
        running.checkpoints.asked = True
        usual = statistics.median(a.seconds for a, _ in times)
        saves.append((running.run(steps).seconds - usual, running.checkpoints.held))
    return dict(
        steps=steps,
        loop=statistics.median(a.seconds for a, _ in times) / steps,
        bare=statistics.median(b.seconds for _, b in times) / steps,
        cost=[a.seconds / b.seconds - 1 for a, b in times],
        cpu_cost=[a.cpu / b.cpu - 1 for a, b in times],
        saves=saves[1:],
        bytes=sum(whole for whole, _ in summary.state_bytes(job.state).values()),
        trace_seconds=traced - began,
        compile_seconds=compiled - traced,
        memory=memory,
        flops=plan.step_flops(job),
    )


def first_row(name: str, settings: tuple[str, ...], environment: dict[str, str]) -> float:
    """Seconds from starting the command until its first step is logged; the command is then stopped."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--config.{setting}" for setting in (*settings, "training.log_every=1")]
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "diffusion_jax.main", f"--config={name}", f"--workdir={folder}", *flags],
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not (pathlib.Path(folder) / "metrics.jsonl").exists():
                if process.poll() is not None:
                    raise RuntimeError(f"the command on {name} ended with code {process.returncode}")
                time.sleep(0.01)
            return time.perf_counter() - began
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def startup(configs: dict[str, tuple[str, ...]]) -> Iterator[str]:
    yield "| config | no cache, s | empty cache, s | filled cache, s |\n|---|---|---|---|"
    for name, settings in configs.items():
        with tempfile.TemporaryDirectory() as cache:
            on = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
            off = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
            seconds = [first_row(name, settings, environment) for environment in (off, on, on)]
        yield f"| `{name}` | {' | '.join(f'{s:.1f}' for s in seconds)} |"


def spread(costs: list[float]) -> str:
    low, median, high = statistics.quantiles(costs)
    return f"{median:.1%} ({low:.1%} - {high:.1%})"


def show(lines: Iterator[str], out: Callable[[str], None] = print) -> None:
    for line in lines:
        out(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="FILE.py[:VARIANT]; three small models without")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="keys of the config")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a piece")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--peak", type=float, default=0.0, help="FLOPs per second of one device")
    parser.add_argument("--startup", action="store_true", help="only the time to the first step")
    args = parser.parse_args()
    configs = {args.config: tuple(args.set)} if args.config else DEFAULT
    if args.startup:
        return show(startup(configs))
    device = jax.devices()[0]
    print(f"jax {jax.__version__}, {jax.device_count()} x {device.device_kind} ({device.platform})\n")
    found = {}
    for name, settings in configs.items():
        job = prepare(read(name, settings))
        with tempfile.TemporaryDirectory() as folder, jax.set_mesh(job.mesh):
            found[name] = job, compare(job, pathlib.Path(folder), args.seconds, args.pairs)
    print(
        "| config | parameters | batch | bare step, ms | loop, ms | it costs (quartiles) | in processor time "
        "| examples/s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, (job, r) in found.items():
        count = sum(x.size for x in jax.tree.leaves(job.state.params))
        size = job.config.training.batch_size
        print(
            f"| `{name}` | {count:,} | {size} | {1e3 * r['bare']:.1f} | {1e3 * r['loop']:.1f} | {spread(r['cost'])} "
            f"| {spread(r['cpu_cost'])} | {size / r['loop']:.0f} |"
        )
    print("\n| config | trace, s | compile, s | arguments and temporaries per device | FLOPs per step | of peak |")
    print("|---|---|---|---|---|---|")
    for name, (_, r) in found.items():
        peak = (args.peak or peak_flops(device.device_kind)) * jax.device_count()
        share = f"{r['flops'] / r['bare'] / peak:.1%}" if peak else "-"
        sizes = (r["memory"].argument_size_in_bytes, r["memory"].temp_size_in_bytes)
        memory = " + ".join(f"{size / 2**20:.0f}" for size in sizes)
        print(
            f"| `{name}` | {r['trace_seconds']:.1f} | {r['compile_seconds']:.1f} | {memory} MiB "
            f"| {r['flops']:.2e} | {share} |"
        )
    print("\n| config | state, MiB | a save holds up the loop, ms | and costs it in all, ms |\n|---|---|---|---|")
    for name, (_, r) in found.items():
        cost, held = (1e3 * statistics.median(column) for column in zip(*r["saves"], strict=True))
        print(f"| `{name}` | {r['bytes'] / 2**20:.0f} | {held:.0f} | {cost:.0f} |")


if __name__ == "__main__":
    main()
