"""Progressive distillation: a student samples in half as many steps as its teacher, then teaches (arXiv:2202.00512).

    python -m diffusion_jax.main --config=configs/ddpm.py --workdir=runs/ddpm
    python -m diffusion_jax.main --config=configs/progressive_distillation.py --workdir=runs/distilled

Without a variant, the run of `ddpm.py` on the 8 x 8 digits of scikit-learn, sampled with DDIM in 64 steps, is distilled
to 32, 16, 8 and 4, in minutes on two CPU cores. To go on to 2 steps and to one:

    python -m diffusion_jax.main --config=configs/progressive_distillation.py --workdir=runs/distilled \\
        --config.training.num_steps=8000 --config.sampling.steps=1

`cifar10` and `imagenet64` are the authors' setting, from 8192 and 1024 steps to one, for the teachers of their own that
`cifar10_teacher` and `imagenet64_teacher` train. The paper reports FID 3.0 on CIFAR-10 in four steps.

    python -m diffusion_jax.main --config=configs/progressive_distillation.py:cifar10_teacher \\
        --workdir=runs/distillation_teacher_cifar10
    python -m diffusion_jax.main --config=configs/progressive_distillation.py:cifar10 --workdir=runs/distilled_cifar10
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def distillation(*, teacher: str, teacher_config: str, teacher_steps: int, stages: tuple[int, ...], **sections: Any):
    """The sections that all variants share: DDIM on uniform times, and a learning rate that falls in every stage."""
    config = replace(
        defaults(),
        system=dict(
            name="progressive_distillation",
            teacher=teacher,
            teacher_config=teacher_config,
            teacher_steps=teacher_steps,
            stages=stages,
        ),
        weighting=dict(name="truncated_snr"),
        solver=dict(name="ddim"),
        ema=dict(rates=()),
        sampling=dict(grid=dict(name="uniform", t_min=0.0)),
    )
    config = replace(config, **sections)
    config.optimizer = ConfigDict({**config.optimizer, "schedule": "sawtooth", "stages": stages, "warmup_steps": 0})
    return config


def digits() -> ConfigDict:
    """The stages to 2 steps and to 1 are the last two, which training.num_steps leaves out."""
    return distillation(
        teacher="runs/ddpm",
        teacher_config="configs/ddpm.py:digits",
        teacher_steps=64,
        stages=(1000, 1000, 1000, 1000, 2000, 2000),
        process=dict(name="discrete_vp", betas="cosine", num_steps=1000),
        parameterization=dict(name="edm", sigma_data=0.5),
        network=dict(name="mlp", hidden=512, num_layers=4),
        training=dict(num_steps=4000, batch_size=128, log_every=100),
        optimizer=dict(name="adam", learning_rate=3e-4, clip_norm=1.0),
        sampling=dict(steps=4, batch_size=500),
    )


CIFAR10 = dict(
    name="adm",
    model_channels=256,
    channel_mult=(1, 1, 1),
    num_res_blocks=3,
    attention_resolutions=(16, 8),
    num_heads=1,
    num_head_channels=None,
)
IMAGENET64 = dict(name="adm", num_classes=1000)
IMAGENET64_DATA = dict(name="folder", split="train", eval_split="train", image_size=64, channels=3)


def authors(*, parameterization: str) -> dict[str, dict[str, Any]]:
    """The authors' process, with the cosine cut off where log SNR is 20 and -20, and what the network predicts."""
    return dict(
        process=dict(name="truncated_cosine", log_snr_max=20.0, log_snr_min=-20.0),
        parameterization=dict(name=parameterization, label="time"),
    )


def large(*, learning_rate: float, num_steps: int, batch_size: int, **optimizer: Any) -> dict[str, dict[str, Any]]:
    return dict(
        training=dict(num_steps=num_steps, batch_size=batch_size, checkpoint_every=10_000, sample_every=50_000),
        optimizer=dict(learning_rate=learning_rate, clip_norm=1.0, **optimizer),
        evaluation=dict(metrics=(), after_training=False),
    )


def cifar10() -> ConfigDict:
    return distillation(
        teacher="runs/distillation_teacher_cifar10",
        teacher_config="configs/progressive_distillation.py:cifar10_teacher",
        teacher_steps=8192,
        stages=(50_000,) * 13,
        **authors(parameterization="x0"),
        network=dict(CIFAR10),
        data=presets.cifar10_data(flip=True),
        **large(name="adam", learning_rate=5e-5, num_steps=650_000, batch_size=128),
        sampling=dict(steps=1),
    )


def imagenet64() -> ConfigDict:
    return distillation(
        teacher="runs/distillation_teacher_imagenet64",
        teacher_config="configs/progressive_distillation.py:imagenet64_teacher",
        teacher_steps=1024,
        stages=(50_000,) * 10,
        **authors(parameterization="v"),
        network=dict(IMAGENET64),
        data=dict(IMAGENET64_DATA, path="", flip=True),
        **large(name="adam", learning_rate=1e-4, num_steps=500_000, batch_size=2048),
        sampling=dict(steps=1),
    )


def trained(*, parameterization: str, **sections: Any) -> ConfigDict:
    """A teacher: the authors' diffusion model, trained in continuous time and sampled by DDIM in 1024 steps."""
    config = replace(
        defaults(),
        **authors(parameterization=parameterization),
        weighting=dict(name="truncated_snr"),
        times=dict(name="uniform", t_min=0.0),
        solver=dict(name="ddim"),
        ema=dict(rates=(0.9999,), warmup=False),
        sampling=dict(steps=1024, grid=dict(name="uniform", t_min=0.0), threshold=dict(name="static")),
    )
    return replace(config, **sections)


def cifar10_teacher() -> ConfigDict:
    optimizer = dict(name="adamw", learning_rate=2e-4, warmup_steps=1000, weight_decay=0.001, decay="all")
    return trained(
        parameterization="x0",
        network=dict(CIFAR10, dropout=0.2),
        data=presets.cifar10_data(flip=True),
        **large(num_steps=800_000, batch_size=128, **optimizer),
    )


def imagenet64_teacher() -> ConfigDict:
    return trained(
        parameterization="v",
        network=dict(IMAGENET64, dropout=0.1),
        data=dict(IMAGENET64_DATA, path="", flip=True),
        **large(name="adam", learning_rate=3e-4, num_steps=550_000, batch_size=2048, warmup_steps=1000),
    )


VARIANTS = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar10_teacher": cifar10_teacher,
    "imagenet64": imagenet64,
    "imagenet64_teacher": imagenet64_teacher,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
