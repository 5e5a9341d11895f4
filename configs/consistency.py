"""Consistency models: one network evaluation from noise to data (arXiv:2303.01469 and what followed).

    python -m diffusion_jax.main --config=configs/edm.py --workdir=runs/edm
    python -m diffusion_jax.main --config=configs/consistency.py --workdir=runs/consistency
    python -m diffusion_jax.main --config=configs/consistency.py:digits_ect --workdir=runs/ect
    python -m diffusion_jax.main --config=configs/consistency.py --workdir=runs/consistency --mode=evaluate \
        --config.sampling.steps=2

Without a variant, the run of `edm.py` on the 8 x 8 digits of scikit-learn is distilled (CD); config.system.teacher is
its work directory. `digits_ct` (consistency training), `digits_ict` (improved) and `digits_scm` (in continuous time,
TrigFlow, with that teacher) are the other ways to train one, and `digits_ect` (easy consistency tuning) the cheapest.
`stacked_digits` is for the comparison of families in docs/trilemma.md.

The full-size variants are `cifar10_{cd,ct}`, `imagenet64_{cd,ct}` and `lsun256_{cd,ct}` of arXiv:2303.01469, whose
distance LPIPS needs the files --config.loss.vgg and --config.loss.lin (config.loss.name=l2 does without),
`cifar10_ict` of arXiv:2310.14189, `cifar10_ect` of arXiv:2406.14548, and `cifar10_scm` of arXiv:2410.11081. Those that
start from a teacher, or are distilled from one, name in config.system.teacher_config the config that trains it.
"""

import functools
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace

TEACHERS = {
    "digits": ("runs/edm", "configs/edm.py"),
    "stacked_digits": ("runs/trilemma/edm", "configs/edm.py:stacked_digits"),
    "cifar10_ncsnpp": ("runs/edm_cifar10", "configs/edm.py:cifar10_ncsnpp"),
    "cifar10_ddpmpp": ("runs/edm_cifar10", "configs/edm.py:cifar10_ddpmpp"),
    "imagenet64": ("runs/edm_imagenet64", "configs/edm.py:imagenet64_adm"),
    "lsun256": ("runs/edm_lsun256", "configs/edm.py:lsun256_adm"),
}
NCSNPP = dict(
    name="song_unet",
    embedding_type="fourier",
    channel_mult_noise=2,
    encoder_type="residual",
    resample_filter=(1, 3, 3, 1),
)
DDPMPP = dict(name="song_unet", embedding_type="positional")


def consistency(system: dict[str, Any], teacher: str = "", **sections: Any) -> ConfigDict:
    """The sections that all variants share: EDM's process and preconditioning, and one step of sampling."""
    run, config_file = TEACHERS.get(teacher, ("", ""))
    run = dict(teacher=run, teacher_config=config_file) if teacher else {}
    config = replace(
        defaults(),
        system=dict(name="consistency", **run, **system),
        process=dict(name="edm", sigma_min=0.002, sigma_max=80.0),
        parameterization=dict(name="consistency", sigma_data=0.5),
        times=dict(name="karras", rho=7.0),
        solver=dict(name="consistency"),
        sampling=dict(steps=1, grid=dict(name="karras", rho=7.0)),
    )
    return replace(config, **sections)


# The ways to learn: what config.system and the sections beside it are for each.


def distilled(points: int, **target: Any) -> dict[str, Any]:
    """Consistency distillation: a Heun step of the teacher between neighbours of a fixed grid."""
    target = dict(target=dict(name="ema", **target)) if target else {}
    schedule = dict(name="fixed", points=points)
    return dict(pairs="teacher", solver="heun", start="teacher", schedule=schedule, **target)


def trained(s0: int, s1: int, mu0: float) -> dict[str, Any]:
    """Consistency training: N(k) and mu(k) of the authors' code."""
    return dict(
        pairs="shared_noise",
        start="random",
        schedule=dict(name="scales", s0=s0, s1=s1),
        target=dict(name="scheduled", s0=s0, mu0=mu0, variant="authors"),
    )


def improved(s1: int) -> dict[str, Any]:
    """The sections of improved consistency training, whose number of points doubles from 10 to `s1`."""
    return dict(
        system=dict(
            pairs="shared_noise",
            start="random",
            schedule=dict(name="doubling", s0=10, s1=s1),
            target=dict(name="self"),
        ),
        times=dict(name="log_normal", mean=-1.1, std=2.0, truncated=True),
        loss=dict(name="huber", weight="inverse_gap"),
    )


def easy(stages: int, c: float = 1e-8) -> dict[str, Any]:
    """The sections of easy consistency tuning, whose distance is the norm itself."""
    return dict(
        system=dict(pairs="shared_noise", schedule=dict(name="ratio", q=2.0, k=8.0, b=1.0, stages=stages)),
        times=dict(name="log_normal", mean=-1.1, std=2.0),
        loss=dict(name="huber", c=c, weight="inverse_gap"),
    )


def continuous(pairs: str, warmup_steps: int, *, std: float, c: float = 0.1) -> dict[str, Any]:
    """The sections of consistency models in continuous time. The network keeps EDM's label, log(sigma) / 4."""
    return dict(
        system=dict(pairs=pairs, schedule=dict(name="continuous", warmup_steps=warmup_steps, c=c)),
        process=dict(name="trig", sigma_data=0.5),
        parameterization=dict(name="edm", sigma_data=0.5),
        times=dict(name="log_normal", mean=-1.0, std=std),
        loss=dict(name="l2"),
        sampling=dict(steps=1, grid=dict(name="noise_levels", values=(80.0,))),
    )


def digits(
    *,
    system: dict[str, Any],
    num_steps: int = 4000,
    learning_rate: float = 5e-4,
    teacher: str = "digits",
    sampling: dict[str, Any] | None = None,
    **sections: Any,
) -> ConfigDict:
    """A variant of the digits, with the network of `edm.py`, which most of them start from.

    The gradient of f by the output of the network is c_out, which is about sigma for little noise. Without a weight
    these times are forgotten in the first hundred steps, and all others learn from them.
    """
    shared = presets.digits(num_steps)
    shared["optimizer"] = presets.adam(learning_rate)
    return consistency(
        **(dict(loss=dict(name="huber", weight="inverse_gap")) | sections),
        system=system,
        teacher=teacher,
        network=dict(name="mlp", hidden=512, num_layers=4),
        **shared,
        sampling=dict(batch_size=500) | (sampling or {}),
    )


def stacked_digits() -> ConfigDict:
    sections = presets.compared(4000)
    sections["optimizer"] = presets.adam(5e-4)
    network = dict(name="mlp", hidden=256, num_layers=4)
    return replace(digits(system=distilled(18), teacher="stacked_digits"), network=network, **sections)


def paper(
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    ema: tuple[float, ...],
    data: dict[str, Any],
    optimizer: dict[str, Any] | None = None,
    **sections: Any,
) -> ConfigDict:
    """A full-size variant: rectified Adam without warm-up, weight decay and clipping, as in the authors' code."""
    return consistency(
        **sections,
        data=dict(channels=3, path="") | data,
        training=dict(num_steps=num_steps, batch_size=batch_size, checkpoint_every=5000, sample_every=10_000),
        optimizer=dict(name="radam", learning_rate=learning_rate, warmup_steps=0, clip_norm=0.0) | (optimizer or {}),
        ema=dict(rates=ema, warmup=False),
        evaluation=dict(metrics=(), after_training=False),
    )


LPIPS = dict(name="lpips", vgg="", lin="")
CIFAR10 = dict(name="cifar10", split="train", eval_split="test", image_size=32)
FOLDER = dict(name="folder", split="train", eval_split="train")


def cifar10(architecture: dict[str, Any], *, dropout: float = 0.0, teacher: str = "", **sections: Any) -> ConfigDict:
    """CIFAR-10 without classes. A network that is a copy of EDM's has its input for labels of augmentation too."""
    copied = dict(augment_dim=9) if teacher else {}
    network = dict(channel_mult=(2, 2, 2), dropout=dropout, **architecture, **copied)
    return paper(
        **(dict(batch_size=512, num_steps=800_000, ema=(0.9999,)) | sections),
        teacher=teacher,
        network=network,
        data=CIFAR10,
    )


def imagenet64(system: dict[str, Any], *, num_steps: int, learning_rate: float) -> ConfigDict:
    return paper(
        system=system,
        teacher="imagenet64" if system["pairs"] == "teacher" else "",
        loss=LPIPS,
        network=dict(name="dhariwal_unet", dropout=0.0, num_classes=1000),
        data=FOLDER | dict(image_size=64),
        num_steps=num_steps,
        batch_size=2048,
        learning_rate=learning_rate,
        ema=(0.9999432189950708, 0.999, 0.9999),
    )


def lsun256(system: dict[str, Any], *, num_steps: int, learning_rate: float) -> ConfigDict:
    return paper(
        system=system,
        teacher="lsun256" if system["pairs"] == "teacher" else "",
        loss=LPIPS,
        network=dict(
            name="adm",
            model_channels=256,
            channel_mult=(1, 1, 2, 2, 4, 4),
            num_res_blocks=2,
            use_scale_shift_norm=False,
            dropout=0.0,
        ),
        data=FOLDER | dict(image_size=256),
        num_steps=num_steps,
        batch_size=256,
        learning_rate=learning_rate,
        ema=(0.9999432189950708, 0.9999, 0.99994),
    )


VARIANTS = {
    "digits": functools.partial(digits, system=distilled(18), num_steps=16_000),
    "digits_ct": functools.partial(digits, system=trained(2, 150, 0.9), teacher="", num_steps=8000, learning_rate=1e-3),
    "digits_ict": functools.partial(digits, **improved(160), teacher="", num_steps=8000, learning_rate=1e-3),
    "digits_ect": functools.partial(digits, **easy(6), num_steps=3000),
    "stacked_digits": stacked_digits,
    # c is 0.1 for each of 64 entries.
    "digits_scm": functools.partial(digits, **continuous("teacher", 1000, std=1.8, c=0.8), learning_rate=1e-4),
    "cifar10_cd": functools.partial(
        cifar10, NCSNPP, system=distilled(18), teacher="cifar10_ncsnpp", loss=LPIPS, learning_rate=4e-4
    ),
    "cifar10_ct": functools.partial(cifar10, NCSNPP, system=trained(2, 150, 0.9), loss=LPIPS, learning_rate=4e-4),
    "cifar10_ict": functools.partial(
        cifar10,
        NCSNPP,
        **improved(1280),
        dropout=0.3,
        batch_size=1024,
        num_steps=400_000,
        learning_rate=1e-4,
        ema=(0.99993,),
    ),
    "cifar10_ect": functools.partial(
        cifar10,
        DDPMPP,
        **easy(8),
        teacher="cifar10_ddpmpp",
        dropout=0.2,
        batch_size=128,
        num_steps=200_000,
        learning_rate=1e-4,
    ),
    "cifar10_scm": functools.partial(
        cifar10,
        DDPMPP,
        **continuous("shared_noise", 10_000, std=1.8),
        teacher="cifar10_ddpmpp",
        dropout=0.2,
        num_steps=400_000,
        learning_rate=1e-4,
        optimizer=dict(b1=0.9, b2=0.99),
    ),
    "imagenet64_cd": functools.partial(imagenet64, distilled(40, mu=0.95), num_steps=600_000, learning_rate=8e-6),
    "imagenet64_ct": functools.partial(imagenet64, trained(2, 200, 0.95), num_steps=800_000, learning_rate=1e-4),
    "lsun256_cd": functools.partial(lsun256, distilled(40, mu=0.95), num_steps=600_000, learning_rate=1e-5),
    "lsun256_ct": functools.partial(lsun256, trained(2, 150, 0.95), num_steps=1_000_000, learning_rate=5e-5),
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
