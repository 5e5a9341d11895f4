"""Published values of super-resolution models."""

from __future__ import annotations

from benchmarks.published.entry import Published

_SR3 = "Janspiry/Image-Super-Resolution-via-Iterative-Refinement"
_ADM = "openai/guided-diffusion README.md"
_NETWORKS = (
    "The paper has no public code. The sizes of images are the paper's; network and optimizer are those of ADM's "
    "models of these sizes, with v-prediction, as in the small variants."
)
_LEVEL = (
    "The level of the noise is that of Imagen's sampling in a reimplementation, lucidrains/imagen-pytorch, and is "
    "chosen after training."
)
_BLUR = "The blur is that of a reimplementation of cascades, in half of the rows."
_SMALL = {f"{_ADM}:49": {"network.dropout": 0.1, "network.num_classes": 1000, "network.use_new_attention_order": True}}
_LARGE = {
    f"{_ADM}:88-95": {"network.model_channels": 192, "network.num_res_blocks": 2, "network.num_classes": 1000},
    "lucidrains/DALLE2-pytorch dalle2_pytorch/dalle2_pytorch.py": {"system.blur": (0.6, 0.6)},
}

TABLE = (
    Published(
        paper="SR3 (arXiv:2104.07636)",
        variants=("sr3:faces_16_128",),
        values={
            f"{_SR3} config/sr_sr3_16_128.json": {
                "network.model_channels": 64,
                "network.channel_mult": (1, 2, 4, 8, 8),
                "network.attention_resolutions": (16,),
                "network.num_res_blocks": 2,
                "network.dropout": 0.2,
                "network.low_res": 16,
                "process.betas": "linear",
                "process.num_steps": 2000,
                "process.beta_start": 1e-6,
                "process.beta_end": 1e-2,
                "training.batch_size": 4,
                "training.num_steps": 1_000_000,
                "optimizer.name": "adam",
                "optimizer.learning_rate": 1e-4,
                "ema.rates": (0.9999,),
                "data.image_size": 128,
            },
        },
        differences=(
            "The paper has no public code of its authors; these are values of a reimplementation, which draws one time "
            "for the whole batch. Here every row has its own, as in the paper.",
            "The network is ADM's, and small images are averages of the large ones, enlarged bilinearly; there it is "
            "another U-Net without scales from the embedding, and images are reduced and enlarged bicubically.",
            "The network reads the time, there the square root of alpha bar, a function of it.",
        ),
    ),
    Published(
        paper="SR3 (arXiv:2104.07636)",
        variants=("sr3:faces_64_512",),
        values={
            f"{_SR3} config/sr_sr3_64_512.json": {
                "network.model_channels": 64,
                "network.num_groups": 16,
                "network.channel_mult": (1, 2, 4, 8, 16),
                "network.attention_resolutions": (),
                "network.num_res_blocks": 1,
                "network.dropout": 0.0,
                "network.low_res": 64,
                "process.betas": "linear",
                "process.num_steps": 2000,
                "process.beta_start": 1e-6,
                "process.beta_end": 1e-2,
                "training.batch_size": 2,
                "training.num_steps": 1_000_000,
                "optimizer.name": "adam",
                "optimizer.learning_rate": 3e-6,
                "ema.rates": (0.9999,),
                "data.image_size": 512,
            },
        },
        differences=("As for faces of 128 pixels. The small images are of 64 pixels.",),
    ),
    *(
        Published(
            paper="CDM (arXiv:2106.15282)",
            variants=(f"cascade:{variant}",),
            values={"arXiv:2106.15282": sizes, **values},
            differences=(_NETWORKS, *differences),
        )
        for variant, sizes, values, differences in (
            ("imagenet32_base", {"data.image_size": 32}, _SMALL, ()),
            ("imagenet32_64", {"data.image_size": 64, "network.low_res": 32}, _SMALL, (_LEVEL,)),
            ("imagenet64_128", {"data.image_size": 128, "network.low_res": 64}, _LARGE, (_BLUR,)),
            ("imagenet64_256", {"data.image_size": 256, "network.low_res": 64}, _LARGE, (_BLUR,)),
        )
    ),
)
