"""AudioLDM: text to audio by latent diffusion of log-mel spectrograms (arXiv:2301.12503).

    python -m diffusion_jax.main --config=configs/audio_latent.py:fsdd_first_stage --workdir=runs/mel_autoencoder \\
        --config.data.path=FOLDER
    python -m diffusion_jax.main --config=configs/audio_latent.py --workdir=runs/audio_latent \\
        --config.data.path=FOLDER
    python -m diffusion_jax.main --config=configs/audio_latent.py --workdir=runs/audio_latent \\
        --config.data.path=FOLDER --config.sampling.cond="three|one by jackson" --config.sampling.format=wav \\
        --mode=sample

FOLDER is recordings/ of the Free Spoken Digit Dataset (github.com/Jakobovski/free-spoken-digit-dataset), whose
recordings 0 to 4 of each speaker and digit are held out. The first command trains an autoencoder of spectrograms of 24
frames and 32 mels, the second a U-Net on its latents, conditioned on words such as "seven" and "seven by theo", with a
text encoder of its own. Samples are spectrograms in samples.npz, and waveforms by Griffin-Lim in samples.wav.

`audioldm_first_stage`, `audioldm_s`, `audioldm_m` and `audioldm_l` are the paper's networks: spectrograms of 10.24 s at
16 kHz, and embeddings of CLAP instead of texts. FOLDER has the recordings in folders train and test, and
--config.data.vectors=FILE.npz their embeddings; samples are drawn under embeddings of texts in the array `vector` of
--config.sampling.cond=FILE.npz. CLAP and HiFi-GAN, which the authors make spectrograms audible with, are not part of
this project (docs/audio.md).
"""

import functools
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def digits() -> dict[str, Any]:
    """Spectrograms of spoken digits, by the front end of mel_diffusion.py."""
    data = presets.fsdd(n_fft=512, hop=256, num_mels=32, features="mel_image", shift=1024)
    return data | dict(pattern=r"(?P<label>\d)_(?P<speaker>[^_]+)_(?P<index>\d+)")


def fsdd_first_stage() -> ConfigDict:
    return presets.first_stage(
        system=dict(name="autoencoder_kl", kl_weight=1e-3, perceptual=dict(name="laplacian", weight=1.0)),
        network=dict(
            name="autoencoder_kl",
            block_out_channels=(8, 16, 32),
            layers_per_block=1,
            mid_block_add_attention=False,
            latent_channels=8,
            norm_num_groups=8,
        ),
        data=digits(),
        training=dict(num_steps=1000, batch_size=16, log_every=50, checkpoint_every=500, sample_every=0),
        sampling=dict(num_samples=8, batch_size=100),
        evaluation=dict(num_samples=300),
    )


def fsdd() -> ConfigDict:
    return replace(
        defaults(),
        system=dict(
            name="latent_diffusion",
            first_stage="runs/mel_autoencoder",
            first_stage_config="configs/audio_latent.py:fsdd_first_stage",
            cond_dropout=0.1,
        ),
        **presets.preconditioned(sigma_data=1.0)
        | dict(parameterization=dict(name="edm", sigma_data=1.0, label="index")),
        network=dict(
            name="unet",
            channels=48,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(6, 3),
            num_groups=8,
            token_dim=64,
            vocabulary=257,
            max_tokens=20,
            pool_tokens=True,
        ),
        data=digits() | dict(captions=presets.WORDS, templates=("{label}", "{label} by {speaker}")),
        training=dict(num_steps=4000, batch_size=16, log_every=50, checkpoint_every=500, sample_every=0),
        optimizer=presets.adam(1e-3, warmup_steps=50),
        ema=dict(rates=(0.995,)),
        guidance=dict(name="classifier_free", scale=4.0),
        solver=dict(name="dpm_solver_pp"),
        sampling=dict(steps=20, num_samples=16, batch_size=100),
        evaluation=dict(num_samples=200),
    )


def recordings(**data: Any) -> dict[str, Any]:
    """The front end of AudioLDM: 1024 frames of 64 mels."""
    mel = dict(n_fft=1024, hop=160, num_mels=64, f_min=0.0, f_max=8000.0)
    splits = dict(split="train", eval_split="test", path="")
    return dict(name="audio", **splits, sample_rate=16_000, length=163_840, features="mel_image", mel=mel, **data)


def audioldm_first_stage() -> ConfigDict:
    return presets.first_stage(
        # Theirs is 1000 times the mean over the 256 x 16 x 8 numbers of a latent.
        system=dict(
            name="autoencoder_kl",
            kl_weight=1000 / 32_768,
            discriminator=presets.adversarial(start=50_001)["discriminator"],
        ),
        network=dict(name="autoencoder_kl", block_out_channels=(128, 256, 512), layers_per_block=2, latent_channels=8),
        data=recordings(),
        training=dict(num_steps=800_000, batch_size=4, checkpoint_every=5000, sample_every=5000),
        optimizer=dict(name="adam", learning_rate=8e-6, schedule="constant", warmup_steps=0, b1=0.5, b2=0.9),
        ema=dict(rates=()),
        sampling=dict(num_samples=8, batch_size=4),
        evaluation=dict(metrics=(), after_training=False),
    )


def audioldm(channels: int) -> ConfigDict:
    """The paper's U-Net of a number of channels, of which heads have 1 / 4."""
    return replace(
        defaults(),
        system=dict(
            name="latent_diffusion",
            first_stage="runs/audioldm_autoencoder",
            first_stage_config="configs/audio_latent.py:audioldm_first_stage",
            normalize="scale",
            cond_dropout=0.1,
        ),
        **presets.ddpm("scaled_linear", beta_start=0.0015, beta_end=0.0195),
        network=dict(
            name="unet_2d_condition",
            block_out_channels=(channels, 2 * channels, 3 * channels, 5 * channels),
            layers_per_block=2,
            transformer_layers=(0, 1, 1, 1),
            num_attention_heads=(4, 8, 12, 20),
            cross_attention=False,
            vector_dim=512,
            vector_concat=True,
        ),
        data=recordings(vectors=""),
        training=dict(num_steps=800_000, batch_size=2, checkpoint_every=5000, sample_every=0),
        optimizer=dict(
            name="adamw", learning_rate=1e-4, weight_decay=0.01, decay="all", warmup_steps=2000, clip_norm=0.0
        ),
        ema=dict(rates=(0.9999,)),
        guidance=dict(name="classifier_free", scale=3.5),
        solver=dict(name="ddim", eta=1.0),
        sampling=dict(
            num_samples=4, batch_size=4, steps=200, grid=dict(name="discrete", spacing="leading", offset=1, end=1)
        ),
        evaluation=dict(metrics=(), after_training=False),
    )


VARIANTS = {
    "fsdd": fsdd,
    "fsdd_first_stage": fsdd_first_stage,
    "audioldm_first_stage": audioldm_first_stage,
    "audioldm_s": functools.partial(audioldm, 128),
    "audioldm_m": functools.partial(audioldm, 192),
    "audioldm_l": functools.partial(audioldm, 256),
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "fsdd")()
