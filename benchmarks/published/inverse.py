"""Published values of methods for inverse problems: DPS, DDNM, DiffPIR, DDRM and DAPS."""

from __future__ import annotations

from benchmarks.published.entry import Published

DPS = "DPS (arXiv:2209.14687)"
DDNM = "DDNM (arXiv:2212.00490)"
DIFFPIR = "DiffPIR (arXiv:2305.08995)"
DDRM = "DDRM (arXiv:2201.11793)"
DAPS = "DAPS (arXiv:2407.01521)"
_DDRM_CODE = "bahjat-kawar/ddrm"
_DAPS_CODE = "zhangbingliang2019/DAPS"
_DPS_CODE = "DPS2022/diffusion-posterior-sampling"
_DDNM_CODE = "wyhuai/DDNM"
_DIFFPIR_CODE = "yuanzhi-zhu/DiffPIR"
_DPS_SHARED = {
    f"{_DPS_CODE} configs/model_config.yaml:3-13": {
        "data.image_size": 256,
        "network.model_channels": 128,
        "network.num_res_blocks": 1,
        "network.attention_resolutions": (16,),
        "network.num_head_channels": 64,
        "network.use_scale_shift_norm": True,
        "network.dropout": 0.0,
        "network.resblock_updown": True,
    },
    f"{_DPS_CODE} configs/diffusion_config.yaml:1-9": {
        "solver.name": "ancestral",
        "solver.variance": "learned",
        "process.num_steps": 1000,
        "process.betas": "linear",
        "parameterization.name": "eps",
        "guidance.clip": True,
        "sampling.steps": 1000,
    },
}
_DPS_DIFFERENCES = (
    "The derivative of clipping x_0 is 1 here and 0 there; the norm is that of a row here and of the batch there.",
)
_NO_NOISE = "The file adds Poisson noise; the Gaussian noise of 0.05 here is that of the files of the other operators."
_DDNM_SHARED = {
    f"{_DDNM_CODE} configs/imagenet_256.yml:19-40": {
        "network.model_channels": 256,
        "network.num_res_blocks": 2,
        "network.attention_resolutions": (32, 16, 8),
        "network.num_head_channels": 64,
        "process.betas": "linear",
        "process.num_steps": 1000,
    },
    f"{_DDNM_CODE} main.py:69-73": {"solver.churn": 0.85, "guidance.operator.noise": 0.0},
}


def _dps(variant: str, file: str, scale: float, *differences: str, **operator: object) -> Published:
    values = {f"guidance.operator.{key}": value for key, value in operator.items()}
    source = f"{_DPS_CODE} configs/{file}_config.yaml:4-18"
    own = {source: {"guidance.method.scale": scale, **values}}
    return Published(
        paper=DPS,
        variants=(f"inverse:{variant}",),
        values=own | _DPS_SHARED,
        differences=(*_DPS_DIFFERENCES, *differences),
    )


def _diffpir(variant: str, file: str, **operator: object) -> Published:
    return Published(
        paper=DIFFPIR,
        variants=(f"inverse:{variant}",),
        values={
            f"{_DIFFPIR_CODE} configs/{file}.yaml:4-17": {
                "sampling.steps": 100,
                "guidance.method.ratio": 1.0,
                "solver.churn": 0.1**0.5,
                "guidance.operator.noise": 2 * 12.75 / 255,
                **{f"guidance.operator.{key}": value for key, value in operator.items()},
            }
        },
        differences=(
            "Timesteps are evenly spaced here and quadratic there. The data step has the noise that was added here and "
            "half of it there, so that lambda is 4 times as large there.",
        ),
    )


TABLE: tuple[Published, ...] = (
    _dps("ffhq256_sr4", "super_resolution", 0.3, factor=4, noise=0.05),
    _dps("ffhq256_random", "inpainting", 0.5, missing=(0.3, 0.7), noise=0.05),
    _dps("ffhq256_box", "inpainting", 0.5, size=128, noise=0.05),
    _dps("ffhq256_gaussian", "gaussian_deblur", 0.3, _NO_NOISE, size=61, std=3.0),
    _dps("ffhq256_motion", "motion_deblur", 0.3, size=61, intensity=0.5, noise=0.05),
    _dps("ffhq256_phase", "phase_retrieval", 1.0, _NO_NOISE),
    Published(
        paper=DDNM,
        variants=("inverse:imagenet256_sr4", "inverse:imagenet256_inpainting"),
        values={"arXiv:2212.00490": {"sampling.steps": 100, "solver.eps": "raw"}} | _DDNM_SHARED,
        differences=("The fraction of pixels that inpainting removes is not in the files and was not confirmed.",),
    ),
    _diffpir("imagenet256_sr4_diffpir", "sisr", factor=4),
    _diffpir("imagenet256_gaussian_diffpir", "deblur", size=61),
    Published(
        paper=DDRM,
        variants=("inverse:imagenet256_sr4_ddrm",),
        values={
            f"{_DDRM_CODE} README.md, sr4 of ImageNet": {
                "sampling.steps": 20,
                "solver.churn": 0.85,
                "guidance.method.eta": 0.85,
                "guidance.method.eta_b": 1.0,
                "guidance.operator.factor": 4,
                "guidance.operator.noise": 2 * 0.05,
            },
            f"{_DDRM_CODE} configs/imagenet_256.yml": {
                "network.model_channels": 256,
                "network.num_res_blocks": 2,
                "network.attention_resolutions": (32, 16, 8),
                "network.num_head_channels": 64,
                "process.betas": "linear",
                "process.num_steps": 1000,
            },
        },
        differences=(
            "Sampling starts from noise alone here, at the last timestep; there from the measurement with noise, at "
            "timestep 950. Without noise A x_0 = y exactly here.",
        ),
    ),
    Published(
        paper=DAPS,
        variants=("inverse:ffhq256_phase_daps",),
        values={
            f"{_DAPS_CODE} configs/sampler/edm_daps.yaml": {"sampling.steps": 200, "guidance.method.steps": 5},
            f"{_DAPS_CODE} configs/task/phase_retrieval.yaml": {
                "guidance.method.langevin": 100,
                "guidance.operator.noise": 0.05,
            },
        },
        differences=(
            "Noise levels are those of evenly spaced timesteps here; there sigma^(1/7) is evenly spaced from 100 to "
            "0.1. Langevin steps have the true noise and a length in units of the variance here; there a noise of "
            "0.01 / sqrt(2) and a learning rate of 5e-5 that falls to 1 %.",
        ),
    ),
)
