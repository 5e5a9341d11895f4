"""DDPM: eps-prediction (noise prediction) on 1000 discrete steps, ancestral sampling (arXiv:2006.11239).

    python -m diffusion_jax.main --config=configs/ddpm.py --workdir=runs/ddpm
    python -m diffusion_jax.main --config=configs/ddpm.py:cifar10 --workdir=runs/ddpm_cifar10

DDIM (arXiv:2010.02502) samples the same model in fewer steps:

    python -m diffusion_jax.main --config=configs/ddpm.py --workdir=runs/ddpm --mode=sample \\
        --config.solver.name=ddim --config.sampling.steps=50

Without a variant, a small network is trained on the 8 x 8 digits of scikit-learn, in minutes on two CPU cores. The
cosine noise schedule and EDM's preconditioning suit so small an image and network. `mnist` trains a small U-Net in
about 20 minutes on a CPU; prepare the data with `python -m diffusion_jax.data.prepare mnist --from DIR`.

`stacked_digits` is for the comparison of families in docs/trilemma.md.

`cifar10`, `lsun_church`, `lsun_bedroom` and `celebahq256` are the paper's settings, with 35.7 M parameters at 32 x 32
and 114 M at 256 x 256. The paper reports FID 3.17 on CIFAR-10, 7.89 on LSUN church and 6.36 on LSUN bedroom (4.90 with
a larger network).
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def ddpm(*, variance: str = "beta_tilde", **sections: Any) -> ConfigDict:
    """The sections that all variants share: the process, L_simple and the ancestral sampler, which clips its x_0."""
    config = replace(
        defaults(),
        **presets.ddpm(),
        weighting=dict(name="simple"),
        solver=dict(name="ancestral", variance=variance),
        sampling=dict(steps=1000, grid=dict(name="discrete", spacing="linspace"), threshold=dict(name="static")),
    )
    return replace(config, **sections)


def digits() -> ConfigDict:
    return ddpm(
        **presets.preconditioned(),
        network=dict(name="mlp", hidden=512, num_layers=4),
        **presets.digits(10_000),
        sampling=dict(batch_size=500, threshold=dict(name="none")),
    )


def stacked_digits() -> ConfigDict:
    return ddpm(
        **presets.preconditioned(),
        network=dict(name="mlp", hidden=256, num_layers=4),
        **presets.compared(6000),
        sampling=dict(batch_size=500, threshold=dict(name="none")),
    )


def mnist() -> ConfigDict:
    return ddpm(
        network=presets.mnist_unet(),
        **presets.mnist(3000),
        sampling=dict(steps=100, batch_size=100),
    )


def cifar10() -> ConfigDict:
    return ddpm(
        variance="beta",
        network=presets.cifar10_unet(),
        **presets.cifar10(800_000),
    )


def paper_256(*, num_steps: int, **data: Any) -> ConfigDict:
    """The paper's setting at 256 x 256: no dropout, and a lower learning rate, as training was unstable."""
    return ddpm(
        network=dict(name="unet", channels=128, channel_mult=(1, 1, 2, 2, 4, 4), attention_resolutions=(16,)),
        data=dict(split="train", image_size=256, channels=3, path="", **data),
        training=dict(num_steps=num_steps, batch_size=64, checkpoint_every=10_000, sample_every=10_000),
        optimizer=dict(name="adam", learning_rate=2e-5, warmup_steps=5000, clip_norm=1.0),
        ema=dict(rates=(0.9999,), warmup=False),
        sampling=dict(num_samples=16, batch_size=16),
        evaluation=dict(metrics=(), after_training=False),
    )


def lsun_church() -> ConfigDict:
    return paper_256(num_steps=1_200_000, name="lsun/church_outdoor", eval_split="validation", flip=True)


def lsun_bedroom() -> ConfigDict:
    return paper_256(num_steps=2_400_000, name="lsun/bedroom", eval_split="validation", flip=False)


def celebahq256() -> ConfigDict:
    # TFDS has no other split of this set.
    return paper_256(num_steps=500_000, name="celeb_a_hq/256", eval_split="train", flip=True)


VARIANTS = {
    "digits": digits,
    "stacked_digits": stacked_digits,
    "mnist": mnist,
    "cifar10": cifar10,
    "lsun_church": lsun_church,
    "lsun_bedroom": lsun_bedroom,
    "celebahq256": celebahq256,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
