"""Published values of bridges: I2SB, DDBM and DSBM."""

from __future__ import annotations

import math

from benchmarks.published.entry import Published

I2SB = "I2SB (arXiv:2302.05872)"
DDBM = "DDBM (arXiv:2309.16948)"
DSBM = "DSBM (arXiv:2303.16852)"
_I2SB_CODE = "NVlabs/I2SB"
_DDBM_CODE = "alexzhou907/DDBM"
_DSBM_CODE = "yuyang-shi/dsbm-pytorch"
_I2SB_SHARED = {
    f"{_I2SB_CODE} train.py:72-79": {
        "training.batch_size": 256,
        "training.num_steps": 1_000_000,
        "optimizer.name": "adamw",
        "optimizer.learning_rate": 5e-5,
        "optimizer.weight_decay": 0.0,
        "ema.rates": (0.99,),
    },
    f"{_I2SB_CODE} i2sb/ckpt_util.py:47-66": {
        "data.image_size": 256,
        "network.model_channels": 256,
        "network.num_res_blocks": 2,
        "network.attention_resolutions": (32, 16, 8),
        "network.num_head_channels": 64,
        "network.resblock_updown": True,
        "network.use_scale_shift_norm": True,
        "network.dropout": 0.0,
    },
    f"{_I2SB_CODE} i2sb/runner.py:58": {"process.beta_min": 1e-4},
}
_I2SB_DIFFERENCES = (
    "Time is continuous here, with t = k / 1000 of the authors' k; the network receives 999 t here and between 0.1 and "
    "1000 there.",
    "The authors' learning rate falls by 1 % every 1000 steps; here it is constant.",
    "Sampling ends at t = 0 here, where the sample is the last x_0; theirs ends at the first of the thousand steps, "
    "with a trace of x_t.",
)
_DDBM_SHARED = {
    f"{_DDBM_CODE} train_ddbm.sh:11-15": {
        "optimizer.learning_rate": 1e-4,
        "optimizer.weight_decay": 0.0,
        "ema.rates": (0.9999,),
        "network.dropout": 0.1,
        "network.num_head_channels": 64,
        "network.resblock_updown": True,
        "network.use_scale_shift_norm": True,
    },
    f"{_DDBM_CODE} args.sh:11-17": {
        "parameterization.sigma_data": 0.5,
        "parameterization.sigma_end": 0.5,
        "parameterization.covariance": 0.0,
        "network.attention_resolutions": (32, 16, 8),
        "times.name": "uniform",
    },
    f"{_DDBM_CODE} ddbm/train_util.py:104": {"optimizer.name": "radam"},
    f"{_DDBM_CODE} sample_ddbm.sh:14-27": {"sampling.steps": 40, "sampling.grid.rho": 7.0},
    f"{_DDBM_CODE} README.md:53": {"solver.churn": 0.33},
}
_VE = {f"{_DDBM_CODE} args.sh:9-10": {"process.sigma_max": 80.0, "process.sigma_min": 0.002}}
_VP = {f"{_DDBM_CODE} args.sh:46-49": {"process.beta_min": 0.1, "process.beta_max": 0.1 + 2, "times.t_min": 1e-4}}
_E2H = {
    f"{_DDBM_CODE} args.sh:25-70": {
        "data.image_size": 64,
        "network.model_channels": 192,
        "network.num_res_blocks": 3,
        "training.batch_size": 192,
    }
}
_DDBM_DIFFERENCES = (
    "The stochastic part of a step samples the posterior here and is an Euler-Maruyama step there, which starts just "
    "below the end, where it is finite.",
    "The number of training steps is not in the repository and was not confirmed.",
)
_ON_VP = "The times of sampling are even in (sigma / alpha)^(1/7) here and in t^(1/7) there."
_DSBM_DIFFERENCES = (
    "Both networks are trained in every iteration here, each on pairs of the other one; the authors alternate, with "
    "new optimizers. An iteration here is two of theirs.",
    "Networks are parameterized by DDBM's preconditioning here and predict the drift there.",
    "A step samples the posterior here and is an Euler-Maruyama step there.",
)


def _i2sb(variants: tuple[str, ...], source: str, beta_max: float, noisy: bool, *differences: str) -> Published:
    return Published(
        paper=I2SB,
        variants=tuple(f"bridge:imagenet256_{variant}" for variant in variants),
        values={source: {"process.beta_max": beta_max, "process.noisy": noisy}} | _I2SB_SHARED,
        differences=(*_I2SB_DIFFERENCES, *differences),
    )


TABLE: tuple[Published, ...] = (
    _i2sb(
        ("sr4x_pool", "sr4x_bicubic", "jpeg5", "jpeg10"),
        f"{_I2SB_CODE} scripts/train.sh:6-11",
        0.3,
        True,
        "JPEG has its colours at full resolution here and at half of it there.",
    ),
    _i2sb(
        ("deblur", "inpaint"),
        f"{_I2SB_CODE} scripts/train.sh:14-18",
        1.0,
        False,
        "The uniform blur is reflected at the borders here and padded with zeros there.",
    ),
    Published(
        paper=DDBM,
        variants=("bridge:e2h64_ve",),
        values=_VE | _E2H | _DDBM_SHARED,
        differences=_DDBM_DIFFERENCES,
    ),
    Published(
        paper=DDBM,
        variants=("bridge:e2h64_vp",),
        values=_VP | _E2H | _DDBM_SHARED,
        differences=(*_DDBM_DIFFERENCES, _ON_VP),
    ),
    Published(
        paper=DDBM,
        variants=("bridge:diode256_vp",),
        values={
            f"{_DDBM_CODE} args.sh:15-68": {
                "data.image_size": 256,
                "network.model_channels": 256,
                "network.num_res_blocks": 2,
                "training.batch_size": 16,
            }
        }
        | _VP
        | _DDBM_SHARED,
        differences=(*_DDBM_DIFFERENCES, _ON_VP),
    ),
    Published(
        paper=DSBM,
        variants=("schroedinger:gaussian5", "schroedinger:gaussian20", "schroedinger:gaussian50"),
        values={
            f"{_DSBM_CODE} DSBM-Gaussian.py:21-24": {
                "data.x.num_examples": 10_000,
                "data.image.num_examples": 10_000,
                "optimizer.learning_rate": 1e-4,
                "training.batch_size": 128,
            },
            f"{_DSBM_CODE} conf/gaussian.yaml:9-18": {
                "data.x.mean": -0.1,
                "data.image.mean": 0.1,
                "process.scale": 1.0,
                "sampling.steps": 20,
                "system.inner_steps": 20,
                "system.pretrain": 10_000,
                "system.refresh": 10_000,
                "training.num_steps": 40 * 10_000 // 2,
            },
            f"{_DSBM_CODE} DSBM-Gaussian.py:513": {"network.hidden": 256, "network.activation": "silu"},
            f"{_DSBM_CODE} README.md:54": {"system.coupling": "independent"},
        },
        differences=(
            *_DSBM_DIFFERENCES,
            "The network is a residual one with an embedding of the time here, and two hidden layers there.",
        ),
    ),
    Published(
        paper=DSBM,
        variants=("schroedinger:mnist_emnist",),
        values={
            f"{_DSBM_CODE} conf/dataset/mnist_transfer.yaml:42-48": {
                "ema.rates": (0.999,),
                "optimizer.clip_norm": 1.0,
                "optimizer.learning_rate": 1e-4,
                "training.batch_size": 128,
            },
            f"{_DSBM_CODE} README.md:64": {
                "process.scale": math.sqrt(30 * 0.034),
                "sampling.steps": 30,
                "system.pretrain": 100_000,
                "system.refresh": 5000,
                "system.coupling": "independent",
            },
            f"{_DSBM_CODE} conf/model/UNET.yaml:5-10": {
                "network.model_channels": 128,
                "network.num_res_blocks": 2,
                "network.num_heads": 4,
                "network.dropout": 0.1,
                "network.resblock_updown": False,
            },
            f"{_DSBM_CODE} bridge/runners/config_getters.py:63": {"network.channel_mult": (0.5, 1, 1)},
        },
        differences=(*_DSBM_DIFFERENCES, "Fifty iterations follow the first one here, as n_ipf of the file."),
    ),
)
