"""Published values of Score SDEs, NCSN, EDM, VDM and rectified flow."""

from __future__ import annotations

from typing import Any

from benchmarks.published.entry import Published

SDE = "Score SDEs (arXiv:2011.13456)"
EDM = "EDM (arXiv:2206.00364)"
VDM = "VDM (arXiv:2107.00630)"
NCSNV2 = "NCSNv2 (arXiv:2006.09011)"

_SDE_CODE = "yang-song/score_sde"
_EDM_CODE = "NVlabs/edm"
_VDM_CODE = "google-research/vdm"
_NCSNV2_CODE = "ermongroup/ncsnv2"

_SDE_CIFAR10 = {
    f"{_SDE_CODE} configs/default_cifar10_configs.py:8-67": {
        "training.batch_size": 128,
        "data.flip": True,
        "network.dropout": 0.1,
        "optimizer.learning_rate": 2e-4,
        "optimizer.warmup_steps": 5000,
        "optimizer.clip_norm": 1.0,
        "sampling.steps": 1000,
        "sampling.denoise": True,
    },
    f"{_SDE_CODE} losses.py:231": {"ema.warmup": False},
}
_SDE_LSUN = {
    f"{_SDE_CODE} configs/default_lsun_configs.py:8-67": {
        "training.batch_size": 64,
        "training.num_steps": 2_400_000,
        "loss.reduce": "half_sum",
        "solver.snr": 0.075,
        "data.flip": True,
        "process.sigma_min": 2 * 0.01,
        "sampling.steps": 2000,
        "network.dropout": 0.0,
        "optimizer.learning_rate": 2e-4,
        "optimizer.warmup_steps": 5000,
        "optimizer.clip_norm": 1.0,
    },
    f"{_SDE_CODE} configs/ve/bedroom_ncsnpp_continuous.py:43-48": {
        "ema.rates": (0.999,),
        "network.ch_mult": (1, 1, 2, 2, 2, 2, 2),
        "network.num_res_blocks": 2,
    },
    f"{_SDE_CODE} losses.py:231": {"ema.warmup": False},
}
_SDE_1024 = {
    "training.batch_size": 8,
    "training.num_steps": 2_400_000,
    "solver.snr": 0.15,
    "process.sigma_min": 2 * 0.01,
    "process.sigma_max": 2 * 1348.0,
    "sampling.steps": 2000,
    "network.nf": 16,
    "ema.rates": (0.9999,),
    "ema.warmup": False,
    "optimizer.learning_rate": 2e-4,
    "optimizer.warmup_steps": 5000,
    "optimizer.clip_norm": 1.0,
}
_SDE_PC = (
    "The predictor comes before the corrector, whose step size has no norms; the authors' code corrects first, with "
    "norms averaged over the batch, and once more at the last time.",
    "The last step returns D(x, 1e-5); the authors' code returns the mean of the last predictor step.",
)
_EDM_SHARED = {
    f"{_EDM_CODE} training/training_loop.py:38,145": {"ema.warmup": False, "ema.rampup": 0.05},
    f"{_EDM_CODE} train.py:60,101": {"optimizer.name": "adam", "data.flip": False},
    f"{_EDM_CODE} training/loss.py:67": {"times.mean": -1.2, "times.std": 1.2},
    f"{_EDM_CODE} generate.py:27": {
        "process.sigma_min": 0.002,
        "process.sigma_max": 80.0,
        "sampling.grid.rho": 7.0,
        "sampling.grid.denoising": True,
    },
}
_EDM_DIFFERENCES = (
    "Entries of gradients that are not finite are replaced in the authors' code (nan_to_num); here the optimizer can "
    "skip such steps (`optimizer.skip_non_finite`).",
)
_VDM_SHARED = {
    f"{_VDM_CODE} configs/cifar10.py:44-79": {
        "process.hidden": 0,
        "process.gamma_0": -13.3,
        "process.gamma_1": 5.0,
        "network.dropout": 0.1,
        "training.batch_size": 128,
        "training.num_steps": 10_000_000,
        "optimizer.name": "adamw",
        "optimizer.learning_rate": 2e-4,
        "optimizer.warmup_steps": 100,
        "optimizer.b1": 0.9,
        "optimizer.b2": 0.99,
        "optimizer.weight_decay": 0.01,
        "ema.rates": (0.9999,),
        "system.num_steps": 0,
    },
    f"{_VDM_CODE} experiment.py:131-136": {"optimizer.decay": "no_biases"},
    f"{_VDM_CODE} train_state.py:88": {"ema.warmup": False},
    f"{_VDM_CODE} model_vdm.py:255,292,448": {
        "network.kernel_init": "fan_in",
        "network.residual_input": True,
        "network.zero_emb": True,
    },
}
_VDM_DIFFERENCES = (
    "The ends of gamma are trained; the authors' code trains an offset and a slope.",
    "Data is at 2 k / 255 - 1; the authors' code has 2 (k + 0.5) / 256 - 1.",
    "The network has no input for the flag of augmentation, which is 0 in these variants.",
    "Samples end with D(z, 0); the authors' code takes the most probable grey level.",
    "There are no variants cifar10_aug and cifar10_aug_paper, the models of CIFAR-10 with augmentation: `data` has "
    "no rotations by 90 degrees.",
)


def _edm(variants: tuple[str, ...], lines: str, steps_line: int, **values: Any) -> Published:
    """Options of the training command of EDM, with its defaults, and the steps of its sampling command."""
    options = dict(batch=512, lr=1e-3, dropout=0.13, augment=0.12) | values
    return Published(
        paper=EDM,
        variants=variants,
        values={
            f"{_EDM_CODE} README.md:{lines}, train.py:51-59": {
                "training.batch_size": options["batch"],
                "training.num_steps": options.get("images", 200_000_000) // options["batch"],
                "optimizer.learning_rate": options["lr"],
                "optimizer.warmup_steps": 10_000_000 // options["batch"],
                "ema.rates": (0.5 ** (options["batch"] / options.get("half_life", 500_000)),),
                "network.dropout": options["dropout"],
                **({"system.augment": options["augment"]} if options["augment"] else {}),
            },
            f"{_EDM_CODE} README.md:{steps_line}": {"sampling.steps": options["steps"], **options.get("solver", {})},
            **_EDM_SHARED,
        },
        differences=_EDM_DIFFERENCES,
    )


TABLE: tuple[Published, ...] = (
    Published(
        paper=SDE,
        variants=("score_sde:cifar10_ve_ncsnpp", "score_sde:cifar10_ve_ncsnpp_deep"),
        values={
            f"{_SDE_CODE} configs/default_cifar10_configs.py:20-53": {
                "loss.reduce": "half_sum",
                "solver.snr": 0.16,
                "process.sigma_min": 2 * 0.01,
                "process.sigma_max": 2 * 50.0,
            },
            f"{_SDE_CODE} configs/ve/cifar10_ncsnpp_continuous.py:31-38": {
                "solver.predictor": "reverse_diffusion",
                "ema.rates": (0.999,),
            },
            **_SDE_CIFAR10,
        },
        differences=_SDE_PC,
    ),
    Published(
        paper=SDE,
        variants=(
            "score_sde:cifar10_vp_ddpmpp",
            "score_sde:cifar10_vp_ddpmpp_deep",
            "score_sde:cifar10_subvp_ddpmpp",
            "score_sde:cifar10_subvp_ddpmpp_deep",
        ),
        values={
            f"{_SDE_CODE} configs/vp/cifar10_ddpmpp_continuous.py:28-62": {
                "loss.name": "denoising",
                "loss.reduce": "mean",
                "solver.name": "euler_maruyama",
                "ema.rates": (0.9999,),
                "network.fir": False,
                "network.progressive_input": "none",
                "network.embedding": "positional",
            },
            f"{_SDE_CODE} configs/default_cifar10_configs.py:54-55": {
                "process.beta_min": 0.1,
                "process.beta_max": 20.0,
            },
            **_SDE_CIFAR10,
        },
        differences=(
            "The last step returns D(x, 1e-3); the authors' code returns the mean of the last Euler-Maruyama step.",
        ),
    ),
    Published(
        paper=SDE,
        variants=("score_sde:cifar10_ve_ncsnpp", "score_sde:cifar10_vp_ddpmpp", "score_sde:cifar10_subvp_ddpmpp"),
        values={
            f"{_SDE_CODE} configs/default_cifar10_configs.py:9": {"training.num_steps": 1_300_000},
            f"{_SDE_CODE} configs/ve/cifar10_ncsnpp_continuous.py:43": {"network.num_res_blocks": 4},
        },
    ),
    Published(
        paper=SDE,
        variants=(
            "score_sde:cifar10_ve_ncsnpp_deep",
            "score_sde:cifar10_vp_ddpmpp_deep",
            "score_sde:cifar10_subvp_ddpmpp_deep",
        ),
        values={
            f"{_SDE_CODE} configs/ve/cifar10_ncsnpp_deep_continuous.py:28,46": {
                "training.num_steps": 950_000,
                "network.num_res_blocks": 8,
            },
        },
    ),
    Published(
        paper=SDE,
        variants=("score_sde:lsun_bedroom256_ve_ncsnpp",),
        values={
            f"{_SDE_CODE} configs/default_lsun_configs.py:51": {"process.sigma_max": 2 * 378.0},
            **_SDE_LSUN,
        },
        differences=_SDE_PC,
    ),
    Published(
        paper=SDE,
        variants=("score_sde:lsun_church256_ve_ncsnpp",),
        values={
            f"{_SDE_CODE} configs/ve/church_ncsnpp_continuous.py:42": {"process.sigma_max": 2 * 380.0},
            **_SDE_LSUN,
        },
        differences=_SDE_PC,
    ),
    Published(
        paper=SDE,
        variants=("score_sde:celebahq256_ve_ncsnpp", "score_sde:ffhq256_ve_ncsnpp"),
        values={
            f"{_SDE_CODE} configs/ve/celebahq_256_ncsnpp_continuous.py:45": {"process.sigma_max": 2 * 348.0},
            **_SDE_LSUN,
        },
        differences=_SDE_PC,
    ),
    Published(
        paper=SDE,
        variants=("score_sde:celebahq1024_ve_ncsnpp",),
        values={
            f"{_SDE_CODE} configs/ve/celebahq_ncsnpp_continuous.py:27-105": {**_SDE_1024, "loss.reduce": "half_sum"},
        },
        differences=_SDE_PC,
    ),
    Published(
        paper=SDE,
        variants=("score_sde:ffhq1024_ve_ncsnpp",),
        values={f"{_SDE_CODE} configs/ve/ffhq_ncsnpp_continuous.py:26-105": {**_SDE_1024, "loss.reduce": "mean"}},
        differences=_SDE_PC,
    ),
    Published(
        paper="Maximum likelihood training of score SDEs (arXiv:2101.09258)",
        variants=("score_sde:cifar10_vp_ddpmpp_deep_likelihood", "score_sde:cifar10_subvp_ddpmpp_deep_likelihood"),
        values={
            "yang-song/score_flow configs/vp/cifar10_ddpmpp_deep_continuous.py:28-55": {
                "training.num_steps": 950_000,
                "ema.rates": (0.9999,),
                "network.num_res_blocks": 8,
                "loss.reduce": "mean",
            },
            "yang-song/score_flow configs/default_cifar10_configs.py:8-85": {
                "training.batch_size": 128,
                "times.t_min": 1e-5,
                "network.dropout": 0.1,
                "optimizer.learning_rate": 2e-4,
                "optimizer.warmup_steps": 5000,
                "optimizer.clip_norm": 1.0,
            },
            "yang-song/score_flow losses.py:224": {"ema.warmup": False},
        },
        differences=(
            "Training data is dequantized; the authors' configs have uniform_dequantization=False.",
            "There is no augmentation; the authors publish models with and without flips.",
            "The sampler is Euler-Maruyama; the authors' configs sample by the ODE.",
        ),
    ),
    _edm(
        ("edm:cifar10_cond_ddpmpp", "edm:cifar10_cond_ncsnpp", "edm:cifar10_ddpmpp", "edm:cifar10_ncsnpp"),
        "204-207",
        92,
        steps=18,
    ),
    _edm(
        ("edm:ffhq_64_ddpmpp", "edm:ffhq_64_ncsnpp"),
        "208-209",
        96,
        batch=256,
        lr=2e-4,
        dropout=0.05,
        augment=0.15,
        steps=40,
    ),
    _edm(
        ("edm:afhqv2_64_ddpmpp", "edm:afhqv2_64_ncsnpp"),
        "210-211",
        96,
        batch=256,
        lr=2e-4,
        dropout=0.25,
        augment=0.15,
        steps=40,
    ),
    _edm(
        ("edm:imagenet64_adm",),
        "212",
        100,
        batch=4096,
        lr=1e-4,
        dropout=0.1,
        augment=0,
        images=2_500_000_000,
        half_life=50_000_000,
        steps=256,
        solver={"solver.churn": 40.0, "solver.s_min": 0.05, "solver.s_max": 50.0, "solver.s_noise": 1.003},
    ),
    Published(
        paper=VDM,
        variants=("vdm:cifar10",),
        values={
            f"{_VDM_CODE} configs/cifar10.py:50-51": {"network.channels": 128, "network.num_res_blocks": 32},
            **_VDM_SHARED,
        },
        differences=_VDM_DIFFERENCES,
    ),
    Published(
        paper=VDM,
        variants=("vdm:imagenet32",),
        values={
            f"{_VDM_CODE} configs/imagenet32.py:50-51": {"network.channels": 256, "network.num_res_blocks": 32},
            **_VDM_SHARED,
        },
        differences=_VDM_DIFFERENCES,
    ),
    Published(
        paper=VDM,
        variants=("vdm:imagenet64",),
        values={
            f"{_VDM_CODE} configs/imagenet64.py:50-51": {"network.channels": 256, "network.num_res_blocks": 64},
            **_VDM_SHARED,
        },
        differences=_VDM_DIFFERENCES,
    ),
    Published(
        paper="NCSN (arXiv:1907.05600)",
        variants=("ncsn:cifar10", "ncsn:celeba"),
        values={
            "ermongroup/ncsn configs/anneal.yml:2-44": {
                "training.batch_size": 128,
                "training.num_steps": 200_000,
                "optimizer.learning_rate": 1e-3,
                "times.num_levels": 10,
                "process.sigma_max": 2 * 1.0,
                "process.sigma_min": 2 * 0.01,
                "network.ngf": 128,
                "data.flip": True,
            },
            f"{_NCSNV2_CODE} configs/ncsn_original.yml:13-54": {
                "solver.step_size": 8 * 2e-5,
                "solver.num_steps": 100,
                "data.dequantize": True,
                "ema.rates": (),
                "sampling.denoise": False,
            },
        },
        differences=(
            "Sampling starts from noise of the largest sigma; the authors start from uniform noise in [0, 1].",
        ),
    ),
    *(
        Published(
            paper=NCSNV2,
            variants=(f"ncsnv2:{name}",),
            values={
                f"{_NCSNV2_CODE} configs/{name}.yml:2-66": {
                    "training.batch_size": 128,
                    "training.num_steps": num_steps,
                    "optimizer.learning_rate": 1e-4,
                    "times.num_levels": num_levels,
                    "process.sigma_max": 2.0 * sigma_max,
                    "process.sigma_min": 2 * 0.01,
                    "solver.num_steps": langevin_steps,
                    "ema.rates": (0.999,),
                    "network.ngf": 128,
                    "data.flip": True,
                    "sampling.denoise": True,
                },
                f"{_NCSNV2_CODE} models/ema.py:21": {"ema.warmup": False},
            },
            differences=(
                "The size of a Langevin step is that of technique 4 to all digits; the authors' file has two "
                "digits of it.",
                "Sampling starts from noise of the largest sigma; the authors start from uniform noise in [0, 1].",
            ),
        )
        for name, num_steps, num_levels, sigma_max, langevin_steps in (
            ("cifar10", 300_000, 232, 50, 5),
            ("celeba", 210_000, 500, 90, 5),
            ("bedroom", 150_000, 1086, 190, 3),
        )
    ),
    Published(
        paper="Rectified flow (arXiv:2209.03003)",
        variants=("flow:cifar10",),
        values={
            "gnobitab/RectifiedFlow ImageGeneration/configs/rectified_flow/cifar10_rf_gaussian_ddpmpp.py:29-48": {
                "ema.rates": (0.999999,),
                "network.dropout": 0.15,
                "network.fir": False,
                "loss.reduce": "mean",
            },
            "gnobitab/RectifiedFlow ImageGeneration/configs/default_cifar10_configs.py:8-71": {
                "training.batch_size": 128,
                "training.num_steps": 1_300_000,
                "data.flip": True,
                "optimizer.learning_rate": 2e-4,
                "optimizer.warmup_steps": 5000,
                "optimizer.clip_norm": 1.0,
            },
            "gnobitab/RectifiedFlow ImageGeneration/models/ema.py:46": {"ema.warmup": True},
        },
        differences=(
            "Samples take 64 steps of Heun's method; the authors take an adaptive solver (RK45, tolerance 1e-5).",
        ),
    ),
)
