"""Speech by class: a diffusion model of log-mel spectrograms, which Griffin-Lim makes audible.

    python -m diffusion_jax.main --config=configs/mel_diffusion.py --workdir=runs/mel_diffusion \\
        --config.data.path=FOLDER
    python -m diffusion_jax.main --config=configs/mel_diffusion.py --workdir=runs/mel_diffusion \\
        --config.data.path=FOLDER --config.sampling.cond=3,1,4 --config.sampling.format=wav --mode=sample

FOLDER is recordings/ of the Free Spoken Digit Dataset (github.com/Jakobovski/free-spoken-digit-dataset), whose
recordings 0 to 4 of each speaker and digit are held out. A network like DiffSinger's (arXiv:2105.02446), dilated
convolutions over the frames of a spectrogram, is trained on 24 frames of 32 mels under the digit, with classifier-free
guidance. Samples are spectrograms in samples.npz, and waveforms in samples.wav.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def fsdd() -> ConfigDict:
    network = dict(name="diffwave", residual_channels=96, residual_layers=6, dilation_cycle=3, num_classes=10)
    front_end = dict(features="mel", length=6144, n_fft=512, hop=256, num_mels=32)
    return replace(
        defaults(),
        system=dict(name="diffusion", cond_dropout=0.1),
        process=dict(name="discrete_vp", betas="cosine", num_steps=1000),
        parameterization=dict(name="edm", sigma_data=0.6, label="index"),
        network=network,
        data=presets.fsdd(**front_end, shift=1024),
        training=dict(num_steps=2000, batch_size=16, log_every=50, checkpoint_every=200, sample_every=0),
        optimizer=presets.adam(1e-3, warmup_steps=50),
        ema=dict(rates=(0.99,)),
        guidance=dict(name="classifier_free", scale=5.0),
        solver=dict(name="dpm_solver_pp"),
        sampling=dict(steps=20, num_samples=16, batch_size=100, grid=dict(name="discrete", spacing="trailing")),
        evaluation=dict(num_samples=200),
    )


VARIANTS = {"fsdd": fsdd}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "fsdd")()
