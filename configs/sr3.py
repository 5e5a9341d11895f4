"""SR3: super-resolution by a diffusion model of the large image given the small one (arXiv:2104.07636).

    python -m diffusion_jax.main --config=configs/sr3.py --workdir=runs/sr3
    python -m diffusion_jax.main --config=configs/sr3.py --workdir=runs/sr3 --mode=sample
    python -m diffusion_jax.main --config=configs/sr3.py:mnist --workdir=runs/sr3_mnist --config.data.path=FOLDER

Without a variant, 4 x 4 digits are enlarged to 8 x 8 pixels, in minutes on two CPU cores; `mnist` goes from 7 x 7 to
28 x 28. The small images are averages of the large ones: in training and evaluation of examples of the data, and in
sampling also those in --config.sampling.cond=FILE. Evaluation prints the PSNR of samples, of their means
(--config.evaluation.samples_per_condition=8) and of bicubic interpolation.

`faces_16_128` and `faces_64_512` are the settings of a public reimplementation for faces, on a folder of pictures:
eps-prediction with an L1 loss on a table of 2000 betas, at continuous noise levels between its points.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def sr3(*, steps: int, **sections: Any) -> ConfigDict:
    """The sections that all variants share. Uniform times on the table give uniform alpha^2 between its points."""
    config = replace(
        defaults(),
        system=dict(name="super_resolution"),
        process=dict(name="discrete_vp", betas="linear", num_steps=2000, beta_start=1e-6, beta_end=1e-2),
        times=dict(name="uniform", t_min=0.0005),
        sampling=dict(steps=steps, threshold=dict(name="static")),
    )
    return replace(config, **sections)


def small(*, low_res: int, **sections: Any) -> ConfigDict:
    """v-prediction, whose low-frequency errors at high noise are not divided by alpha, in 25 steps of DDIM."""
    network = dict(model_channels=32, num_res_blocks=1, num_head_channels=16, num_groups=8)
    return sr3(
        steps=25,
        parameterization=dict(name="v", label="time"),
        solver=dict(name="ddim"),
        network=dict(name="adm", image_channels=1, low_res=low_res, attention_resolutions=(low_res,), **network),
        **sections,
    )


def digits() -> ConfigDict:
    config = small(low_res=4, **presets.digits(2000, batch_size=64), sampling=dict(batch_size=500))
    return replace(config, network=dict(channel_mult=(1, 2)))


def mnist() -> ConfigDict:
    config = small(low_res=7, **presets.mnist(3000), sampling=dict(num_samples=100, batch_size=100))
    return replace(config, network=dict(channel_mult=(1, 2, 2)), evaluation=dict(num_samples=1000))


def faces(low_res: int, image_size: int, *, batch_size: int, learning_rate: float, **network: Any) -> ConfigDict:
    sizes = dict(model_channels=64, image_channels=3, low_res=low_res)
    return sr3(
        steps=2000,
        parameterization=dict(name="eps", label="time"),
        loss=dict(name="denoising", norm="l1"),
        solver=dict(name="ancestral"),
        network=dict(name="adm", **sizes, **network),
        data=dict(name="folder", split="train", eval_split="train", image_size=image_size, channels=3, path=""),
        training=dict(num_steps=1_000_000, batch_size=batch_size, checkpoint_every=10_000, sample_every=10_000),
        optimizer=dict(name="adam", learning_rate=learning_rate, warmup_steps=0, clip_norm=0.0),
        ema=dict(rates=(0.9999,), warmup=False),
        sampling=dict(num_samples=16, batch_size=16, grid=dict(name="discrete", spacing="linspace")),
        evaluation=dict(metrics=(), after_training=False),
    )


def faces_16_128() -> ConfigDict:
    network = dict(channel_mult=(1, 2, 4, 8, 8), num_res_blocks=2, attention_resolutions=(16,), dropout=0.2)
    return faces(16, 128, batch_size=4, learning_rate=1e-4, **network)


def faces_64_512() -> ConfigDict:
    network = dict(channel_mult=(1, 2, 4, 8, 16), num_res_blocks=1, attention_resolutions=(), num_groups=16)
    return faces(64, 512, batch_size=2, learning_rate=3e-6, **network)


VARIANTS = {"digits": digits, "mnist": mnist, "faces_16_128": faces_16_128, "faces_64_512": faces_64_512}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
