"""Published values of vocoders and models of waveforms: DiffWave and WaveGrad."""

from __future__ import annotations

from benchmarks.published.entry import Published

DIFFWAVE = "DiffWave (arXiv:2009.09761)"
WAVEGRAD = "WaveGrad (arXiv:2009.00713)"
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

TABLE: tuple[Published, ...] = (
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
