"""Published values of Palette."""

from __future__ import annotations

from benchmarks.published.entry import Published

_CODE = "Janspiry/Palette-Image-to-Image-Diffusion-Models"
_SHARED = {
    "network.model_channels": 64,
    "network.channel_mult": (1, 2, 4, 8),
    "network.num_head_channels": 32,
    "network.num_res_blocks": 2,
    "network.dropout": 0.2,
    "network.image_channels": 3,
    "process.betas": "linear",
    "process.num_steps": 2000,
    "process.beta_start": 1e-6,
    "process.beta_end": 1e-2,
    "optimizer.name": "adam",
    "optimizer.learning_rate": 5e-5,
    "ema.rates": (0.9999,),
    "loss.norm": "l2",
}
_DIFFERENCES = (
    "The paper has no public code of its authors; these are values of a reimplementation. No level of its networks "
    "has attention, since attn_res=16 is a factor of downsampling that four levels do not reach.",
    "Sampling takes 469 steps, there 1000: the betas of the other 531, the first in sampling, make more noise than "
    "there is at t = 1, the end of the 2000 betas of training, and the network was not trained for it.",
    "The network reads the time, there alpha bar, a function of it.",
    "Known pixels come from the condition, there from the original picture.",
)


def _of(variant: str, file: str, **values: object) -> Published:
    own = {key.replace("__", "."): value for key, value in values.items()}
    return Published(
        paper="Palette (arXiv:2111.05826)",
        variants=(f"palette:{variant}",),
        values={f"{_CODE} config/{file}.json": {**_SHARED, **own}},
        differences=_DIFFERENCES,
    )


TABLE = (
    _of("inpainting256", "inpainting_places2", data__image_size=256, training__batch_size=3),
    _of("uncropping256", "uncropping_places2", data__image_size=256, training__batch_size=3),
    _of("colorization224", "colorization_mirflickr25k", data__image_size=224, training__batch_size=4),
    Published(
        paper="Palette (arXiv:2111.05826)",
        variants=("palette:imagenet256",),
        values={
            "arXiv:2111.05826": {"data.image_size": 256, "loss.norm": "l2", "network.image_channels": 3},
            "openai/guided-diffusion README.md:56-77": {
                "network.model_channels": 256,
                "network.num_res_blocks": 2,
                "network.attention_resolutions": (32, 16, 8),
                "network.num_head_channels": 64,
                "network.channel_mult": (1, 1, 2, 2, 4, 4),
            },
        },
        differences=(
            "The network of the paper is ADM's for 256 x 256 pixels without classes; here it reads the task, and the "
            "other values are those of the reimplementation. Sampling takes 469 of its 1000 steps.",
            "The paper trains one model of colorization, inpainting and JPEG restoration; here uncropping is added.",
        ),
    ),
)
