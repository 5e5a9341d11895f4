"""DiffWave: diffusion models of waveforms, as a vocoder of mel spectrograms or without one (arXiv:2009.09761).

    python -m diffusion_jax.main --config=configs/diffwave.py --workdir=runs/diffwave --config.data.path=FOLDER
    python -m diffusion_jax.main --config=configs/diffwave.py --workdir=runs/diffwave --config.data.path=FOLDER \\
        --config.data.length=6144 --config.sampling.format=wav --mode=sample

FOLDER holds .wav or .flac files. Without a variant it is recordings/ of the Free Spoken Digit Dataset
(github.com/Jakobovski/free-spoken-digit-dataset, 8 kHz), whose recordings 0 to 4 of each speaker and digit are held
out. A small network is trained on crops of 2048 samples; it vocodes mel spectrograms of any length. docs/audio.md has
the figures. `fsdd_specgrad` shapes the noise of this vocoder by the mel spectrogram. `fsdd_unconditional` is the same
without a mel spectrogram, and `fsdd_bandwidth` extends recordings of half the bandwidth with that model.

`ljspeech_base` and `ljspeech_large` are the paper's vocoders, and `ljspeech_fast` samples the first in 6 steps;
`sc09`, `sc09_deep_thin` and `sc09_class`, by class, are its models without a spectrogram, of words of 16,000 samples in
folders of their names.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace

FAST = (1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5)


def diffwave(num_steps: int = 50, beta_end: float = 0.05, **sections: Any) -> ConfigDict:
    """The sections that all variants share: eps-prediction on T linear steps, and ancestral sampling of all of them."""
    config = replace(
        defaults(),
        **presets.ddpm(num_steps=num_steps, beta_start=1e-4, beta_end=beta_end),
        solver=dict(name="ancestral"),
        sampling=dict(steps=num_steps, num_samples=16, batch_size=16, grid=dict(name="discrete")),
    )
    return replace(config, **sections)


def fsdd(num_mels: int = 40, upsample: tuple[int, ...] = (8, 8)) -> ConfigDict:
    """A small vocoder of spoken digits."""
    sizes = dict(residual_channels=24, residual_layers=6, dilation_cycle=6)
    return diffwave(
        network=dict(name="diffwave", num_mels=num_mels, upsample=upsample, **sizes),
        data=presets.fsdd(length=2048),
        training=dict(num_steps=8000, batch_size=4, log_every=50, checkpoint_every=500, sample_every=0),
        optimizer=presets.adam(2e-3, warmup_steps=50),
        ema=dict(rates=(0.99,)),
        evaluation=dict(num_samples=60),
    )


def fsdd_unconditional() -> ConfigDict:
    return fsdd(num_mels=0)


def fsdd_specgrad() -> ConfigDict:
    """The vocoder with noise that has the spectral envelope of the mel spectrogram (arXiv:2203.16749)."""
    return replace(fsdd(), system=dict(name="specgrad"), training=dict(num_steps=4000))


def fsdd_bandwidth() -> ConfigDict:
    """Spoken digits of half the bandwidth, extended by the model of `fsdd_unconditional`."""
    config = fsdd_unconditional()
    config.sampling.file = "bandwidth"
    config.evaluation.metrics = ("bandwidth",)
    return replace(config, editing=dict(name="bandwidth", keep=0.5))


def paper(*, channels: int, layers: int, cycle: int, num_steps: int, beta_end: float, **options: Any) -> ConfigDict:
    """The paper's training: Adam at 2e-4 on batches of 16, a million steps."""
    network = dict(name="diffwave", residual_channels=channels, residual_layers=layers, dilation_cycle=cycle)
    data = options.pop("data")
    return diffwave(
        num_steps=num_steps,
        beta_end=beta_end,
        network={**network, **options},
        data=dict(name="audio", path="", **data),
        training=dict(num_steps=1_000_000, batch_size=16, checkpoint_every=10_000, sample_every=10_000),
        optimizer=dict(name="adam", learning_rate=2e-4, clip_norm=0.0),
        evaluation=dict(metrics=(), after_training=False),
    )


def ljspeech(channels: int, num_steps: int, beta_end: float) -> ConfigDict:
    """Mel spectrograms of 80 mels and clips of 62 frames, as in the public implementation lmnt-com/diffwave."""
    mel = dict(n_fft=1024, hop=256, num_mels=80, f_min=20.0)
    splits = dict(split="train[:99%]", eval_split="train[99%:]")
    return paper(
        channels=channels,
        layers=30,
        cycle=10,
        num_steps=num_steps,
        beta_end=beta_end,
        num_mels=80,
        upsample=(16, 16),
        data=dict(**splits, sample_rate=22_050, length=62 * 256, mel=mel),
    )


def ljspeech_base() -> ConfigDict:
    return ljspeech(64, 50, 0.05)


def ljspeech_large() -> ConfigDict:
    return ljspeech(128, 200, 0.02)


def ljspeech_fast() -> ConfigDict:
    return replace(ljspeech_base(), sampling=dict(steps=len(FAST), grid=dict(name="betas", values=FAST)))


def sc09(channels: int = 256, layers: int = 36, **options: Any) -> ConfigDict:
    """Ten spoken words. A mel spectrogram is for pictures only."""
    names = dict(pattern=r"(?P<label>[a-z]+)/.+", split="train[:90%]", eval_split="train[90%:]")
    data = dict(sample_rate=16_000, length=16_000, mel=dict(n_fft=1024, hop=256, num_mels=64), **names)
    sizes = dict(channels=channels, layers=layers, cycle=12, num_steps=200, beta_end=0.02)
    return paper(**sizes, num_mels=0, data=data, **options)


def sc09_deep_thin() -> ConfigDict:
    return sc09(channels=128, layers=48)


def sc09_class() -> ConfigDict:
    return sc09(num_classes=10)


VARIANTS = {
    "fsdd": fsdd,
    "fsdd_specgrad": fsdd_specgrad,
    "fsdd_unconditional": fsdd_unconditional,
    "fsdd_bandwidth": fsdd_bandwidth,
    "ljspeech_base": ljspeech_base,
    "ljspeech_large": ljspeech_large,
    "ljspeech_fast": ljspeech_fast,
    "sc09": sc09,
    "sc09_deep_thin": sc09_deep_thin,
    "sc09_class": sc09_class,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "fsdd")()
