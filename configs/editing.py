"""Editing of images with a model that was not trained for it: SDEdit, inversion, interpolation (arXiv:2108.01073).

    python -m diffusion_jax.main --config=configs/ddpm.py --workdir=runs/ddpm
    python -m diffusion_jax.main --config=configs/editing.py --workdir=runs/ddpm --mode=sample

The first command trains DDPM on the digits of scikit-learn, the second edits held-out digits by SDEdit: they are noised
for 0.4 of the steps and denoised. Your own picture is --config.editing.image=drawing.png, and with
--config.editing.mask=mask.png only its white region changes. `digits_between` interpolates between held-out digits,
whose latents DDIM finds (arXiv:2010.02502). `digits_classes` writes held-out digits as another one and keeps
their style: each is encoded under its own class and decoded under the requested one, by a class-conditional model.

    python -m diffusion_jax.main --config=configs/editing.py:digits_between --workdir=runs/ddpm --mode=sample
    python -m diffusion_jax.main --config=configs/classifier_free.py --workdir=runs/cfg
    python -m diffusion_jax.main --config=configs/editing.py:digits_classes --workdir=runs/cfg --mode=sample \\
        --config.sampling.cond=7

`mnist`, `mnist_between` and `mnist_classes` are the same with the runs of configs/ddpm.py:mnist and
configs/classifier_free.py:mnist. `celebahq256` has the settings of SDEdit's code for strokes: half of DDPM's 1000
steps, three times. `imagenet256` edits with ADM's unconditional model.
"""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, from_file, replace

FOLDER = pathlib.Path(__file__).parent


def editing(prior: str, *, file: str, edits: dict[str, Any], **sections: Any) -> ConfigDict:
    """The config "FILE.py:VARIANT" of the prior, with the section `edits`."""
    sampling = dict(file=file, num_samples=32) | sections.pop("sampling", {})
    return replace(from_file(f"{FOLDER}/{prior}"), editing=edits, sampling=sampling, **sections)


def sdedit(prior: str, *, strength: float, repeats: int = 1, **sections: Any) -> ConfigDict:
    edits = dict(name="sdedit", strength=strength, repeats=repeats, image="", mask="")
    return editing(prior, file="sdedit", edits=edits, **sections)


def encoded(**sampling: Any) -> dict[str, Any]:
    """DDIM on a grid that ends before the noise is gone, where the ODE is singular."""
    grid = dict(name="discrete", spacing="trailing", end=1)
    return dict(solver=dict(name="ddim", eta=0.0), sampling=dict(steps=100, grid=grid, denoise=True, **sampling))


def between(prior: str) -> ConfigDict:
    edits = dict(name="between", path="slerp", image="", other="")
    return editing(prior, file="between", edits=edits, **encoded(samples_per_condition=8))


def classes(prior: str) -> ConfigDict:
    guidance = dict(name="classifier_free", scale=2.0)
    return editing(prior, file="classes", edits=dict(name="inversion", image=""), guidance=guidance, **encoded())


def few(steps: int = 50) -> dict[str, Any]:
    return dict(solver=dict(name="ddim", eta=1.0), sampling=dict(steps=steps))


def large(prior: str, **options: Any) -> ConfigDict:
    return sdedit(prior, strength=0.5, sampling=dict(num_samples=4, batch_size=4), **options)


VARIANTS = {
    "digits": lambda: sdedit("ddpm.py:digits", strength=0.4, **few()),
    "digits_between": lambda: between("ddpm.py:digits"),
    "digits_classes": lambda: classes("classifier_free.py:digits"),
    "mnist": lambda: sdedit("ddpm.py:mnist", strength=0.5, **few(100)),
    "mnist_between": lambda: between("ddpm.py:mnist"),
    "mnist_classes": lambda: classes("classifier_free.py:mnist"),
    "celebahq256": lambda: large("ddpm.py:celebahq256", repeats=3),
    "imagenet256": lambda: large("adm.py:imagenet256_uncond"),
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
