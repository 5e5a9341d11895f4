"""Published values of diffusion models of point clouds: Luo and Hu's, PVD and Point-E."""

from __future__ import annotations

from typing import Any

from benchmarks.published.entry import Published

LUO_HU = "Diffusion probabilistic models for 3D point clouds (arXiv:2103.01458)"
PVD = "PVD (arXiv:2104.03670)"
POINT_E = "Point-E (arXiv:2212.08751)"
_LUO_HU_CODE = "luost26/diffusion-point-cloud"
_PVD_CODE = "alexzhou907/PVD"
_POINT_E_CODE = "openai/point-e"
_NETWORK = "The network is a transformer of points instead of PVCNN++, without dropout."
_RATE = (
    "The learning rate falls along half a cosine to a hundredth; the authors' is multiplied by 0.998 after every epoch."
)
_STEPS = "An epoch is ShapeNet's {} training clouds of the category, as PointFlow splits them, over the batch size."
_GIVEN = (
    "The given points lie on one side of a random plane; the authors' are seen in depth images of GenRe. They are part "
    "of the 2048 points of the cloud."
)


def _pvd(batch_size: int) -> dict[str, Any]:
    """The values that are in parse_args and get_dataset of both training scripts."""
    return {
        "data.points": 2048,
        "data.normalize": "global",
        "process.betas": "linear",
        "process.beta_start": 1e-4,
        "process.beta_end": 0.02,
        "process.num_steps": 1000,
        "sampling.steps": 1000,
        "parameterization.name": "eps",
        "weighting.name": "simple",
        "training.batch_size": batch_size,
        "optimizer.name": "adam",
        "optimizer.learning_rate": 2e-4,
        "optimizer.b1": 0.5,
        "optimizer.clip_norm": 0.0,
        "ema.rates": (0.0,),
    }


def _base(variant: str, key: str, width: int, layers: int, heads: int) -> Published:
    return Published(
        paper=POINT_E,
        variants=(f"point_e:{variant}",),
        values={
            f"{_POINT_E_CODE} point_e/models/configs.py, {key}": {
                "network.width": width,
                "network.depth": layers,
                "network.num_heads": heads,
                "network.prepend_time": True,
                "network.learn_sigma": True,
                "data.points": 1024,
                "system.cond_dropout": 0.1,
            },
            f"{_POINT_E_CODE} point_e/models/transformer.py, MLP": {"network.mlp_ratio": 4.0},
            f"{_POINT_E_CODE} point_e/diffusion/configs.py, BASE_DIFFUSION_CONFIG": {
                "process.betas": "cosine",
                "process.num_steps": 1024,
                "parameterization.name": "eps",
                "loss.name": "hybrid",
            },
            f"{_POINT_E_CODE} point_e/diffusion/sampler.py, PointCloudSampler": {
                "sampling.steps": 64,
                "solver.name": "heun",
                "solver.churn": 3.0,
                "guidance.scale": 3.0,
                "sampling.grid.name": "karras",
            },
        },
        differences=(
            "The condition is a class in place of CLIP's embedding of a picture, and points have no colours: 3 channels"
            " instead of 6, in their box instead of times 2.",
            "The code of training was not released; steps, batch size and learning rate are not the authors'.",
            "Noise levels of the sampler run from the first step of the process to sigma / alpha = 128; theirs are "
            "from 0.001 to 120.",
        ),
    )


TABLE: tuple[Published, ...] = (
    Published(
        paper=LUO_HU,
        variants=("point_diffusion:airplane", "point_diffusion:chair"),
        values={
            f"{_LUO_HU_CODE} train_gen.py:21-48": {
                "network.vector_dim": 256,
                "process.num_steps": 100,
                "process.betas": "linear",
                "process.beta_start": 1e-4,
                "process.beta_end": 0.02,
                "sampling.steps": 100,
                "system.kl_weight": 1e-3,
                "data.normalize": "unit",
                "training.batch_size": 128,
                "optimizer.learning_rate": 2e-3,
                "optimizer.clip_norm": 10.0,
                "optimizer.final_factor": 0.05,
            },
            f"{_LUO_HU_CODE} models/diffusion.py, PointwiseNet": {"network.widths": (128, 256, 512, 256, 128)},
            f"{_LUO_HU_CODE} train_gen.py:26": {"data.points": 2048},
        },
        differences=(
            "The encoder, of the authors' widths, has layer instead of batch normalisation.",
            "The network reads t in [0, 1] instead of beta, an affine function of the same step.",
            "The learning rate falls from the first step on; the authors' is constant for 200,000 steps and then falls"
            " for 200,000.",
        ),
    ),
    *(
        Published(
            paper=PVD,
            variants=(f"pvd:{name}",),
            values={f"{_PVD_CODE} train_generation.py, parse_args and get_dataset": _pvd(16)},
            differences=(_NETWORK, _RATE, _STEPS.format(clouds)),
        )
        for name, clouds in (("chair", "4612"), ("car", "2458"))
    ),
    *(
        Published(
            paper=PVD,
            variants=(f"pvd:{name}_completion",),
            values={
                f"{_PVD_CODE} train_completion.py, parse_args and get_dataset": {**_pvd(48), "system.given": 200},
            },
            differences=(_NETWORK, _RATE, _STEPS.format(clouds), _GIVEN),
        )
        for name, clouds in (("chair", "4612"), ("car", "2458"))
    ),
    _base("base40m", "base40M", 512, 12, 8),
    _base("base300m", "base300M", 1024, 24, 16),
    _base("base1b", "base1B", 2048, 24, 32),
)
