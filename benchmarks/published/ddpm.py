"""Published values of DDPM, improved DDPM and ADM, with their classifiers."""

from __future__ import annotations

from benchmarks.published.entry import Published

DDPM = "DDPM (arXiv:2006.11239)"
IDDPM = "Improved DDPM (arXiv:2102.09672)"
ADM = "ADM (arXiv:2105.05233)"
_DDPM_CODE = "hojonathanho/diffusion"
_IDDPM_CODE = "openai/improved-diffusion"
_ADM_CODE = "openai/guided-diffusion"
_DDPM_SHARED = {
    f"{_DDPM_CODE} diffusion_tf/tpu_utils/tpu_utils.py:89,103": {"ema.rates": (0.9999,), "ema.warmup": False},
}
_DDPM_256 = {
    "training.batch_size": 64,
    "optimizer.clip_norm": 1.0,
    "optimizer.learning_rate": 2e-5,
    "optimizer.warmup_steps": 5000,
    "process.num_steps": 1000,
    "process.betas": "linear",
}
_DDPM_STEPS = "The number of steps is that of appendix B of the paper and was not confirmed in the repository."
_IDDPM_SHARED = {
    f"{_IDDPM_CODE} scripts/image_train.py:65-69": {
        "optimizer.weight_decay": 0.0,
        "ema.rates": (0.9999,),
        "ema.warmup": False,
    },
}
_IDDPM_UNSCALED = {"parameterization.label": "index"}
_ADM_SHARED = {
    f"{_ADM_CODE} scripts/image_train.py:65-69": {
        "optimizer.weight_decay": 0.0,
        "ema.rates": (0.9999,),
        "ema.warmup": False,
    },
    f"{_ADM_CODE} guided_diffusion/image_datasets.py:19": {"data.flip": True},
    f"{_ADM_CODE} README.md:38": {"sampling.steps": 250, "solver.variance": "learned"},
}
_ADM_DIFFERENCES = (
    "Batch, learning rate and number of steps are those of tables 11 and 12 of the paper; they are in no file of the "
    "repository and were not confirmed.",
)

TABLE: tuple[Published, ...] = (
    Published(
        paper=DDPM,
        variants=("ddpm:cifar10",),
        values={
            f"{_DDPM_CODE} scripts/run_cifar.py:134-137": {
                "training.batch_size": 128,
                "optimizer.clip_norm": 1.0,
                "optimizer.learning_rate": 2e-4,
                "optimizer.warmup_steps": 5000,
                "process.num_steps": 1000,
                "process.betas": "linear",
                "solver.variance": "beta",
                "network.dropout": 0.1,
                "data.flip": True,
            },
            **_DDPM_SHARED,
        },
        differences=(_DDPM_STEPS,),
    ),
    Published(
        paper=DDPM,
        variants=("ddpm:lsun_church", "ddpm:lsun_bedroom"),
        values={f"{_DDPM_CODE} scripts/run_lsun.py:118-120": _DDPM_256, **_DDPM_SHARED},
        differences=(
            _DDPM_STEPS,
            "Bedrooms are not flipped, as appendix B of the paper says; the command of the repository flips them.",
        ),
    ),
    Published(
        paper=DDPM,
        variants=("ddpm:celebahq256",),
        values={
            f"{_DDPM_CODE} scripts/run_celebahq.py:134-136": {**_DDPM_256, "data.flip": True},
            **_DDPM_SHARED,
        },
        differences=(_DDPM_STEPS,),
    ),
    Published(
        paper=IDDPM,
        variants=("iddpm:cifar10_hybrid", "iddpm:cifar10_vlb"),
        values={
            f"{_IDDPM_CODE} README.md:95-97,143-145": {
                "network.model_channels": 128,
                "network.dropout": 0.3,
                "process.num_steps": 4000,
                "process.betas": "cosine",
                "training.batch_size": 128,
                "training.num_steps": 500_000,
                "optimizer.learning_rate": 1e-4,
            },
            f"{_IDDPM_CODE} improved_diffusion/script_util.py:31-32": {"parameterization.label": "timestep"},
            **_IDDPM_SHARED,
        },
    ),
    Published(
        paper=IDDPM,
        variants=("iddpm:imagenet64_hybrid", "iddpm:imagenet64_vlb"),
        values={
            f"{_IDDPM_CODE} README.md:87-89,135-137": {
                "network.model_channels": 128,
                "process.num_steps": 4000,
                "process.betas": "cosine",
                "training.batch_size": 128,
                "training.num_steps": 1_500_000,
                "optimizer.learning_rate": 1e-4,
            },
            **_IDDPM_SHARED,
        },
    ),
    Published(
        paper=IDDPM,
        variants=("iddpm:imagenet64_cond",),
        values={
            f"{_IDDPM_CODE} README.md:100-105": {
                "network.model_channels": 192,
                "network.num_classes": 1000,
                "process.num_steps": 4000,
                "process.betas": "cosine",
                "training.batch_size": 2048,
                "training.num_steps": 250_000,
                "optimizer.learning_rate": 3e-4,
                "loss.vlb_weight": 1 / 4000,
                **_IDDPM_UNSCALED,
            },
            **_IDDPM_SHARED,
        },
    ),
    Published(
        paper=IDDPM,
        variants=("iddpm:upsampler_64_256",),
        values={
            f"{_IDDPM_CODE} README.md:108-113": {
                "network.model_channels": 192,
                "network.num_res_blocks": 2,
                "network.num_classes": 1000,
                "process.num_steps": 4000,
                "process.betas": "linear",
                "training.batch_size": 256,
                "training.num_steps": 500_000,
                "optimizer.learning_rate": 3e-4,
                "loss.vlb_weight": 1 / 4000,
                **_IDDPM_UNSCALED,
            },
            **_IDDPM_SHARED,
        },
    ),
    Published(
        paper=IDDPM,
        variants=("iddpm:lsun_bedroom256",),
        values={
            f"{_IDDPM_CODE} README.md:116-121": {
                "network.num_heads": 1,
                "network.use_scale_shift_norm": False,
                "network.attention_resolutions": (16,),
                "process.num_steps": 1000,
                "process.betas": "linear",
                "training.batch_size": 128,
                "training.num_steps": 1_200_000,
                "optimizer.learning_rate": 1e-4,
                **_IDDPM_UNSCALED,
            },
            **_IDDPM_SHARED,
        },
    ),
    Published(
        paper=IDDPM,
        variants=("iddpm:lsun_bedroom256_lr2e5",),
        values={
            f"{_IDDPM_CODE} README.md:124-129": {
                "process.num_steps": 1000,
                "process.betas": "linear",
                "training.batch_size": 128,
                "training.num_steps": 2_400_000,
                "optimizer.learning_rate": 2e-5,
                **_IDDPM_UNSCALED,
            },
            **_IDDPM_SHARED,
        },
        differences=(
            "The name of the authors' file, lsun_uncond_100M_2400K_bs64.pt, has a batch of 64, their flags 128.",
        ),
    ),
    Published(
        paper=ADM,
        variants=("adm:imagenet64",),
        values={
            f"{_ADM_CODE} README.md:49": {
                "network.dropout": 0.1,
                "network.num_classes": 1000,
                "network.use_new_attention_order": True,
                "process.betas": "cosine",
                "process.num_steps": 1000,
            },
            **_ADM_SHARED,
        },
        differences=_ADM_DIFFERENCES,
    ),
    Published(
        paper=ADM,
        variants=("adm:imagenet128", "adm:imagenet256", "adm:imagenet512", "adm:imagenet256_uncond"),
        values={
            f"{_ADM_CODE} README.md:56-77": {
                "network.model_channels": 256,
                "network.num_res_blocks": 2,
                "process.betas": "linear",
                "process.num_steps": 1000,
            },
            **_ADM_SHARED,
        },
        differences=_ADM_DIFFERENCES,
    ),
    Published(
        paper=ADM,
        variants=("adm:lsun_bedroom256",),
        values={
            f"{_ADM_CODE} README.md:104": {
                "network.dropout": 0.1,
                "network.model_channels": 256,
                "network.num_res_blocks": 2,
                "process.betas": "linear",
            },
            **_ADM_SHARED,
        },
        differences=(*_ADM_DIFFERENCES, "The authors' best samples took 1000 steps (README.md:118)."),
    ),
    Published(
        paper=ADM,
        variants=("adm:upsampler_64_256", "adm:upsampler_128_512"),
        values={
            f"{_ADM_CODE} README.md:88-95": {
                "network.model_channels": 192,
                "network.num_res_blocks": 2,
                "network.num_classes": 1000,
                "process.betas": "linear",
            },
            **_ADM_SHARED,
        },
        differences=_ADM_DIFFERENCES,
    ),
    Published(
        paper=ADM,
        variants=(
            "noisy_classifier:imagenet64",
            "noisy_classifier:imagenet128",
            "noisy_classifier:imagenet256",
            "noisy_classifier:imagenet512",
        ),
        values={
            f"{_ADM_CODE} README.md:160": {
                "training.num_steps": 300_000,
                "training.batch_size": 256,
                "optimizer.learning_rate": 3e-4,
                "optimizer.schedule": "linear",
                "optimizer.weight_decay": 0.05,
            },
            f"{_ADM_CODE} scripts/classifier_train.py:79,92": {
                "optimizer.name": "adamw",
                "optimizer.decay": "all",
                "optimizer.clip_norm": 0.0,
                "ema.rates": (),
                "data.crop": "random",
                "data.flip": True,
            },
        },
        differences=(
            "The authors publish how they train the classifier for 128 x 128; the others are trained so here.",
        ),
    ),
)
