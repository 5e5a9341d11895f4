"""Published values of MeanFlow, reflow and progressive distillation."""

from __future__ import annotations

from benchmarks.published.entry import Published

_MEAN_FLOW = "MeanFlow (arXiv:2505.13447)"
_MEAN_FLOW_CODE = "Gsunshine/meanflow"
_RECTIFIED_CODE = "gnobitab/RectifiedFlow ImageGeneration"
_DISTILLATION = "Progressive distillation (arXiv:2202.00512)"
_DISTILLATION_CODE = "google-research/google-research diffusion_distillation/diffusion_distillation"
_COSINE = {
    "process.log_snr_max": 20.0,
    "process.log_snr_min": -20.0,
    "optimizer.clip_norm": 1.0,
    "data.flip": True,
}
_ADM = (
    "The network is `adm`, which has the authors' blocks. They embed the angle of the schedule, which is linear in t."
)
_FINE = {
    "solver.eta": 0.0,
    "ema.rates": (),
    "optimizer.schedule": "sawtooth",
    "optimizer.warmup_steps": 0,
    "network.dropout": 0.0,
}
_CIFAR10 = {
    "network.model_channels": 256,
    "network.channel_mult": (1, 1, 1),
    "network.num_res_blocks": 3,
    "network.num_heads": 1,
    "training.batch_size": 128,
}

TABLE: tuple[Published, ...] = (
    Published(
        paper=_MEAN_FLOW,
        variants=("mean_flow:imagenet256_b4", "mean_flow:imagenet256_xl2"),
        values={
            f"{_MEAN_FLOW_CODE} configs/default.py:32-82": {
                "optimizer.learning_rate": 1e-4,
                "optimizer.b2": 0.95,
                "training.batch_size": 256,
                "ema.rates": (0.9999,),
                "times.mean": -0.4,
                "times.std": 1.0,
                "system.cond_dropout": 0.1,
                "sampling.steps": 1,
            },
            f"{_MEAN_FLOW_CODE} train.py:72-76": {"optimizer.name": "adamw", "optimizer.weight_decay": 0.0},
        },
        differences=(
            "Rows with s = t, and rows without a class, are drawn at random; the authors take the first of a batch.",
            "The authors' latents are of the autoencoder sd-vae-ft-mse.",
        ),
    ),
    Published(
        paper=_MEAN_FLOW,
        variants=("mean_flow:imagenet256_b4",),
        values={
            f"{_MEAN_FLOW_CODE} configs/default.py:62-67": {"system.omega": 1.0, "system.kappa": 0.5},
            f"{_MEAN_FLOW_CODE} configs/run_b4.yml:2": {
                "network.patch_size": 4,
                "network.hidden_size": 768,
                "network.depth": 12,
                "network.num_heads": 12,
            },
        },
        differences=("1,200,000 steps of 256 are the 240 epochs of configs/run_b4.yml:11, rounded.",),
    ),
    Published(
        paper=_MEAN_FLOW,
        variants=("mean_flow:imagenet256_xl2",),
        values={
            f"{_MEAN_FLOW_CODE} models/models_dit.py:286": {
                "network.patch_size": 2,
                "network.hidden_size": 1152,
                "network.depth": 28,
                "network.num_heads": 16,
            },
            "wmchen/meanflow run_train_meanflow.sh": {
                "system.omega": 0.2,
                "system.kappa": 1 - 0.2 / 2.5,
                "system.t_min": 0.3,
                "system.t_max": 0.8,
            },
        },
        differences=(
            "The guidance of XL/2 is that of another implementation, of the paper's scale 2.5 in t of [0.3, 0.8]; the "
            "authors' repository has a config of B/4 alone.",
        ),
    ),
    Published(
        paper="Rectified flow (arXiv:2209.03003)",
        variants=("reflow:cifar10",),
        values={
            f"{_RECTIFIED_CODE}/configs/rectified_flow/cifar10_rf_gaussian_reflow_train.py:55-64": {
                "ema.rates": (0.9999,),
                "network.fir": False,
            },
            f"{_RECTIFIED_CODE}/configs/default_cifar10_configs.py:9-73": {
                "training.batch_size": 128,
                "training.num_steps": 1_300_000,
                "network.dropout": 0.1,
                "optimizer.learning_rate": 2e-4,
                "optimizer.warmup_steps": 5000,
                "optimizer.clip_norm": 1.0,
            },
        },
        differences=(
            "Pairs are drawn by --mode=sample, with 64 steps of Heun's method; the authors take an adaptive solver, "
            "and suggest at least a million pairs (README.md:91).",
        ),
    ),
    Published(
        paper=_DISTILLATION,
        variants=("progressive_distillation:cifar10",),
        values={
            f"{_DISTILLATION_CODE}/config/cifar_distill.py": {
                **_COSINE,
                **_FINE,
                **_CIFAR10,
                "system.teacher_steps": 8192,
                "system.stages": (50_000,) * 13,
                "optimizer.learning_rate": 5e-5,
                "parameterization.name": "x0",
                "weighting.name": "truncated_snr",
                "sampling.steps": 1,
            },
        },
        differences=(
            _ADM,
            "One run has all stages, and Adam's moments are kept between them; the authors start a run for each.",
        ),
    ),
    Published(
        paper=_DISTILLATION,
        variants=("progressive_distillation:imagenet64",),
        values={
            f"{_DISTILLATION_CODE}/config/imagenet64_distill.py": {
                **_COSINE,
                **_FINE,
                "network.model_channels": 192,
                "network.channel_mult": (1, 2, 3, 4),
                "network.num_res_blocks": 3,
                "network.num_head_channels": 64,
                "training.batch_size": 2048,
                "system.teacher_steps": 1024,
                "system.stages": (50_000,) * 10,
                "optimizer.learning_rate": 1e-4,
                "weighting.name": "truncated_snr",
                "sampling.steps": 1,
            },
        },
        differences=(
            _ADM,
            "The network predicts v, one of the paper's parameterizations; the authors' config predicts x and eps and "
            "averages them.",
        ),
    ),
    Published(
        paper=_DISTILLATION,
        variants=("progressive_distillation:cifar10_teacher",),
        values={
            f"{_DISTILLATION_CODE}/config/cifar_base.py": {
                **_COSINE,
                **_CIFAR10,
                "network.dropout": 0.2,
                "optimizer.learning_rate": 2e-4,
                "optimizer.warmup_steps": 1000,
                "optimizer.weight_decay": 0.001,
                "ema.rates": (0.9999,),
                "parameterization.name": "x0",
                "weighting.name": "truncated_snr",
                "sampling.steps": 1024,
            },
        },
        differences=(_ADM, "The number of training steps is ours."),
    ),
    Published(
        paper=_DISTILLATION,
        variants=("progressive_distillation:imagenet64_teacher",),
        values={
            f"{_DISTILLATION_CODE}/config/imagenet64_base.py": {
                **_COSINE,
                "network.dropout": 0.1,
                "network.model_channels": 192,
                "training.batch_size": 2048,
                "optimizer.learning_rate": 3e-4,
                "optimizer.warmup_steps": 1000,
                "ema.rates": (0.9999,),
                "weighting.name": "truncated_snr",
                "sampling.steps": 1024,
            },
        },
        differences=(
            _ADM,
            "The network predicts v; the authors' config predicts x and eps and averages them.",
            "The number of training steps is ours.",
        ),
    ),
)
