"""Published values of segmentation by diffusion models: SegDiff and DDPM-Seg."""

from __future__ import annotations

from typing import Any

from benchmarks.published.entry import Published

_SEGDIFF = "tomeramit/SegDiff"
_DDPM_SEG = "yandex-research/ddpm-segmentation"
_SIZES = {128: (1, 1, 2, 2, 4, 4), 256: (1, 1, 1, 2, 2, 4, 4)}


def _segdiff(
    variant: str, script: str, size: int, blocks: int, batch_size: int, dropout: float, *differences: str
) -> Published:
    return Published(
        paper="SegDiff (arXiv:2112.00390)",
        variants=(f"segdiff:{variant}",),
        values={
            f"{_SEGDIFF} README.md": {
                "network.image_blocks": blocks,
                "network.dropout": dropout,
                "training.batch_size": batch_size,
                "optimizer.learning_rate": 1e-4,
                "process.num_steps": 100,
                "sampling.steps": 100,
            },
            f"{_SEGDIFF} {script}": {
                "data.image_size": size,
                "network.model_channels": 128,
                "network.num_res_blocks": 3,
                "network.use_scale_shift_norm": False,
                "process.betas": "linear",
                "training.num_steps": 300_000,
                "ema.rates": (0.9999,),
            },
            f"{_SEGDIFF} improved_diffusion/script_util.py": {
                "network.channel_mult": _SIZES[size],
                "network.attention_resolutions": (16, 8),
                "network.num_heads": 4,
                "sampling.threshold.name": "none",
            },
            f"{_SEGDIFF} improved_diffusion/gaussian_diffusion.py:30": {
                "process.beta_start": 1e-3,
                "process.beta_end": 0.2,
            },
            f"{_SEGDIFF} improved_diffusion/RRDB.py": {"network.image_width": 64},
            f"{_SEGDIFF} improved_diffusion/sampling_util.py": {"evaluation.samples_per_condition": 9},
        },
        differences=(
            "Images are in [-1, 1] and training adds mirror images; there they are normalised by mean and standard "
            "deviation, and turned, scaled and changed in colour at random.",
            "The computation is in bfloat16, there in float16 with scaled losses, which diverges for some.",
            *differences,
        ),
    )


def _ddpm_seg(variant: str, folder: str, classes: int, images: int, *differences: str) -> Published:
    hidden: dict[str, Any] = {"system.hidden": (256, 128) if classes >= 30 else (128, 32)}
    return Published(
        paper="DDPM-Seg (arXiv:2112.03126)",
        variants=(f"pixel_classifier:{variant}",),
        values={
            f"{_DDPM_SEG} experiments/{folder}/ddpm.json": {
                "system.blocks": (5, 6, 7, 8, 12),
                "system.members": 10,
                "data.image_size": 256,
                "data.channels": classes,
                "data.split": f"train[:{images}]",
            },
            f"{_DDPM_SEG} src/pixel_classifier.py": {**hidden, "system.vote": "majority"},
            f"{_DDPM_SEG} train_interpreter.py": {
                "system.min_pixels": 20,
                "optimizer.name": "adam",
                "optimizer.learning_rate": 1e-3,
            },
        },
        differences=(
            "The timesteps 50, 150 and 250 are t = (k + 1) / 1000 here.",
            "A batch is 16 random pixels of each of 4 images, 64 in all as there, for each member; it is 20,000 of "
            "these, where the authors stop after 50 batches without a better one, and keeps no features in memory.",
            "Layers are normalised by layer normalisation, there by batch normalisation.",
            *differences,
        ),
    )


TABLE = (
    _segdiff(
        "cityscapes128",
        "image_train_diff_city.py",
        128,
        15,
        30,
        0.0,
        "The batch is that of both processes of the command in the README, 15 each.",
    ),
    _segdiff(
        "vaihingen256",
        "image_train_diff_vaih.py",
        256,
        6,
        8,
        0.1,
        "The batch is that of both processes of the command in the README, 4 each.",
    ),
    _segdiff(
        "monuseg256",
        "image_train_diff_medical.py",
        256,
        12,
        8,
        0.0,
        "The batch is that of the four processes of the command in the README, 2 each. Images of 512 x 512 pixels are "
        "cut into squares of 256 once; there training cuts at random, and sampling averages overlapping squares.",
    ),
    _ddpm_seg("bedroom256_28", "bedroom_28", 29, 40, "Class 0 counts here; there it is not labelled."),
    _ddpm_seg("ffhq256_34", "ffhq_34", 34, 20),
    _ddpm_seg("cat256_15", "cat_15", 15, 30),
    _ddpm_seg("horse256_21", "horse_21", 21, 30),
)
