"""Published values of diffusion autoencoders: DiffAE and PDAE."""

from __future__ import annotations

from typing import Any

from benchmarks.published.entry import Published

DIFFAE = "DiffAE (arXiv:2111.15640)"
PDAE = "PDAE (arXiv:2212.12990)"
_CODE = "phizaz/diffae"
_PDAE_CODE = "ckczzj/PDAE"

_SHARED: dict[str, dict[str, Any]] = {
    f"{_CODE} templates.py:31-58": {
        "optimizer.learning_rate": 1e-4,
        "network.attention_resolutions": (16,),
        "network.num_heads": 1,
        "process.betas": "linear",
        "process.num_steps": 1000,
        "sampling.steps": 20,
        "solver.name": "ddim",
    },
    f"{_CODE} config.py:89-148": {
        "network.dropout": 0.1,
        "ema.rates": (0.9999,),
        "optimizer.clip_norm": 1.0,
        "optimizer.name": "adam",
        "network.resblock_updown": True,
        "network.num_res_blocks": 2,
    },
}
_CODES: dict[str, dict[str, Any]] = {f"{_CODE} config.py:148": {"network.code_dim": 512}}
_DIFFERENCES = (
    "The authors train in half precision; config.training.dtype=bfloat16 does so here.",
    "DDIM's times are evenly spaced here down to t = 0.001, where encoding starts; the authors encode and decode on "
    "the timesteps of their schedule and clip x_0 in both directions, which encoding does not undo.",
)
_CELEBA = (
    "The 128 x 128 pixels in the middle of the images are the data here; the authors' square lies 12 pixels lower.",
    "The embedding of the timestep has 256 numbers here and 512 there.",
)
_LATENT: dict[str, dict[str, Any]] = {
    f"{_CODE} templates_latent.py:4-37": {
        "network.num_layers": 10,
        "network.hidden": 2048,
        "sampling.steps": 20,
        "parameterization.name": "eps",
    },
    f"{_CODE} config.py:135": {"network.time_channels": 64},
    f"{_CODE} templates_latent.py:77-91": {
        "optimizer.name": "adamw",
        "optimizer.weight_decay": 0.01,
        "loss.norm": "l1",
        "process.beta_start": 0.008,
        "process.beta_end": 0.008,
    },
}
_LATENT_DIFFERENCES = (
    "Codes are those of the images of each batch here, mirrored at random; the authors infer them once, without mirror "
    "images, and take the exact mean and standard deviation.",
)


def _diffae(name: str, source: str, values: dict[str, Any], *differences: str) -> tuple[Published, Published]:
    """The entries of a variant and of its counterpart without a code."""
    plain = {key: value for key, value in values.items() if not key.startswith("system.")}
    return (
        Published(
            paper=DIFFAE,
            variants=(f"diffae:{name}",),
            values={source: values} | _SHARED | _CODES,
            differences=(*_DIFFERENCES, *differences),
        ),
        Published(
            paper=DIFFAE,
            variants=(f"diffae:{name}_ddpm",),
            values={source: plain} | _SHARED,
            differences=(*_DIFFERENCES[:1], *differences),
        ),
    )


def _steps(images: int, batch_size: int) -> dict[str, Any]:
    return {"training.batch_size": batch_size, "training.num_steps": images // batch_size}


_PDAE_SHARED: dict[str, dict[str, Any]] = {
    f"{_PDAE_CODE} diffusion/gaussian_diffusion.py:68-70": {"weighting.name": "pdae", "weighting.gamma": 0.1},
    f"{_PDAE_CODE} config/ffhq_representation_learning.yml:6-47": {
        "network.code_dim": 512,
        "process.num_steps": 1000,
        "process.betas": "linear",
        "optimizer.learning_rate": 1e-4,
        "ema.rates": (0.9999,),
    },
    f"{_PDAE_CODE} trainer/train_representation_learning.py:58-70": {
        "optimizer.name": "adam",
        "optimizer.clip_norm": 0.0,
        "system.shared": ("time_embed", "input_blocks"),
    },
    f"{_PDAE_CODE} model/module.py:339-382": {"network.code_shift": True, "network.code_in_encoder": False},
}
_PDAE_DIFFERENCES = (
    "The coefficient of the gradient estimator is sigma^2 / alpha here, in training and in every solver; the authors "
    "train with that of the mean of a DDPM step, which is smaller by sqrt(a_t) (1 - abar_{t-1}) / (1 - abar_t), and "
    "encode and decode with DDIM's.",
    "The batch is 128 here; there it is 32 on each device, and their number is not in the repository. Nor is the "
    "number of training steps, which was not confirmed.",
    "The frozen model is the one without a code of diffae.py here; the authors offer theirs as files.",
)
_PDAE_LATENT: dict[str, dict[str, Any]] = {
    f"{_PDAE_CODE} config/ffhq_latent.yml:16-46": {
        "network.hidden": 2048,
        "network.num_layers": 10,
        "network.time_channels": 64,
        "training.batch_size": 128,
        "optimizer.name": "adamw",
        "optimizer.learning_rate": 1e-3,
        "optimizer.weight_decay": 0.01,
        "ema.rates": (0.9999,),
    }
}


def _pdae(name: str, file: str, size: int, channels: tuple[int, ...], attention_after: int) -> Published:
    return Published(
        paper=PDAE,
        variants=(f"pdae:{name}",),
        values={
            f"{_PDAE_CODE} model/representation_learning/encoder/{file}.py:10-36": {
                "data.image_size": size,
                "system.encoder.channels": channels,
                "system.encoder.attention_after": attention_after,
                "system.encoder.num_heads": 4,
            }
        }
        | _PDAE_SHARED,
        differences=_PDAE_DIFFERENCES,
    )


TABLE: tuple[Published, ...] = (
    *_diffae(
        "ffhq128",
        f"{_CODE} templates.py:125-200",
        {
            "data.image_size": 128,
            "network.model_channels": 128,
            "network.channel_mult": (1, 1, 2, 3, 4),
            "system.encoder.channel_mult": (1, 1, 2, 3, 4, 4),
            **_steps(130_000_000, 128),
        },
    ),
    *_diffae(
        "ffhq256",
        f"{_CODE} templates.py:141-153",
        {
            "data.image_size": 256,
            "network.model_channels": 128,
            "network.channel_mult": (1, 1, 2, 2, 4, 4),
            "system.encoder.channel_mult": (1, 1, 2, 2, 4, 4, 4),
            **_steps(200_000_000, 64),
        },
        "The checkpoint that the authors use was saved after 90 million of the 200 million images.",
        "They train no model without a code at this size.",
    ),
    *_diffae(
        "celeba64",
        f"{_CODE} templates.py:70-101",
        {
            "data.image_size": 64,
            "network.model_channels": 64,
            "network.channel_mult": (1, 2, 4, 8),
            "system.encoder.channel_mult": (1, 2, 4, 8, 8),
            **_steps(72_000_000, 128),
        },
        *_CELEBA,
    ),
    Published(
        paper=DIFFAE,
        variants=("diffae:ffhq128_latent", "diffae:ffhq256_latent"),
        values={f"{_CODE} templates_latent.py:83-109": _steps(101_000_000, 256)} | _LATENT,
        differences=_LATENT_DIFFERENCES,
    ),
    Published(
        paper=DIFFAE,
        variants=("diffae:celeba64_latent",),
        values={f"{_CODE} templates_latent.py:57-150": _steps(301_000_000, 512)} | _LATENT,
        differences=_LATENT_DIFFERENCES,
    ),
    _pdae("ffhq128", "ffhq", 128, (64, 128, 256, 256, 256), 2),
    _pdae("celeba64", "celeba64", 64, (64, 128, 128, 128), 1),
    Published(
        paper=PDAE,
        variants=("pdae:ffhq128_latent", "pdae:celeba64_latent"),
        values=_PDAE_LATENT,
        differences=(*_LATENT_DIFFERENCES, "The batch is that of one device; the number of steps was not confirmed."),
    ),
)
