"""Published values of vocoders and of text to audio: DiffWave, WaveGrad and AudioLDM."""

from __future__ import annotations

from benchmarks.published.entry import Published

DIFFWAVE = "DiffWave (arXiv:2009.09761)"
WAVEGRAD = "WaveGrad (arXiv:2009.00713)"
AUDIOLDM = "AudioLDM (arXiv:2301.12503)"
_AUDIOLDM_CODE = "haoheliu/AudioLDM-training-finetuning"
_DIFFWAVE_CODE = "lmnt-com/diffwave"
_WAVEGRAD_CODE = "lmnt-com/wavegrad"
_TRAINING = {
    "training.batch_size": 16,
    "training.num_steps": 1_000_000,
    "optimizer.name": "adam",
    "optimizer.learning_rate": 2e-4,
    "process.beta_start": 1e-4,
}
_LJSPEECH = {
    **_TRAINING,
    "network.residual_layers": 30,
    "network.dilation_cycle": 10,
    "data.sample_rate": 22_050,
    "data.mel.n_fft": 1024,
    "data.mel.hop": 256,
    "data.mel.num_mels": 80,
}
_CROP = {f"{_DIFFWAVE_CODE} src/diffwave/params.py": {"data.length": 62 * 256, "network.upsample": (16, 16)}}
_BASE = {**_LJSPEECH, "network.residual_channels": 64, "process.num_steps": 50, "process.beta_end": 0.05}
_SC09 = {"data.length": 16_000, "data.sample_rate": 16_000, "process.num_steps": 200, "process.beta_end": 0.02}
_CLIPS = "Clips have 62 frames, 15,872 samples, as in lmnt-com/diffwave; the paper says 16,000."
_SPLIT = "A random percent of the recordings is held out."
_STEPS = "Batch and number of steps are those of LJSpeech; a random tenth of the recordings is held out."
_AUDIOLDM_DATA = {
    "data.sample_rate": 16_000,
    "data.length": 163_840,
    "data.mel.n_fft": 1024,
    "data.mel.hop": 160,
    "data.mel.num_mels": 64,
    "data.mel.f_min": 0.0,
    "data.mel.f_max": 8000.0,
}
_MELS = (
    "Spectrograms are in decibels, mapped to [-1, 1], by triangular filters on the mel scale of HTK; the authors' are "
    "natural logarithms by librosa's filters."
)
_WAVES = "Samples are made audible by Griffin-Lim; the authors have HiFi-GAN, which is not part of this project."


def _audioldm(name: str, channels: int, source: str, *differences: str) -> Published:
    return Published(
        paper=AUDIOLDM,
        variants=(f"audio_latent:{name}",),
        values={
            source: {"network.block_out_channels": tuple(channels * mult for mult in (1, 2, 3, 5))},
            f"{_AUDIOLDM_CODE} audioldm_train/config/2023_08_23_reproduce_audioldm/audioldm_original.yaml:15-146": {
                **_AUDIOLDM_DATA,
                "network.layers_per_block": 2,
                "network.transformer_layers": (0, 1, 1, 1),
                "network.cross_attention": False,
                "network.vector_dim": 512,
                "network.vector_concat": True,
                "process.betas": "scaled_linear",
                "process.beta_start": 0.0015,
                "process.beta_end": 0.0195,
                "process.num_steps": 1000,
                "parameterization.name": "eps",
                "system.normalize": "scale",
                "system.cond_dropout": 0.1,
                "training.batch_size": 2,
                "training.num_steps": 800_000,
                "optimizer.learning_rate": 1e-4,
                "optimizer.warmup_steps": 2000,
                "guidance.scale": 3.5,
                "sampling.steps": 200,
            },
            f"{_AUDIOLDM_CODE} audioldm_train/modules/latent_diffusion/ddpm.py:1058,1846": {
                "optimizer.name": "adamw",
                "optimizer.weight_decay": 0.01,
                "optimizer.decay": "all",
                "solver.name": "ddim",
                "solver.eta": 1.0,
            },
            f"{_AUDIOLDM_CODE} audioldm_train/modules/diffusionmodules/ema.py:6": {
                "ema.rates": (0.9999,),
                "ema.warmup": True,
            },
        },
        differences=(
            _MELS,
            _WAVES,
            "Embeddings of CLAP are read from a file, and the best of three samples is not chosen by them. The null "
            "condition is zeros; the authors' is the embedding of an empty text.",
            "The standard deviation of the latents is an average over the training of the first stage; the authors "
            "take that of the first batch.",
            "Heads have 1 / 4 of the channels of the first level, 32 in S, as in the authors' code; the copies of the "
            "checkpoints for diffusers have 8 heads at every level.",
            *differences,
        ),
    )


TABLE: tuple[Published, ...] = (
    Published(
        paper=AUDIOLDM,
        variants=("audio_latent:audioldm_first_stage",),
        values={
            f"{_AUDIOLDM_CODE} audioldm_train/config/2023_11_13_vae_autoencoder/16k_64.yaml:28-82": {
                **_AUDIOLDM_DATA,
                "network.block_out_channels": (128, 256, 512),
                "network.layers_per_block": 2,
                "network.latent_channels": 8,
                "system.discriminator.start": 50_001,
                "system.discriminator.weight": 0.5,
                "training.batch_size": 4,
                "training.num_steps": 800_000,
                "optimizer.learning_rate": 8e-6,
            },
            f"{_AUDIOLDM_CODE} audioldm_train/modules/diffusionmodules/distributions.py:48": {
                "system.kl_weight": 1000 / 32_768
            },
            f"{_AUDIOLDM_CODE} audioldm_train/modules/latent_encoder/autoencoder.py:483": {
                "optimizer.name": "adam",
                "optimizer.b1": 0.5,
                "optimizer.b2": 0.9,
                "ema.rates": (),
            },
        },
        differences=(
            _MELS,
            "There is no perceptual loss; the authors add LPIPS, a distance of photographs.",
            "Discriminator and autoencoder are updated in the same step, the authors alternate; the norms of the "
            "discriminator are GroupNorm instead of BatchNorm.",
            "The batch is that of one device; the authors' number of devices is not published.",
        ),
    ),
    _audioldm(
        "audioldm_s",
        128,
        f"{_AUDIOLDM_CODE} audioldm_train/config/2023_08_23_reproduce_audioldm/audioldm_original.yaml:116",
    ),
    _audioldm(
        "audioldm_m",
        192,
        f"{_AUDIOLDM_CODE} audioldm_train/config/2023_08_23_reproduce_audioldm/audioldm_original_medium.yaml:116",
    ),
    _audioldm(
        "audioldm_l",
        256,
        "cvssp/audioldm-l-full README.md",
        "Of L only the channels are published, twice those of S; everything else is that of S.",
    ),
    Published(
        paper=DIFFWAVE,
        variants=("diffwave:ljspeech_base",),
        values={"arXiv:2009.09761": {**_BASE, "sampling.steps": 50}, **_CROP},
        differences=(_CLIPS, _SPLIT),
    ),
    Published(
        paper=DIFFWAVE,
        variants=("diffwave:ljspeech_fast",),
        values={
            "arXiv:2009.09761": {
                **_BASE,
                "sampling.steps": 6,
                "sampling.grid.values": (1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5),
            },
            **_CROP,
        },
        differences=(_CLIPS, _SPLIT, "The state is not clipped to [-1, 1] between steps, as lmnt-com/diffwave does."),
    ),
    Published(
        paper=DIFFWAVE,
        variants=("diffwave:ljspeech_large",),
        values={
            "arXiv:2009.09761": {
                **_LJSPEECH,
                "network.residual_channels": 128,
                "process.num_steps": 200,
                "process.beta_end": 0.02,
            },
            **_CROP,
        },
        differences=(_CLIPS, _SPLIT),
    ),
    *(
        Published(
            paper=DIFFWAVE,
            variants=(f"diffwave:{name}",),
            values={
                "arXiv:2009.09761": {
                    **_TRAINING,
                    **_SC09,
                    "network.residual_channels": channels,
                    "network.residual_layers": layers,
                    "network.dilation_cycle": 12,
                }
            },
            differences=(_STEPS,),
        )
        for name, channels, layers in (("sc09", 256, 36), ("sc09_class", 256, 36), ("sc09_deep_thin", 128, 48))
    ),
    Published(
        paper=WAVEGRAD,
        variants=("wavegrad:base",),
        values={
            "arXiv:2009.00713": {
                "process.num_steps": 1000,
                "process.beta_start": 1e-6,
                "process.beta_end": 0.01,
                "loss.norm": "l1",
                "network.factors": (5, 5, 3, 2, 2),
                "network.channels": (512, 512, 256, 128, 128),
                "data.sample_rate": 24_000,
                "data.length": 7200,
                "data.mel.n_fft": 2048,
                "data.mel.window": 1200,
                "data.mel.hop": 300,
                "data.mel.num_mels": 128,
                "training.batch_size": 256,
                "training.num_steps": 1_000_000,
            },
            f"{_WAVEGRAD_CODE} src/wavegrad/params.py": {"optimizer.learning_rate": 2e-4, "optimizer.clip_norm": 1.0},
        },
        differences=(
            "Noise levels are uniform in t, where alpha^2 is linear between two of the thousand; the paper's are "
            "uniform in alpha. The difference is of the order of a beta.",
        ),
    ),
)
