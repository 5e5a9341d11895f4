"""Published values of DreamBooth and textual inversion: diffusers' scripts with the commands of their pages."""

from __future__ import annotations

from benchmarks.published.entry import Published

_DREAMBOOTH = "DreamBooth (arXiv:2208.12242), as in diffusers' scripts"
_INVERSION = "Textual inversion (arXiv:2208.01618), as in diffusers' scripts"
_BOOTH_FILES = "huggingface/diffusers examples/dreambooth"
_INVERSION_FILES = "huggingface/diffusers examples/textual_inversion"
_ADAMW = {"optimizer.name": "adamw", "optimizer.b1": 0.9, "optimizer.b2": 0.999, "optimizer.clip_norm": 1.0}
_CONSTANT = {"optimizer.schedule": "constant", "optimizer.warmup_steps": 0}
_RATES = (
    "Their batch of one image of the subject and one of the class is a batch of two here, with the weights 2 and 2 "
    "prior_weight, whose mean is the same loss."
)
_CROPS = "Images are cut to their largest centre square; theirs are cropped at random unless --center_crop is given."
_TEXTS = (
    "Of their 27 texts 20 are used.",
    "Images are cut to their largest centre square, as with --center_crop; without it theirs are squeezed to a square.",
)


TABLE: tuple[Published, ...] = (
    Published(
        paper=_DREAMBOOTH,
        variants=("dreambooth:sd15",),
        values={
            f"{_BOOTH_FILES}/README.md:102-117": {
                "optimizer.learning_rate": 5e-6,
                "data.prior_weight": 1.0,
                "data.image_size": 512,
                "training.batch_size": 2,
                "training.accumulate": 1,
                "training.num_steps": 800,
                **_CONSTANT,
            },
            f"{_BOOTH_FILES}/train_dreambooth.py:430-434": {"optimizer.weight_decay": 0.01, **_ADAMW},
        },
        differences=(
            _RATES,
            _CROPS,
            "The text encoder is not trained; in the paper and with --train_text_encoder it is.",
        ),
    ),
    Published(
        paper=_DREAMBOOTH,
        variants=("dreambooth:sd15_plain",),
        values={
            f"{_BOOTH_FILES}/README.md:76-87": {
                "optimizer.learning_rate": 5e-6,
                "data.prior.name": "none",
                "training.batch_size": 1,
                "training.num_steps": 400,
                **_CONSTANT,
            },
            f"{_BOOTH_FILES}/train_dreambooth.py:430-434": {"optimizer.weight_decay": 0.01, **_ADAMW},
        },
        differences=(_CROPS,),
    ),
    Published(
        paper=_DREAMBOOTH,
        variants=("dreambooth:sd15_lora",),
        values={
            f"{_BOOTH_FILES}/README.md:340-353": {
                "optimizer.learning_rate": 1e-4,
                "training.accumulate": 1,
                "training.num_steps": 500,
                **_CONSTANT,
            },
            f"{_BOOTH_FILES}/train_dreambooth_lora.py:431-529": {
                "optimizer.weight_decay": 0.01,
                "lora.rank": 4,
                **_ADAMW,
            },
        },
        differences=(
            _RATES,
            _CROPS,
            "Images of the class and updates of the text encoder are options of their script, which are used here.",
        ),
    ),
    Published(
        paper=_DREAMBOOTH,
        variants=("dreambooth:sdxl_lora",),
        values={
            f"{_BOOTH_FILES}/README_sdxl.md:79-97": {
                "optimizer.learning_rate": 1e-4,
                "data.image_size": 1024,
                "training.accumulate": 4,
                "training.num_steps": 500,
                **_CONSTANT,
            },
            f"{_BOOTH_FILES}/train_dreambooth_lora_sdxl.py:500-660": {
                "optimizer.groups.text_lora.learning_rate": 5e-6,
                "optimizer.groups.text_lora.weight_decay": 1e-3,
                "optimizer.weight_decay": 1e-4,
                "lora.rank": 4,
                **_ADAMW,
            },
        },
        differences=(
            _RATES,
            _CROPS,
            "Images of the class and updates of the text encoders are options of their script, which are used here.",
            "Each group of parameters is clipped by its own norm; theirs share one.",
        ),
    ),
    Published(
        paper=_INVERSION,
        variants=("inversion:sd15",),
        values={
            f"{_INVERSION_FILES}/README.md:69-84": {
                "system.placeholder": "<cat-toy>",
                "system.initializer": "toy",
                "data.image_size": 512,
                "training.batch_size": 4,
                "training.accumulate": 4,
                "training.num_steps": 3000,
                "optimizer.learning_rate": 4 * 5e-4,
                **_CONSTANT,
            },
            f"{_INVERSION_FILES}/textual_inversion.py:204-330": {
                "system.num_vectors": 1,
                "optimizer.weight_decay": 0.01,
                **_ADAMW,
                "optimizer.clip_norm": 0.0,
            },
        },
        differences=_TEXTS,
    ),
    Published(
        paper=_INVERSION,
        variants=("inversion:sdxl",),
        values={
            f"{_INVERSION_FILES}/README_sdxl.md:7-23": {
                "system.placeholder": "<cat-toy>",
                "system.initializer": "toy",
                "data.image_size": 768,
                "training.batch_size": 4,
                "training.accumulate": 4,
                "training.num_steps": 500,
                "optimizer.learning_rate": 4 * 5e-4,
                **_CONSTANT,
            },
            f"{_INVERSION_FILES}/textual_inversion_sdxl.py:208-331": {
                "system.num_vectors": 1,
                "optimizer.weight_decay": 0.01,
                **_ADAMW,
                "optimizer.clip_norm": 0.0,
            },
        },
        differences=_TEXTS,
    ),
)
