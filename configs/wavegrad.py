"""WaveGrad: a vocoder that is conditioned on the continuous noise level (arXiv:2009.00713).

    python -m diffusion_jax.main --config=configs/wavegrad.py --workdir=runs/wavegrad --config.data.path=FOLDER
    python -m diffusion_jax.main --config=configs/wavegrad.py --workdir=runs/wavegrad --config.data.path=FOLDER \\
        --config.data.length=6144 --config.sampling.format=wav --mode=sample

Without a variant, a small network is trained on spoken digits; FOLDER is that of configs/diffwave.py. As the network
reads the noise level itself, any noise schedule can be sampled with it: `config.sampling.grid=dict(name="betas",
values=...)`. `base` is the paper's network and training, for recordings of 24 kHz.

The loss is the mean absolute error of eps. Its minimum is the median, not the mean, of what x_0 can be, so that the
denoiser is not quite E[x_0 | x_t].
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def wavegrad(**sections: Any) -> ConfigDict:
    """The sections that all variants share: noise levels between those of 1000 linear steps, and the L1 loss."""
    config = replace(
        defaults(),
        process=dict(name="discrete_vp", betas="linear", num_steps=1000, beta_start=1e-6, beta_end=0.01),
        parameterization=dict(name="eps", label="alpha"),
        times=dict(name="uniform", t_min=1e-5, t_max=1.0),
        loss=dict(name="denoising", norm="l1"),
        solver=dict(name="ancestral"),
        sampling=dict(steps=1000, num_samples=16, batch_size=16, grid=dict(name="discrete")),
    )
    return replace(config, **sections)


def fsdd() -> ConfigDict:
    return wavegrad(
        network=dict(name="wavegrad", num_mels=40, factors=(4, 4, 2, 2), channels=(96, 64, 48, 32), first=96),
        data=presets.fsdd(length=2048),
        training=dict(num_steps=2000, batch_size=8, log_every=50, checkpoint_every=200, sample_every=0),
        optimizer=presets.adam(1e-3, warmup_steps=100),
        ema=dict(rates=(0.995,)),
        sampling=dict(steps=50, grid=dict(name="quadratic", t_min=0.0)),
        evaluation=dict(num_samples=60),
    )


def base() -> ConfigDict:
    mel = dict(n_fft=2048, window=1200, hop=300, num_mels=128, f_min=20.0)
    splits = dict(split="train[:99%]", eval_split="train[99%:]")
    return wavegrad(
        network=dict(
            name="wavegrad", num_mels=128, factors=(5, 5, 3, 2, 2), channels=(512, 512, 256, 128, 128), first=768
        ),
        data=dict(name="audio", **splits, path="", sample_rate=24_000, length=7200, mel=mel),
        training=dict(num_steps=1_000_000, batch_size=256, checkpoint_every=10_000, sample_every=10_000),
        optimizer=dict(name="adam", learning_rate=2e-4, clip_norm=1.0),
        evaluation=dict(metrics=(), after_training=False),
    )


VARIANTS = {"fsdd": fsdd, "base": base}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "fsdd")()
