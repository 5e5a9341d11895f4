"""Score SDEs: score-based generative modelling with the VE, VP and sub-VP SDE (arXiv:2011.13456).

    python -m diffusion_jax.main --config=configs/score_sde.py --workdir=runs/score_sde
    python -m diffusion_jax.main --config=configs/score_sde.py:digits_vp --workdir=runs/score_sde_vp
    python -m diffusion_jax.main --config=configs/score_sde.py:cifar10_ve_ncsnpp --workdir=runs/cifar10_ve

`digits_ve` (the default), `digits_vp` and `digits_subvp` train a small network on the 8 x 8 digits of scikit-learn, in
minutes on two CPU cores each. To sample the same model with another solver: --mode=sample --config.solver.name=heun.

`digits_vp_likelihood`, `digits_subvp_likelihood` and `mnist_vp_likelihood` train with the likelihood weighting and
importance-sampled times of arXiv:2101.09258 and report bits/dim next to those of a Gaussian mixture; see
docs/likelihood.md. `cifar10_{vp,subvp}_ddpmpp_deep_likelihood` are that paper's larger networks, without augmentation;
its best model, with variational dequantization, reaches 2.83 bits/dim.

The other variants are the paper's continuous settings: NCSN++ under the VE SDE, sampled by predictor-corrector, and
DDPM++ under the VP and sub-VP SDEs, sampled by Euler-Maruyama; `deep` has twice the residual blocks. The paper reports
FID on CIFAR-10 of 2.38 for NCSN++, 2.20 deep; 2.55 for DDPM++ VP, 2.41 deep; 2.61 for DDPM++ sub-VP, 2.41 deep.
"""

import functools
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def ve(*, sigma_min: float, sigma_max: float, snr: float, steps: int) -> ConfigDict:
    """The VE SDE: the network's output over sigma is the score, lambda(t) = sigma^2, and PC sampling.

    The paper states its sigmas for data in [0, 1]: on [-1, 1] they are twice as large.
    """
    return replace(
        defaults(),
        process=dict(name="ve", sigma_min=sigma_min, sigma_max=sigma_max),
        parameterization=dict(name="score", label="log_sigma_unit", scale_by_sigma=True),
        weighting=dict(name="sigma_squared"),
        times=dict(name="uniform", t_min=1e-5),
        solver=dict(name="predictor_corrector", predictor="reverse_diffusion", snr=snr),
        sampling=dict(steps=steps, grid=dict(name="uniform", t_min=1e-5, denoising=True), denoise=True),
    )


def vp(process: str, *, steps: int) -> ConfigDict:
    """The VP or sub-VP SDE: the network's output over -sigma is the score, so it predicts eps; Euler-Maruyama."""
    return replace(
        defaults(),
        process=dict(name=process, beta_min=0.1, beta_max=20.0),
        parameterization=dict(name="eps", label="time"),
        weighting=dict(name="simple"),
        times=dict(name="uniform", t_min=1e-5),
        solver=dict(name="euler_maruyama"),
        sampling=dict(steps=steps, grid=dict(name="uniform", t_min=1e-3, denoising=True), denoise=True),
    )


def digits(config: ConfigDict) -> ConfigDict:
    return replace(
        config,
        # A network without skip connections from input to output learns fastest with EDM's preconditioning.
        parameterization=dict(name="edm", sigma_data=0.5),
        network=dict(name="mlp", hidden=512, num_layers=4),
        **presets.digits(7000),
        sampling=dict(batch_size=500),
    )


def digits_ve() -> ConfigDict:
    return digits(ve(sigma_min=0.02, sigma_max=8.0, snr=0.16, steps=200))


def digits_vp(process: str = "vp") -> ConfigDict:
    return digits(vp(process, steps=500))


def likelihood(config: ConfigDict, *, t_min: float = 1e-5, levels: int = 256) -> ConfigDict:
    """Maximum likelihood training (arXiv:2101.09258): likelihood weighting g^2, times with density g^2 / sigma^2.

    The data is dequantized, also in training, so that it has a density down to the noise of t_min.
    """
    return replace(
        config,
        weighting=dict(name="likelihood"),
        times=dict(name="importance", t_min=t_min),
        data=dict(dequantize=True, levels=levels, flip=False),
        evaluation=dict(likelihood=dict(name="ode", t_min=t_min)),
    )


def digits_likelihood(process: str, t_min: float) -> ConfigDict:
    """The likelihood variants of the digits. Below their t_min, sigma = 0.003 or a fortieth of a grey level, there is
    nothing to model but the edges of the levels."""
    return replace(
        likelihood(digits_vp(process), t_min=t_min, levels=17),
        sampling=dict(grid=dict(name="uniform", t_min=max(t_min, 1e-3), denoising=True)),
        network=dict(name="mlp", hidden=512, num_layers=4, dropout=0.2),
        evaluation=dict(metrics=("classifier", "density_baseline")),
    )


def mnist_likelihood() -> ConfigDict:
    config = replace(
        vp("vp", steps=100),
        network=presets.mnist_unet(),
        **presets.mnist(3000),
        sampling=dict(batch_size=100),
    )
    return replace(likelihood(config), evaluation=dict(metrics=("classifier", "density_baseline")))


def cifar10_likelihood(process: str) -> ConfigDict:
    return likelihood(cifar10_vp(process, deep=True))


def cifar10(config: ConfigDict, *, deep: bool, ema_rate: float, **network: Any) -> ConfigDict:
    return replace(
        config,
        network=dict(name="ncsnpp", num_res_blocks=8 if deep else 4, dropout=0.1, **network),
        **presets.cifar10(950_000 if deep else 1_300_000, ema_rate=ema_rate, sample_every=50_000),
    )


# The loss of the VE models: half the sum over dimensions, so that the gradient is clipped in nearly every step.
HALF_SUM = dict(name="denoising", reduce="half_sum")


def cifar10_ve(deep: bool = False) -> ConfigDict:
    config = ve(sigma_min=2 * 0.01, sigma_max=2 * 50.0, snr=0.16, steps=1000)
    return replace(cifar10(config, deep=deep, ema_rate=0.999), loss=HALF_SUM)


def cifar10_vp(process: str, deep: bool = False) -> ConfigDict:
    ddpmpp = dict(fir=False, progressive_input="none", embedding="positional")
    return cifar10(vp(process, steps=1000), deep=deep, ema_rate=0.9999, **ddpmpp)


def large(config: ConfigDict, *, batch_size: int, ema_rate: float, data: dict, **network: Any) -> ConfigDict:
    """NCSN++ for high resolution: the input enters at all levels, and the output is summed over all levels."""
    return replace(
        config,
        network=dict(name="ncsnpp", dropout=0.0, progressive="output_skip", progressive_input="input_skip", **network),
        data=dict(split="train", eval_split="train", channels=3, flip=True, path="") | data,
        training=dict(num_steps=2_400_000, batch_size=batch_size, checkpoint_every=5000, sample_every=50_000),
        optimizer=dict(name="adam", learning_rate=2e-4, warmup_steps=5000, clip_norm=1.0),
        ema=dict(rates=(ema_rate,), warmup=False),
        sampling=dict(num_samples=16, batch_size=16),
        evaluation=dict(metrics=(), after_training=False),
    )


def ve_256(sigma_max: float, **data: Any) -> ConfigDict:
    return large(
        replace(ve(sigma_min=2 * 0.01, sigma_max=2 * sigma_max, snr=0.075, steps=2000), loss=HALF_SUM),
        batch_size=64,
        ema_rate=0.999,
        data=dict(image_size=256, **data),
        ch_mult=(1, 1, 2, 2, 2, 2, 2),
        num_res_blocks=2,
    )


def ve_1024(*, reduce: str, **data: Any) -> ConfigDict:
    return large(
        replace(
            ve(sigma_min=2 * 0.01, sigma_max=2 * 1348.0, snr=0.15, steps=2000),
            loss=dict(name="denoising", reduce=reduce),
        ),
        batch_size=8,
        ema_rate=0.9999,
        data=dict(image_size=1024, **data),
        nf=16,
        ch_mult=(1, 2, 4, 8, 16, 32, 32, 32),
        num_res_blocks=1,
    )


# FFHQ is not a TFDS data set: give its folder of images with --config.data.path.
VARIANTS = {
    "digits_ve": digits_ve,
    "digits_vp": digits_vp,
    "digits_subvp": functools.partial(digits_vp, "subvp"),
    "digits_vp_likelihood": functools.partial(digits_likelihood, "vp", 1e-4),
    "digits_subvp_likelihood": functools.partial(digits_likelihood, "subvp", 0.0125),
    "mnist_vp_likelihood": mnist_likelihood,
    "cifar10_ve_ncsnpp": cifar10_ve,
    "cifar10_ve_ncsnpp_deep": functools.partial(cifar10_ve, deep=True),
    "cifar10_vp_ddpmpp": functools.partial(cifar10_vp, "vp"),
    "cifar10_vp_ddpmpp_deep": functools.partial(cifar10_vp, "vp", deep=True),
    "cifar10_subvp_ddpmpp": functools.partial(cifar10_vp, "subvp"),
    "cifar10_subvp_ddpmpp_deep": functools.partial(cifar10_vp, "subvp", deep=True),
    "cifar10_vp_ddpmpp_deep_likelihood": functools.partial(cifar10_likelihood, "vp"),
    "cifar10_subvp_ddpmpp_deep_likelihood": functools.partial(cifar10_likelihood, "subvp"),
    "lsun_church256_ve_ncsnpp": functools.partial(ve_256, 380.0, name="lsun/church_outdoor", eval_split="validation"),
    "lsun_bedroom256_ve_ncsnpp": functools.partial(ve_256, 378.0, name="lsun/bedroom", eval_split="validation"),
    "celebahq256_ve_ncsnpp": functools.partial(ve_256, 348.0, name="celeb_a_hq/256"),
    "ffhq256_ve_ncsnpp": functools.partial(ve_256, 348.0, name="folder"),
    "celebahq1024_ve_ncsnpp": functools.partial(ve_1024, reduce="half_sum", name="celeb_a_hq/1024"),
    "ffhq1024_ve_ncsnpp": functools.partial(ve_1024, reduce="mean", name="folder"),
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits_ve")()
