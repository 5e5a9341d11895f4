"""Published values of TarFlow."""

from __future__ import annotations

from benchmarks.published.entry import Published

_TARFLOW = "TarFlow (arXiv:2412.06329)"
_CODE = "apple/ml-tarflow"
_IMAGENET64 = {
    "network.patch_size": 2,
    "network.channels": 768,
    "network.num_blocks": 8,
    "network.layers_per_block": 8,
    "training.batch_size": 256,
    "optimizer.learning_rate": 1e-4,
}
_OPTIMIZER = {
    "optimizer.name": "adamw",
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.95,
    "optimizer.weight_decay": 1e-4,
    "optimizer.decay": "all",
}
_NETWORK = {f"{_CODE} transformer_flow.py:131": {"network.head_dim": 64}}

TABLE: tuple[Published, ...] = (
    Published(
        paper=_TARFLOW,
        variants=("nflow:imagenet64",),
        values={
            **_NETWORK,
            f"{_CODE} README.md:57-60": {**_IMAGENET64, "system.noise_std": 0.05, "system.cond_dropout": 0.1},
            f"{_CODE} README.md:102-105": {"guidance.scale": 3.3},
            f"{_CODE} train.py:70-71": {**_OPTIMIZER, "optimizer.schedule": "cosine", "ema.rates": ()},
        },
        differences=(
            "1,000,800 steps of 256 are the 200 epochs of the README.",
            "The authors compute in bfloat16 under Gaussian noise; here everything is float32.",
            "guidance.scale is 1 + w with the authors' w = 2.3.",
            "Kernels of the transformers start as N(0, 0.02^2), those of the authors as torch's default.",
        ),
    ),
    Published(
        paper=_TARFLOW,
        variants=("nflow:imagenet64_bpd",),
        values={
            **_NETWORK,
            f"{_CODE} README.md:45-48": {**_IMAGENET64, "system.noise_std": 0.0, "data.dequantize": True},
            f"{_CODE} train.py:70-71": {**_OPTIMIZER, "optimizer.schedule": "cosine", "ema.rates": ()},
        },
        differences=("500,400 steps of 256 are the 100 epochs of the README.",),
    ),
)
