"""Inverse problems with an unconditional model as the prior: inpainting, super-resolution, deblurring and others.

    python -m diffusion_jax.main --config=configs/ddpm.py --workdir=runs/ddpm
    python -m diffusion_jax.main --config=configs/inverse.py --workdir=runs/ddpm --mode=evaluate
    python -m diffusion_jax.main --config=configs/inverse.py:digits_box --workdir=runs/ddpm --mode=sample

The first command trains the prior, the run of `ddpm.py` on the 8 x 8 digits of scikit-learn; nothing else is trained.
The others restore measurements of held-out digits: `digits` is super-resolution from 4 x 4 pixels, and
`digits_{box,half,compressed,blur,tomography,phase}` are what they are called. The method is MMPS (arXiv:2405.13712),
for phase retrieval DPS. Another operator or method is a change of its section (docs/inverse_problems.md):

    python -m diffusion_jax.main --config=configs/inverse.py:digits_box --workdir=runs/ddpm --mode=evaluate \\
        --config.guidance.method.name=ddnm --config.solver.name=renoised

The other variants are the settings of papers, for the weights of ADM (--config.weights=FILE); config.data.path is a
folder of images to measure. The noise is in the units of pixels in [-1, 1].
`ffhq256_{sr4,box,random,gaussian,motion,phase}` are DPS's (arXiv:2209.14687) on FFHQ with noise 0.05, 1000 steps.
`imagenet256_{sr4,inpainting}` are DDNM's (arXiv:2212.00490) without noise, `imagenet256_{sr4,gaussian}_diffpir` those
of DiffPIR (arXiv:2305.08995), whose 0.05 of [0, 1] is 0.1 here, 100 steps each. `imagenet256_sr4_ddrm` is DDRM's
(arXiv:2201.11793) with the same noise and 20 steps, `ffhq256_phase_daps` that of DAPS (arXiv:2407.01521).
"""

import functools
import pathlib
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, from_file, replace

CONFIGS = pathlib.Path(__file__).parent
MMPS = dict(name="mmps")


def digits(*, method: dict[str, Any] = MMPS, steps: int = 100, **operator: Any) -> ConfigDict:
    """The digits run of `ddpm.py`, sampled under a measurement with renoising, 8 samples of each of 50."""
    return replace(
        from_file(str(CONFIGS / "ddpm.py")),
        guidance=dict(name="measurement", operator=operator, method=method, clip=True),
        solver=dict(name="renoised", churn=0.85, eps="corrected" if method["name"] != "ddnm" else "raw"),
        sampling=dict(steps=steps, num_samples=24),
        evaluation=dict(num_samples=400, samples_per_condition=8, metrics=("restoration",)),
    )


def phase() -> ConfigDict:
    config = digits(name="phase", noise=0.05, method=dict(name="dps", scale=1.0), steps=250)
    return replace(config, solver=dict(name="ancestral", variance="beta_tilde"))


def adm(operator: dict[str, Any], method: dict[str, Any], *, clip: bool, steps: int, **sections: Any) -> ConfigDict:
    """An unconditional ADM for 256 x 256 pixels, sampled under a measurement of the images in config.data.path."""
    config = replace(
        from_file(f"{CONFIGS / 'adm.py'}:imagenet256_uncond"),
        guidance=dict(name="measurement", operator=operator, method=method, clip=clip),
        sampling=dict(steps=steps, threshold=dict(name="none"), num_samples=4, batch_size=4),
    )
    return replace(config, **sections)


# The network of the authors of DPS for FFHQ.
FFHQ = dict(
    name="adm",
    out_channels=6,
    model_channels=128,
    channel_mult=(1, 1, 2, 2, 4, 4),
    num_res_blocks=1,
    attention_resolutions=(16,),
    num_head_channels=64,
)


def ffhq256(scale: float, **operator: Any) -> ConfigDict:
    """DPS: x_0 is clipped before the correction, and the step is shifted by `scale` times the gradient of the norm."""
    return adm(
        dict(operator, noise=0.05),
        dict(name="dps", scale=scale, per_step=True),
        clip=True,
        steps=1000,
        network=FFHQ,
    )


def imagenet256(method: dict[str, Any], churn: float, *, noise: float = 0.0, **operator: Any) -> ConfigDict:
    solver = dict(name="renoised", churn=churn, eps="raw" if method["name"] == "ddnm" else "corrected")
    return adm(dict(operator, noise=noise), method, clip=True, steps=100, solver=solver)


def ddrm() -> ConfigDict:
    """DDRM's noisy super-resolution: 20 steps, eta 0.85 where nothing is measured or y is noisier than the state."""
    solver, method = dict(name="renoised", churn=0.85), dict(name="ddrm", eta=0.85, eta_b=1.0)
    return adm(dict(name="average", factor=4, noise=0.1), method, clip=False, steps=20, solver=solver)


def daps() -> ConfigDict:
    """DAPS for phase retrieval: 200 levels, 5 steps of the ODE and 100 Langevin steps at each."""
    operator, method = dict(name="phase", pad=64, noise=0.05), dict(name="daps", steps=5, langevin=100)
    return adm(operator, method, clip=False, steps=200, network=FFHQ, solver=dict(name="ddim"))


DDNM, DIFFPIR = dict(name="ddnm"), dict(name="diffpir", ratio=1.0)
VARIANTS = {
    "digits": functools.partial(digits, name="average", factor=2, noise=0.05),
    "digits_box": functools.partial(digits, name="box", size=4, margin=0, noise=0.02),
    "digits_half": functools.partial(digits, name="half", noise=0.02),
    "digits_compressed": functools.partial(digits, name="compressed", num=16, noise=0.05),
    "digits_blur": functools.partial(digits, name="gaussian_blur", size=5, std=1.0, noise=0.05),
    "digits_tomography": functools.partial(digits, name="tomography", angles=4, noise=0.02),
    "digits_phase": phase,
    "ffhq256_sr4": functools.partial(ffhq256, 0.3, name="bicubic", factor=4),
    "ffhq256_box": functools.partial(ffhq256, 0.5, name="box", size=128, margin=16),
    "ffhq256_random": functools.partial(ffhq256, 0.5, name="random", missing=(0.3, 0.7)),
    "ffhq256_gaussian": functools.partial(ffhq256, 0.3, name="gaussian_blur", size=61, std=3.0),
    "ffhq256_motion": functools.partial(ffhq256, 0.3, name="motion_blur", size=61, intensity=0.5),
    "ffhq256_phase": functools.partial(ffhq256, 1.0, name="phase", pad=64),
    "imagenet256_sr4": functools.partial(imagenet256, DDNM, 0.85, name="average", factor=4),
    "imagenet256_inpainting": functools.partial(imagenet256, DDNM, 0.85, name="random", missing=(0.5, 0.5)),
    "imagenet256_sr4_ddrm": ddrm,
    "ffhq256_phase_daps": daps,
    "imagenet256_sr4_diffpir": functools.partial(imagenet256, DIFFPIR, 0.1**0.5, name="bicubic", factor=4, noise=0.1),
    "imagenet256_gaussian_diffpir": functools.partial(
        imagenet256, DIFFPIR, 0.1**0.5, name="gaussian_blur", size=61, std=3.0, noise=0.1
    ),
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
