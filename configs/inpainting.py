"""Inpainting with an unconditional model: replacement (arXiv:2011.13456) and RePaint (arXiv:2201.09865).

    python -m diffusion_jax.main --config=configs/ddpm.py --workdir=runs/ddpm
    python -m diffusion_jax.main --config=configs/inpainting.py --workdir=runs/ddpm --mode=sample

The first command trains DDPM on the digits of scikit-learn; no model is trained for inpainting. The second one paints
the lower half of held-out digits, four times each, and writes samples/inpainting.png with the rows truth | known |
samples | mean. With `--workdir=runs/inpainting` and no mode, one command does both. Your own image and mask, white
where it is painted:

    python -m diffusion_jax.main --config=configs/inpainting.py --workdir=runs/ddpm --mode=sample \\
        --config.editing.image=photo.png --config.editing.mask=mask.png

`mnist` uses the run of configs/ddpm.py:mnist. `celebahq256` and `imagenet256[_uncond]` are the settings of RePaint:
ADM's U-Nets of 256 x 256 pixels with 250 steps, jump length 10 and 10 repeats, which are 2410 evaluations. Their
weights are public PyTorch files, 256x256_diffusion_uncond.pt of guided-diffusion and celeba256_250000.pt of RePaint:

    python -m diffusion_jax.main --config=configs/inpainting.py:imagenet256_uncond --workdir=runs/paint --mode=sample \\
        --config.weights=256x256_diffusion_uncond.pt --config.editing.image=photo.png --config.editing.mask=mask.png

`imagenet256` is class-conditional: name the class of your photo by --config.sampling.cond=207.
"""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, from_file, replace

FOLDER = pathlib.Path(__file__).parent


def inpainting(prior: str, *, length: int, repeats: int, steps: int, mask: str = "", **sampling: Any) -> ConfigDict:
    """The config "FILE.py:VARIANT" of the prior, with RePaint."""
    config = from_file(f"{FOLDER}/{prior}")
    sampling = dict(steps=steps, file="inpainting", num_samples=32, samples_per_condition=4) | sampling
    return replace(
        config,
        editing=dict(name="repaint", length=length, repeats=repeats, image="", mask=mask),
        sampling=sampling,
    )


def digits() -> ConfigDict:
    return inpainting("ddpm.py:digits", length=5, repeats=5, steps=50, mask="lower_half")


def mnist() -> ConfigDict:
    return inpainting("ddpm.py:mnist", length=5, repeats=5, steps=50, mask="lower_half")


def imagenet256(prior: str = "adm.py:imagenet256") -> ConfigDict:
    return inpainting(prior, length=10, repeats=10, steps=250, num_samples=4, batch_size=4)


def celebahq256() -> ConfigDict:
    """RePaint's model of faces has the network of `imagenet256_uncond`."""
    data = dict(name="celeb_a_hq/256", split="train", eval_split="train", image_size=256, channels=3, path="")
    return replace(imagenet256("adm.py:imagenet256_uncond"), data=data)


VARIANTS = {
    "digits": digits,
    "mnist": mnist,
    "celebahq256": celebahq256,
    "imagenet256": imagenet256,
    "imagenet256_uncond": lambda: imagenet256("adm.py:imagenet256_uncond"),
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
