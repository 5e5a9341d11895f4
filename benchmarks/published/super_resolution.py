"""Published values of super-resolution models."""

from __future__ import annotations

from benchmarks.published.entry import Published

_SR3 = "Janspiry/Image-Super-Resolution-via-Iterative-Refinement"

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
)
