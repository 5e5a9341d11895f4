"""Latent consistency models and LCM-LoRA: text to image in one to four steps (arXiv:2310.04378, arXiv:2311.05556).

    python -m diffusion_jax.main --config=configs/stable_diffusion.py --workdir=runs/words
    python -m diffusion_jax.main --config=configs/lcm.py --workdir=runs/lcm
    python -m diffusion_jax.main --config=configs/lcm.py --workdir=runs/lcm --mode=sample --config.sampling.steps=4 \\
        --config.sampling.cond="three|eight"

Without a variant, the run of `stable_diffusion.py`, which draws the digits of scikit-learn from words, is distilled
with its guidance in minutes on two CPU cores; config.system.teacher is its work directory. The network reads the scale
of the guidance, which --config.guidance.scale=3 changes without a second evaluation. `digits_lora` trains low-rank
updates for one scale instead (LCM-LoRA). `digits_latent` distils the class-conditional transformer of
`latent_diffusion.py:digits_dit`, and `digits_segments` the same into four segments (arXiv:2403.06807).

`sd15`, `sdxl`, `sd15_lora` and `sdxl_lora` are the authors' settings. Their teacher is a public pipeline that was
converted, and the data a folder of images with texts:

    python -m diffusion_jax.weights --from FOLDER --to runs/sd15 --format orbax \\
        --config configs/stable_diffusion.py:sd15
    python -m diffusion_jax.main --config=configs/lcm.py:sd15_lora --workdir=runs/lcm_lora --config.data.path=IMAGES

`dreamshaper` is a public latent consistency model as it is (SimianLuo/LCM_Dreamshaper_v7), for samples:

    python -m diffusion_jax.main --config=configs/lcm.py:dreamshaper --workdir=runs/dreamshaper --mode=sample \\
        --config.weights=FOLDER --config.sampling.cond="a photograph of an astronaut"
"""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, from_file, presets, replace

FOLDER = pathlib.Path(__file__).parent
STEPS = 50  # of the teacher's DDIM, between whose times the student is trained
# Layers of the U-Net that LCM-LoRA updates.
LORA_LAYERS = r"(to_[qkv]|to_out|proj_in|proj_out|conv1|conv2|conv_shortcut|samplers\.0\.conv|time_emb_proj)$"


def distilled(
    variant: str,
    run: str,
    *,
    system: str = "text_to_image_consistency",
    prediction: str = "eps",
    guidance: tuple[float, float],
    embedding: int = 0,
    scale: float = 0.0,
    schedule: dict[str, Any] | None = None,
    target: dict[str, Any] | None = None,
    **sections: Any,
) -> ConfigDict:
    """The config of the teacher, "FILE.py:VARIANT" trained in `run`, with its student and four steps of sampling.

    Scales of classifier-free guidance are drawn from the range `guidance`. With an `embedding` of so many numbers the
    network reads them, and samples are drawn with `scale`.
    """
    config = from_file(f"{FOLDER}/{variant}")
    section = dict(name=system, teacher=run, teacher_config=f"configs/{variant}", guidance=guidance, solver="ddim")
    section["schedule"] = schedule or dict(name="fixed", points=STEPS + 1, spacing="uniform", t_min=0.001)
    if target:
        section["target"] = target
    if embedding:
        config.network.time_cond_proj_dim = embedding
    defaults = dict(
        system=section,
        parameterization=dict(name="latent_consistency", prediction=prediction, label="index"),
        times=dict(name="uniform", t_min=0.0),
        loss=dict(name="l2"),
        guidance=dict(name="embedded", scale=scale) if embedding else dict(name="none"),
        solver=dict(name="consistency"),
        sampling=dict(steps=4, grid=dict(name="latent_consistency", original_steps=STEPS)),
    )
    return replace(replace(config, **defaults), **sections)


def words(**changes: Any) -> ConfigDict:
    """A student of the digits that are drawn from words, whose network predicts v."""
    return distilled(
        "stable_diffusion.py:digits",
        "runs/words",
        prediction="v",
        guidance=(1.0, 4.0),
        **presets.digits(800, batch_size=64) | dict(optimizer=presets.adam(5e-4, warmup_steps=100)) | changes,
    )


def digits() -> ConfigDict:
    return words(embedding=64, scale=2.0, target=dict(name="ema", mu=0.95))


def digits_lora() -> ConfigDict:
    config = words(lora=dict(rank=8, modules=LORA_LAYERS))
    config.system.guidance = (2.0, 2.0)
    return config


def latents(**sections: Any) -> ConfigDict:
    """A student of the transformer on latents of digits, which has EDM's preconditioning.

    The gradient of f by the output of the network is sigma. The weight makes those of all times alike, as for the
    digits of `consistency.py`.
    """
    return distilled(
        "latent_diffusion.py:digits_dit",
        "runs/latent_dit",
        system="latent_consistency",
        guidance=(2.0, 2.0),
        parameterization=dict(name="consistency", sigma_data=1.0, t_min=0.001),
        times=dict(name="uniform", t_min=0.001),
        loss=dict(name="l2", weight="inverse_gap"),
        **presets.digits(1000, batch_size=64) | dict(optimizer=presets.adam(5e-4, warmup_steps=100)),
        **sections,
    )


def digits_latent() -> ConfigDict:
    return latents()


def digits_segments() -> ConfigDict:
    return latents(
        schedule=dict(name="fixed", points=STEPS - 1, spacing="uniform", t_min=0.001, segments=4),
        solver=dict(name="ddim"),
        sampling=dict(grid=dict(name="uniform", t_min=0.0)),
    )


def authors(variant: str, run: str, *, learning_rate: float, **options: Any) -> ConfigDict:
    """The command of the authors: 1000 steps of a batch of 12, and the entrywise Huber loss."""
    return distilled(
        variant,
        run,
        loss=dict(name="huber", c=0.001, entrywise=True),
        training=dict(num_steps=1000, batch_size=12, checkpoint_every=200, sample_every=200),
        optimizer=dict(name="adamw", learning_rate=learning_rate, weight_decay=0.0, warmup_steps=500, clip_norm=1.0),
        **options,
    )


def lora(variant: str, run: str, guidance: tuple[float, float]) -> ConfigDict:
    # peft's alpha is 8 unless it is given.
    section = dict(rank=64, alpha=8.0, modules=LORA_LAYERS)
    return authors(variant, run, learning_rate=1e-4, guidance=guidance, lora=section)


def whole(variant: str, run: str, guidance: tuple[float, float]) -> ConfigDict:
    embedded = dict(embedding=256, scale=8.0, target=dict(name="ema", mu=0.95))
    return authors(variant, run, learning_rate=1e-6, guidance=guidance, **embedded)


# In the authors' scripts, whose w is the scale less 1, these ranges are 5 to 15 and 3 to 15, and the scale is 1 + w.
SD15 = ("stable_diffusion.py:sd15", "runs/sd15", (6.0, 16.0))
SDXL = ("stable_diffusion.py:sdxl", "runs/sdxl", (4.0, 16.0))


def dreamshaper() -> ConfigDict:
    """A text-to-image model with the network, parameterization and sampler of a student; its teacher is not needed."""
    student, config = whole(*SD15), from_file(f"{FOLDER}/stable_diffusion.py:sd15")
    config.data.image_size = 768
    return replace(
        config,
        **{name: student[name].to_dict() for name in ("parameterization", "network", "guidance", "solver")},
        sampling=dict(steps=4, grid=student.sampling.grid.to_dict()),
    )


VARIANTS = {
    "digits": digits,
    "digits_lora": digits_lora,
    "digits_latent": digits_latent,
    "digits_segments": digits_segments,
    "sd15": lambda: whole(*SD15),
    "sdxl": lambda: whole(*SDXL),
    "sd15_lora": lambda: lora(*SD15),
    "sdxl_lora": lambda: lora(*SDXL),
    "dreamshaper": dreamshaper,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
