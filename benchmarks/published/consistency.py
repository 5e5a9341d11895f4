"""Published values of consistency models."""

from __future__ import annotations

from typing import Any

from benchmarks.published.entry import Published

CM = "Consistency models (arXiv:2303.01469)"
_JCM, _CM = "openai/consistency_models_cifar10", "openai/consistency_models"
_WARMUP = (
    "The configs of the authors have a warm-up over 10 million images, which their rectified Adam does not use; the "
    "paper has none."
)


def _cifar10(
    variant: str, file: str, lines: str, launch: int, schedule: dict[str, Any], *differences: str
) -> Published:
    return Published(
        paper=CM,
        variants=(variant,),
        values={
            f"{_JCM} configs/{file}:{lines}": {
                "training.batch_size": 512,
                "training.num_steps": 800_000,
                "ema.rates": (0.9999,),
                "network.channel_mult": (2, 2, 2),
                "network.dropout": 0.0,
                "network.resample_filter": (1, 3, 3, 1),
                "network.encoder_type": "residual",
                "network.embedding_type": "fourier",
                "optimizer.name": "radam",
                "optimizer.clip_norm": 0.0,
                "parameterization.sigma_data": 0.5,
                **schedule,
            },
            f"{_JCM} launch.sh:{launch}": {"optimizer.learning_rate": 4e-4, "loss.name": "lpips"},
        },
        differences=(_WARMUP, *differences),
    )


def _torch(variant: str, line: int, *differences: str, **values: Any) -> Published:
    return Published(
        paper=CM,
        variants=(variant,),
        values={
            f"{_CM} scripts/launch.sh:{line}": {
                "loss.name": "lpips",
                "network.dropout": 0.0,
                **{name.replace("__", "."): value for name, value in values.items()},
            },
            f"{_CM} cm/script_util.py:30-31": {"process.sigma_min": 0.002, "process.sigma_max": 80.0},
        },
        differences=("Training is in float32 or bfloat16; the authors' is in float16.", *differences),
    )


_IMAGENET: dict[str, Any] = dict(
    training__batch_size=2048,
    ema__rates=(0.9999432189950708, 0.999, 0.9999),
    network__num_classes=1000,
    data__image_size=64,
)
_LSUN: dict[str, Any] = dict(
    training__batch_size=256,
    ema__rates=(0.9999432189950708, 0.9999, 0.99994),
    network__model_channels=256,
    network__num_res_blocks=2,
    network__use_scale_shift_norm=False,
    data__image_size=256,
)
_FIXED: dict[str, Any] = dict(
    system__schedule__name="fixed", system__schedule__points=40, system__target__name="ema", system__target__mu=0.95
)
_GROWING: dict[str, Any] = dict(
    system__schedule__name="scales",
    system__schedule__s0=2,
    system__target__name="scheduled",
    system__target__mu0=0.95,
)
_EDM_NETWORK = "The network is EDM's version of ADM's, as its teacher is `edm.py:imagenet64_adm`."

TABLE: tuple[Published, ...] = (
    _cifar10(
        "consistency:cifar10_cd",
        "cifar10_ve_cd.py",
        "15-75",
        23,
        {
            "system.pairs": "teacher",
            "system.solver": "heun",
            "system.start": "teacher",
            "system.schedule.points": 18,
            "times.rho": 7.0,
        },
        "The network has the input for labels of augmentation of the teacher of `edm.py`, which the authors' lacks.",
    ),
    _cifar10(
        "consistency:cifar10_ct",
        "cifar10_ve_ct_adaptive.py",
        "15-79",
        52,
        {
            "system.pairs": "shared_noise",
            "system.start": "random",
            "system.schedule.s0": 2,
            "system.schedule.s1": 150,
            "system.target.mu0": 0.9,
            "system.target.s0": 2,
        },
    ),
    Published(
        paper="Improved consistency training (arXiv:2310.14189)",
        variants=("consistency:cifar10_ict",),
        values={
            "arXiv:2310.14189": {
                "system.schedule.name": "doubling",
                "system.schedule.s0": 10,
                "system.schedule.s1": 1280,
                "system.target.name": "self",
                "times.mean": -1.1,
                "times.std": 2.0,
                "times.truncated": True,
                "loss.name": "huber",
                "loss.weight": "inverse_gap",
            }
        },
        differences=(
            "The authors published no code. Batch size, number of steps, learning rate, EMA rate and dropout of this "
            "variant could not be confirmed.",
            "The network is that of `cifar10_ct`; the paper's best is twice as deep.",
        ),
    ),
    Published(
        paper="Easy consistency tuning (arXiv:2406.14548)",
        variants=("consistency:cifar10_ect",),
        values={
            "locuslab/ect run_ecm.sh:2-7": {
                "training.batch_size": 128,
                "training.num_steps": 25_600_000 // 128,
                "system.schedule.stages": 25_600 // (250 * 12.8),
                "optimizer.name": "radam",
                "optimizer.learning_rate": 1e-4,
                "network.dropout": 0.2,
            },
            "locuslab/ect training/loss.py:33-37": {
                "times.mean": -1.1,
                "times.std": 2.0,
                "system.schedule.k": 8.0,
                "system.schedule.b": 1.0,
            },
        },
        differences=(
            "The boundary condition holds at sigma = 0.002 in training and sampling; the authors' holds at 0 in "
            "training and at 0.003 in evaluation.",
            "The norm is sqrt(d^2 + 1e-16), whose derivative at 0 is finite.",
        ),
    ),
    Published(
        paper="Continuous-time consistency models, sCM (arXiv:2410.11081)",
        variants=("consistency:cifar10_scm",),
        values={
            "NVlabs/FastGen fastgen/configs/methods/config_scm.py:33-55": {
                "times.mean": -1.0,
                "times.std": 1.8,
                "process.sigma_data": 0.5,
                "system.schedule.warmup_steps": 10_000,
                "system.schedule.c": 0.1,
            },
            "NVlabs/FastGen fastgen/configs/methods/config_scm.py:101-104": {
                "network.dropout": 0.2,
                "optimizer.b1": 0.9,
                "optimizer.b2": 0.99,
            },
        },
        differences=(
            "The authors published no code; the values are those of another implementation, for a start from EDM. "
            "Batch size, number of steps, learning rate and EMA rate could not be confirmed.",
            "The network is EDM's with its label log(sigma) / 4, without adaptive double normalisation.",
        ),
    ),
    _torch(
        "consistency:imagenet64_cd",
        25,
        _EDM_NETWORK,
        **_IMAGENET,
        **_FIXED,
        training__num_steps=600_000,
        optimizer__learning_rate=8e-6,
    ),
    _torch(
        "consistency:imagenet64_ct",
        38,
        _EDM_NETWORK,
        **_IMAGENET,
        **_GROWING,
        system__schedule__s1=200,
        training__num_steps=800_000,
        optimizer__learning_rate=1e-4,
    ),
    _torch(
        "consistency:lsun256_cd",
        31,
        **_LSUN,
        **_FIXED,
        training__num_steps=600_000,
        optimizer__learning_rate=1e-5,
    ),
    _torch(
        "consistency:lsun256_ct",
        41,
        **_LSUN,
        **_GROWING,
        system__schedule__s1=150,
        training__num_steps=1_000_000,
        optimizer__learning_rate=5e-5,
    ),
    Published(
        paper=CM,
        variants=("edm:lsun256_adm",),
        values={
            f"{_CM} scripts/launch.sh:7": {
                "training.batch_size": 256,
                "optimizer.learning_rate": 1e-4,
                "ema.rates": (0.9999432189950708,),
                "network.model_channels": 256,
                "network.num_res_blocks": 2,
                "network.use_scale_shift_norm": False,
                "network.dropout": 0.1,
            },
            f"{_CM} scripts/launch.sh:15": {"sampling.steps": 40},
        },
        differences=("The number of steps of the authors is not published with their code.",),
    ),
)
