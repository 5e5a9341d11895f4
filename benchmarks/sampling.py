"""Samples per second of DDIM against diffusers' pipeline with the same weights, and compile time by number of steps.

    python -m benchmarks.sampling              # a small U-Net, 32 x 32, 50 steps, batches of 1 and 16
    python -m benchmarks.sampling --cifar10    # DDPM's network for CIFAR-10 (35.7 M parameters)
    python -m benchmarks.sampling --parts      # the time of one evaluation that its convolutions take, in both

The two are run in turn, A B A B ..., in one process; the table shows medians and the median of the ratios, pair by
pair. Before anything is timed, both make images of the same noise, which must agree.
"""

import argparse
import functools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.extend.core import ClosedJaxpr

from diffusion_jax import parameterizations, solvers
from diffusion_jax.networks.functional import init_apply
from diffusion_jax.networks.unet import UNet
from diffusion_jax.processes import DiscreteVP, beta_table
from diffusion_jax.solvers import grids, sampling
from tests.parity import from_torch, relative_error

SMALL = dict(channels=32, channel_mult=(1, 2, 2), num_res_blocks=1, attention_resolutions=(8,))
CIFAR10 = dict(channels=128, channel_mult=(1, 2, 2, 2), num_res_blocks=2, attention_resolutions=(16,))


def networks(channels: int, channel_mult: tuple, num_res_blocks: int, attention_resolutions: tuple):
    """The same random network twice, as a UNet2DModel of diffusers and as (apply, params) of our UNet."""
    attention = [32 // 2**i in attention_resolutions for i in range(len(channel_mult))]
    model = diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=tuple(channels * m for m in channel_mult),
        layers_per_block=num_res_blocks,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        resnet_time_scale_shift="default",
    ).eval()
    _, apply = init_apply(
        lambda rngs: UNet(
            image_size=32,
            channels=channels,
            channel_mult=channel_mult,
            num_res_blocks=num_res_blocks,
            attention_resolutions=attention_resolutions,
            rngs=rngs,
        )
    )

    def rename(name):
        return name.replace("to_out.0", "to_out")

    return model, apply, jax.tree.map(jnp.asarray, from_torch(dict(model.named_parameters()), rename))


def make_sampler(apply: Callable, process: DiscreteVP, num_steps: int) -> Callable:
    """Returns sampler(params, x_T) -> images, which is one program with all DDIM steps."""
    param = parameterizations.eps_prediction(parameterizations.index_label)
    times = grids.discrete("leading")(process, num_steps)

    def run(params, x_T):
        D = parameterizations.denoiser(lambda x, c, cond: apply(params, x, c, cond), param, process)
        return sampling.sample(solvers.ddim(), process, lambda x, t: D(x, t), jax.random.key(0), x_T, times)

    return jax.jit(run)


def convolutions(f: Callable, *arguments: Any) -> Counter:
    """How often each convolution occurs in f: (shape of x, shape of the kernel, strides, padding) -> count."""
    found: Counter = Counter()

    def visit(jaxpr: Any) -> None:
        for equation in jaxpr.eqns:
            if equation.primitive.name == "conv_general_dilated":
                x, kernel = (v.aval.shape for v in equation.invars)
                found[x, kernel, equation.params["window_strides"], equation.params["padding"]] += 1
            for value in equation.params.values():
                if isinstance(value, ClosedJaxpr):
                    visit(value.jaxpr)

    visit(jax.make_jaxpr(f)(*arguments).jaxpr)
    return found


def parts(apply: Callable, params: Any, model: torch.nn.Module, batch: int, repeats: int) -> None:
    """Print the milliseconds of one evaluation, and of its convolutions one by one, in JAX and in PyTorch."""
    x, t = jax.random.normal(jax.random.key(0), (batch, 32, 32, 3)), jnp.full(batch, 500.0)
    forward = jax.jit(apply)
    x_torch, t_torch = torch.tensor(np.asarray(x).transpose(0, 3, 1, 2)), torch.tensor(500)
    pairs = [(lambda: jax.block_until_ready(forward(params, x, t)), lambda: model(x_torch, t_torch))]
    counts = [1]
    for (shape, kernel, strides, padding), count in convolutions(apply, params, x, t).items():
        arrays = jnp.ones(shape), jnp.ones(kernel)
        options = dict(window_strides=strides, padding=padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        ours = jax.jit(functools.partial(jax.lax.conv_general_dilated, **options))
        (top, bottom), (left, right) = padding
        images = torch.nn.functional.pad(torch.ones(shape[0], shape[3], *shape[1:3]), (left, right, top, bottom))
        weights = torch.ones(kernel[3], kernel[2], *kernel[:2])
        pairs.append(
            (
                lambda f=ours, a=arrays: jax.block_until_ready(f(*a)),
                lambda a=images, w=weights, s=strides: torch.nn.functional.conv2d(a, w, stride=s),
            )
        )
        counts.append(count)
    rows = []
    for pair in pairs:
        for f in pair:
            f(), f()
        rows.append(np.median([[1e3 * seconds(f) for f in pair] for _ in range(repeats)], axis=0))
    whole, inner = rows[0], np.dot(counts[1:], rows[1:])
    print("| one evaluation, ms | diffusion_jax | PyTorch | ratio |\n|---|---|---|---|")
    for name, values in (("whole", whole), ("its convolutions, each alone", inner), ("the rest", whole - inner)):
        print(f"| {name} | {values[0]:.1f} | {values[1]:.1f} | {values[1] / values[0]:.2f} |")


def seconds(f: Callable) -> float:
    began = time.perf_counter()
    f()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", action="store_true", help="DDPM's network for CIFAR-10 instead of a small one")
    parser.add_argument("--parts", action="store_true", help="only the time of convolutions in one evaluation")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    model, apply, params = networks(**(CIFAR10 if args.cifar10 else SMALL))
    process = DiscreteVP.from_betas(beta_table("linear"))
    pipeline = diffusers.DDIMPipeline(model, diffusers.DDIMScheduler(clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    sampler = make_sampler(apply, process, args.steps)
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {args.steps} DDIM steps, "
        f"jax {jax.__version__} on {jax.devices()[0].platform}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads\n"
    )

    if args.parts:
        return parts(apply, params, model, args.batches[-1], 10 * args.repeats)
    noise = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    expected = torch.tensor(noise.transpose(0, 3, 1, 2))
    pipeline.scheduler.set_timesteps(args.steps)
    for t in pipeline.scheduler.timesteps:
        expected = pipeline.scheduler.step(model(expected, t).sample, t, expected).prev_sample
    error = relative_error(sampler(params, jnp.asarray(noise)), expected.numpy().transpose(0, 2, 3, 1))
    print(f"relative difference of two images made from the same noise: {error:.1e}\n")
    assert error < 1e-3, "the two samplers do not compute the same images"

    print("| batch | diffusion_jax, images/s | diffusers, images/s | ratio (min - max) |\n|---|---|---|---|")
    for batch in args.batches:

        def ours(batch=batch):
            # Images as the pipeline returns them: an array on the host.
            x_T = jax.random.normal(jax.random.key(1), (batch, 32, 32, 3))
            return np.asarray((sampler(params, x_T) / 2 + 0.5).clip(0, 1))

        def theirs(batch=batch):
            return pipeline(batch_size=batch, num_inference_steps=args.steps, output_type="np").images

        ours(), theirs()
        pairs = [(seconds(ours), seconds(theirs)) for _ in range(args.repeats)]
        a, b = np.array(pairs).T
        ratios = b / a
        print(
            f"| {batch} | {batch / np.median(a):.2f} | {batch / np.median(b):.2f} "
            f"| {np.median(ratios):.2f} ({ratios.min():.2f} - {ratios.max():.2f}) |"
        )

    print("\n| steps | seconds to trace and compile |\n|---|---|")
    for num_steps in (10, 50, 1000):
        fresh = make_sampler(apply, process, num_steps)
        print(f"| {num_steps} | {seconds(lambda f=fresh: f.lower(params, noise[:1]).compile()):.1f} |")


if __name__ == "__main__":
    main()
