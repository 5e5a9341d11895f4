"""Training and sampling of three full-size networks on one GPU, against PyTorch with torch.compile, in 8 minutes.

    python -m benchmarks.gpu                     # DDPM for CIFAR-10, DiT-XL/2 and Stable Diffusion 1.5's U-Net
    python -m benchmarks.gpu --only dit          # one of them
    python -m benchmarks.gpu --tiny              # small networks of the same kinds, on any device
    python -m benchmarks.gpu --only ddpm --dtype float32 --batch 8 --against eager --minutes 30    # on a CPU

Each network has a process of its own. It trains in `--dtype` with float32 parameters: the noise-prediction loss on
random data, clipping to norm 1, Adam and EMA. Then it samples with DDIM. The two frameworks are timed in turn,
A B A B ..., on the same device; the table shows medians, and the median of the ratios with their range. MFU is the
fraction of the device's peak that the floating-point operations of the step are, as XLA counts them before it compiles;
both frameworks are given the same count. Peak memory is what each framework's own allocator reports for the training.

It needs JAX, Flax, Optax and, for the comparison, PyTorch; nothing is downloaded and no other library is used. What the
time does not suffice for is named below the table.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.peak import peak_flops
from diffusion_jax import losses, parameterizations, solvers
from diffusion_jax.networks.dit import DiT
from diffusion_jax.networks.functional import conditions_of, count_parameters, embedder, init_apply
from diffusion_jax.networks.unet import UNet
from diffusion_jax.networks.unet_2d_condition import UNet2DConditionModel
from diffusion_jax.processes import DiscreteVP, beta_table
from diffusion_jax.solvers import grids
from diffusion_jax.systems.diffusion import Diffusion
from diffusion_jax.training.optimizers import make_optimizer
from diffusion_jax.training.step import init_state, make_train_step

try:
    import torch
except ImportError:
    torch = None

LEARNING_RATE, EMA_RATE, PAIRS = 1e-4, 0.9999, 5
LEVELS = 1000  # of noise, with the betas of DDPM


class Workload(NamedTuple):
    """A network in both frameworks, the shape of its examples and of the condition that it reads, and how much of it.

    `ours` has the keyword arguments of our module besides `attention_implementation` and `rngs`, `theirs` the arguments
    of the one in `benchmarks.torch_networks`.
    """

    title: str
    module: type[nnx.Module]
    ours: dict[str, Any]
    theirs: tuple[str, tuple, dict[str, Any]]
    shape: tuple[int, int, int]
    tokens: tuple[int, int] = (0, 0)  # number and width, of the condition "tokens"
    classes: int = 0
    batch: int = 128
    samples: int = 64  # drawn at once
    steps: int = 50  # of DDIM


def workloads(tiny: bool) -> dict[str, Workload]:
    """DDPM for CIFAR-10 (arXiv:2006.11239), DiT-XL/2 (arXiv:2212.09748) and Stable Diffusion 1 (arXiv:2112.10752)."""
    widths = (32, 64) if tiny else (128, 256, 256, 256)
    attended = (16,) if not tiny else (4,)
    sd_widths = (32, 64) if tiny else (320, 640, 1280, 1280)
    sd_attention = (True, False) if tiny else (True, True, True, False)
    token_dim, length, heads = (16, 4, 2) if tiny else (768, 77, 8)
    dit = (32, 2, 2, 10) if tiny else (1152, 28, 16, 1000)
    size, latents = (8, 8) if tiny else (32, 64)
    blocks = 1 if tiny else 2
    few = dict(batch=4, samples=2, steps=3) if tiny else {}
    found = {
        "ddpm": Workload(
            title="DDPM, CIFAR-10",
            module=UNet,
            ours=dict(
                image_size=size,
                channels=widths[0],
                channel_mult=tuple(width // widths[0] for width in widths),
                num_res_blocks=blocks,
                attention_resolutions=attended,
                dropout=0.1,
            ),
            theirs=(
                "UNet",
                (3, widths, blocks, tuple(size >> level in attended for level in range(len(widths)))),
                dict(dropout=0.1),
            ),
            shape=(size, size, 3),
        ),
        "dit": Workload(
            title="DiT-XL/2, 256 x 256",
            module=DiT,
            ours=dict(
                image_size=size, in_channels=4, hidden_size=dit[0], depth=dit[1], num_heads=dit[2], num_classes=dit[3]
            ),
            theirs=("DiT", (size, 4, *dit), {}),
            shape=(size, size, 4),
            classes=dit[3],
            batch=32,
            samples=16,
        ),
        "sd": Workload(
            title="Stable Diffusion 1.5, 512 x 512",
            module=UNet2DConditionModel,
            ours=dict(
                image_size=latents,
                block_out_channels=sd_widths,
                layers_per_block=blocks,
                transformer_layers=tuple(map(int, sd_attention)),
                num_attention_heads=heads,
                token_dim=token_dim,
                max_tokens=length,
            ),
            theirs=(
                "UNet",
                (4, sd_widths, blocks, sd_attention),
                dict(token_dim=token_dim, num_heads=heads),
            ),
            shape=(latents, latents, 4),
            tokens=(length, token_dim),
            batch=8,
            samples=4,
            steps=25,
        ),
    }
    return {name: workload._replace(**few) for name, workload in found.items()}


def networks(work: Workload, attention: str | None) -> Callable[[nnx.Rngs], nnx.Module]:
    """The constructor of our network."""
    return lambda rngs: work.module(**work.ours, attention_implementation=attention, rngs=rngs)


def torch_network(work: Workload) -> Any:
    """The same network in PyTorch, with its own initial weights."""
    from benchmarks import torch_networks

    name, arguments, options = work.theirs
    return getattr(torch_networks, name)(*arguments, **options)


class Ours:
    """The library: its `Diffusion` system, train step and sampler."""

    def __init__(self, work: Workload, attention: str | None, dtype: str) -> None:
        make = networks(work, attention)
        init, apply = init_apply(make, dtype)
        process = DiscreteVP.from_betas(beta_table("linear", LEVELS))
        weighting, times = losses.weightings.simple(), losses.times.discrete(LEVELS)
        param = parameterizations.eps_prediction(parameterizations.index_label)
        self.system = Diffusion(
            init_network=init,
            apply=apply,
            process=process,
            param=param,
            loss_fn=losses.denoising_loss(apply, param, process, weighting, times),
            solver=solvers.ddim(),
            grid=grids.discrete("leading"),
            steps=work.steps,
            shape=work.shape,
            network_conditions=conditions_of(make),
            embed=embedder(make, dtype),
        )
        optimizer, _ = make_optimizer(learning_rate=LEARNING_RATE, num_steps=10**6, clip_norm=1.0)
        step = make_train_step(self.system, optimizer, num_steps=10**6, ema_rates=(EMA_RATE,), ema_warmup=False)
        self.step = jax.jit(step, donate_argnums=0)
        self.state = jax.jit(lambda key: init_state(self.system, optimizer, (EMA_RATE,), key))(jax.random.key(0))
        self.batch = self.examples(work, work.batch)
        self.cond = {k: v for k, v in self.examples(work, work.samples).items() if k != "x"}
        self.sampler = jax.jit(lambda params, key, cond: self.system.draw(params, key, jnp.arange(work.samples), cond))
        self.parameters = count_parameters(self.state.params)
        lowered = self.step.lower(self.state, self.batch)
        self.flops = (lowered.cost_analysis() or {}).get("flops", 0.0)

    @staticmethod
    def examples(work: Workload, n: int) -> dict[str, jax.Array]:
        batch = {"x": jax.random.uniform(jax.random.key(1), (n, *work.shape), minval=-1, maxval=1)}
        if work.classes:
            batch["label"] = jnp.arange(n, dtype=jnp.int32) % work.classes
        if work.tokens[0]:
            batch["tokens"] = jax.random.normal(jax.random.key(2), (n, *work.tokens))
        return batch

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))

    def sample(self) -> None:
        jax.block_until_ready(self.sampler(self.state.ema[str(EMA_RATE)], jax.random.key(3), self.cond))

    def memory(self) -> int:
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


class Theirs:
    """PyTorch: automatic mixed precision for bfloat16, fused Adam, EMA over all parameters at once, torch.compile."""

    def __init__(self, work: Workload, dtype: str, *, compiled: bool) -> None:
        torch.manual_seed(0)
        self.mixed = dtype == "bfloat16"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        self.work, self.device = work, "cuda" if torch.cuda.is_available() else "cpu"
        images = {} if work.classes else {"memory_format": torch.channels_last}
        self.model = torch_network(work).to(self.device, **images)
        self.forward = torch.compile(self.model) if compiled else self.model
        self.ema = [p.detach().clone() for p in self.model.parameters()]
        self.optimizer = torch.optim.Adam(self.model.parameters(), LEARNING_RATE, fused=self.device == "cuda")
        alphas_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, LEVELS), 0)
        self.alpha, self.sigma = alphas_bar.sqrt().to(self.device), (1 - alphas_bar).sqrt().to(self.device)
        self.x, self.cond = self.examples(work.batch)
        self.x = self.x.contiguous(**images)
        self.sampled_cond = self.examples(work.samples)[1]

    def examples(self, n: int) -> tuple[Any, tuple]:
        work, options = self.work, dict(device=self.device)
        x = 2 * torch.rand(n, work.shape[2], *work.shape[:2], **options) - 1
        if work.classes:
            return x, (torch.arange(n, **options) % work.classes,)
        return x, (torch.randn(n, *work.tokens, **options),) if work.tokens[0] else ()

    def autocast(self) -> Any:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.mixed)

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def train(self, steps: int) -> None:
        self.model.train()
        for _ in range(steps):
            t = torch.randint(0, len(self.alpha), (len(self.x),), device=self.device)
            eps = torch.randn_like(self.x)
            x_t = self.alpha[t, None, None, None] * self.x + self.sigma[t, None, None, None] * eps
            with self.autocast():
                out = self.forward(x_t, t, *self.cond)
            loss = (out.float() - eps).square().mean()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(self.ema, list(self.model.parameters()), 1 - EMA_RATE)
        self.synchronize()

    def sample(self) -> None:
        self.model.eval()
        n, steps = self.work.samples, self.work.steps
        times = torch.arange(steps - 1, -1, -1, device=self.device) * (len(self.alpha) // steps)
        x = torch.randn(n, self.work.shape[2], *self.work.shape[:2], device=self.device)
        with torch.inference_mode(), self.autocast():
            for i, t in enumerate(times):
                eps = self.forward(x, t.expand(n), *self.sampled_cond).float()
                x_0 = (x - self.sigma[t] * eps) / self.alpha[t]
                last = i + 1 == steps
                x = x_0 if last else self.alpha[times[i + 1]] * x_0 + self.sigma[times[i + 1]] * eps
        self.synchronize()

    def memory(self) -> int:
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else 0


def seconds(f: Callable[[], None]) -> float:
    began = time.perf_counter()
    f()
    return time.perf_counter() - began


def in_turn(runs: list[Callable[[], None]]) -> list[list[float]]:
    """Seconds of each of `runs`, for `PAIRS` rounds."""
    return [[seconds(run) for run in runs] for _ in range(PAIRS)]


def measure(work: Workload, against: str, attention: str | None, dtype: str, piece: float) -> Iterator[dict[str, Any]]:
    """Results of one network, one by one; `against` is "compile", "eager" or "none", `piece` seconds of one timing."""
    began = time.perf_counter()
    ours = Ours(work, attention, dtype)
    ours.train(1)
    compile_seconds = [time.perf_counter() - began]
    models: list[Any] = [ours]
    if against != "none":
        began = time.perf_counter()
        models.append(Theirs(work, dtype, compiled=against == "compile"))
        models[-1].train(1)
        compile_seconds.append(time.perf_counter() - began)
    steps = [functools.partial(model.train, 1) for model in models]
    in_turn(steps)
    count = max(1, round(piece / max(map(seconds, steps))))
    times = [[s / count for s in row] for row in in_turn([functools.partial(m.train, count) for m in models])]
    yield dict(
        kind="training",
        times=times,
        batch=work.batch,
        parameters=ours.parameters,
        flops=ours.flops,
        memory=[model.memory() for model in models],
        compile_seconds=compile_seconds,
        attention=attention or "xla",
    )
    for model in models:
        model.sample()
    yield dict(kind="sampling", times=in_turn([model.sample for model in models]), batch=work.samples, steps=work.steps)


def worker(name: str, args: argparse.Namespace) -> None:
    """Print the results of one network, one JSON object per line."""
    on_gpu = jax.devices()[0].platform == "gpu"
    against = args.against if torch else "none"
    work, piece = workloads(args.tiny)[name], 0.05 if args.tiny else 1.0
    if args.batch:
        work = work._replace(batch=args.batch, samples=args.batch)
    # cuDNN's fused attention does not take every size of heads; what it refuses runs in XLA's.
    for attention in ("cudnn", None) if on_gpu and args.dtype == "bfloat16" else (None,):
        try:
            for result in measure(work, against, attention, args.dtype, piece):
                print(json.dumps(result), flush=True)
            return
        except Exception as error:
            if attention is None:
                raise
            print(f"{name}: attention by cuDNN is not possible: {str(error)[:300]}", file=sys.stderr)


def collect(name: str, args: argparse.Namespace, limit: float) -> tuple[list[dict[str, Any]], str]:
    """(results, what is missing and why) of one network, in a process that ends after `limit` seconds."""
    options = ["--against", args.against, "--dtype", args.dtype, "--batch", str(args.batch)]
    command = [sys.executable, "-m", "benchmarks.gpu", "--worker", name, *options, *(["--tiny"] if args.tiny else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        out, _ = process.communicate(timeout=max(limit, 1))
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
    results = {result["kind"]: result for result in map(json.loads, out.splitlines())}
    missing = [kind for kind in ("training", "sampling") if kind not in results]
    why = "the time did not suffice" if process.returncode < 0 else f"it ended with code {process.returncode}"
    return list(results.values()), f"{' and '.join(missing)}: {why}" if missing else ""


def table(found: dict[str, list[dict[str, Any]]], titles: dict[str, str], peak: float) -> Iterator[str]:
    """The results as Markdown tables."""
    yield "| network | parameters | batch | ours, ms | PyTorch, ms | ratio (min - max) | MFU, ours and PyTorch |"
    yield "|---|---|---|---|---|---|---|"
    rows = [(titles[name], result) for name, results in found.items() for result in results]
    trained = [(title, r) for title, r in rows if r["kind"] == "training"]
    for title, r in trained:
        medians = _medians(r["times"])
        mfu = ", ".join(f"{r['flops'] / s / peak:.1%}" for s in medians) if peak else "-"
        yield f"| {title}, a step | {r['parameters']:,} | {r['batch']} | {_pair(medians, 1e3)} | {_ratio(r)} | {mfu} |"
    for title, r in rows:
        if r["kind"] == "sampling":
            cells = f"{r['batch']} | {_pair(_medians(r['times']), 1e3)} | {_ratio(r)} | - |"
            yield f"| {title}, {r['steps']} steps of DDIM | - | {cells}"
    yield ""
    yield "| network | peak memory, GiB: ours and PyTorch | until the first step, s | attention |\n|---|---|---|---|"
    for title, r in trained:
        memory = ", ".join(f"{size / 2**30:.1f}" for size in r["memory"])
        first = ", ".join(f"{s:.0f}" for s in r["compile_seconds"])
        yield f"| {title} | {memory} | {first} | {r['attention']} |"


def _medians(times: list[list[float]]) -> list[float]:
    return [statistics.median(column) for column in zip(*times, strict=True)]


def _pair(values: list[float], scale: float) -> str:
    return " | ".join([f"{scale * value:.1f}" for value in values] + ["-"] * (2 - len(values)))


def _ratio(result: dict[str, Any]) -> str:
    if len(result["times"][0]) < 2:
        return "-"
    ratios = [theirs / ours for ours, theirs in result["times"]]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small networks of the same kinds")
    parser.add_argument("--only", choices=list(workloads(True)), help="one network")
    parser.add_argument("--against", choices=["compile", "eager", "none"], default="compile", help="PyTorch's way")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of the computation")
    parser.add_argument("--batch", type=int, default=0, help="examples per step and samples at once")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which everything ends")
    parser.add_argument("--peak", type=float, default=0.0, help="FLOPs per second of the device, where it is not known")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args.worker, args)
    deadline = time.monotonic() + 60 * args.minutes - 5
    # A process that only looks at the device: the memory must be free for those that measure.
    probe = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, sep='|')"
    out = subprocess.run([sys.executable, "-c", probe], stdout=subprocess.PIPE, text=True, check=True).stdout
    platform, kind = out.strip().split("|")
    versions = f"jax {jax.__version__}" + (f", torch {torch.__version__}" if torch else ", no PyTorch")
    print(f"{kind} ({platform}), {versions}, {args.dtype}, against: {args.against if torch else 'none'}\n", flush=True)
    found, missing = {}, []
    chosen = {name: work for name, work in workloads(args.tiny).items() if args.only in (None, name)}
    for name, work in chosen.items():
        found[name], lacking = collect(name, args, deadline - time.monotonic())
        missing += [f"{work.title}: {lacking}"] if lacking else []
    titles = {name: f"{'small, like ' if args.tiny else ''}{work.title}" for name, work in chosen.items()}
    print(*table(found, titles, args.peak or peak_flops(kind)), *missing, sep="\n")
    if missing:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
