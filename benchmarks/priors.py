"""Priors of the benchmarks of editing and inverse problems: a trained run, or the exact one, and the data of both."""

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import data, parameterizations, processes, solvers, systems
from diffusion_jax.config import build, from_file, trained
from diffusion_jax.guidance.editing import Editing
from diffusion_jax.solvers import grids
from diffusion_jax.training.rows import in_batches
from diffusion_jax.types import Params

WIDTH = 0.12  # standard deviation of the noise around each training image of the exact prior


class Prior(NamedTuple):
    """A diffusion model of images, and its training and held-out images in [-1, 1] with their labels.

    `held_out()` is the split of the latter, to draw from it in another order; None if there is no split.
    """

    system: systems.Diffusion
    params: Params
    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    held_out: Callable[[], data.Source] | None = None

    def drawn(self, editing: Editing, steps: int, cond: dict[str, np.ndarray], **fields: Any) -> np.ndarray:
        """One edit of each row of `cond`, by the ancestral sampler or with other `fields` of the system."""
        fields = dict(editing=editing, steps=steps, solver=solvers.ancestral()) | fields
        system = dataclasses.replace(self.system, **fields)
        draw = jax.jit(lambda ids, cond: system.draw(self.params, jax.random.key(0), ids, cond))
        return in_batches(draw, len(next(iter(cond.values()))), 500, cond)["samples"]


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the arguments that `opened` reads, and a picture."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", nargs="?", default="", help="of a trained diffusion model of images")
    parser.add_argument(
        "--exact",
        nargs="?",
        const="configs/ddpm.py",
        default="",
        metavar="CONFIG",
        help="the exact denoiser of the training images of CONFIG instead, by default of the digits",
    )
    parser.add_argument("--most", type=int, default=10_000, help="training images of the exact denoiser")
    parser.add_argument("--picture", type=pathlib.Path, default=None)
    return parser


def opened(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Prior:
    """The prior that the command line names."""
    if bool(args.workdir) == bool(args.exact):
        parser.error("give the work directory of a trained model, or --exact")
    run = trained.open_run(args.workdir, "workdir", _made, "denoiser") if args.workdir else None
    source = build.build(run.config if run else from_file(args.exact)).source
    train, test = (data.arrays(source(evaluation=evaluation)) for evaluation in (False, True))
    held_out = functools.partial(source, evaluation=True)
    if run:
        return Prior(run.system, run.load(), train, test, held_out)
    return Prior(exact_prior(train["x"][: args.most]), {"network": {}}, train, test, held_out)


def _made(config: Any) -> tuple[Any, str]:
    built = build.build(config)
    return built.system, built.recipe.role


def exact_prior(x: np.ndarray, width: float = WIDTH) -> systems.Diffusion:
    """The diffusion model whose data are the images x with Gaussian noise of standard deviation `width`, without error.

    Its denoiser is a softmax over the images: no network, no training.
    """
    process, means, v = processes.discrete_vp(), jnp.asarray(x.reshape(len(x), -1)), width**2

    def apply(params, x, c_noise, cond, *, key=None):
        alpha, sigma = (f(c_noise / 999)[:, None] for f in (process.alpha, process.sigma))
        flat, variance = x.reshape(len(x), -1), alpha**2 * v + sigma**2
        products = alpha * jnp.matmul(flat, means.T, precision="highest") - alpha**2 * (means**2).sum(1) / 2
        nearest = jax.nn.softmax(products / variance) @ means
        return (nearest + alpha * v / variance * (flat - alpha * nearest)).reshape(x.shape)

    return systems.Diffusion(
        init_network=lambda key: {},
        apply=apply,
        process=process,
        param=parameterizations.x0_prediction(),
        loss_fn=None,
        solver=solvers.ancestral(),
        grid=grids.discrete("linspace"),
        steps=50,
        shape=x.shape[1:],
    )
