"""Flow maps, which sample in one step: MeanFlow (arXiv:2505.13447) and shortcut models (arXiv:2410.12557).

    python -m diffusion_jax.main --config=configs/mean_flow.py --workdir=runs/mean_flow
    python -m diffusion_jax.main --config=configs/mean_flow.py:digits_shortcut --workdir=runs/shortcut
    python -m diffusion_jax.main --config=configs/mean_flow.py:imagenet256_b4 --workdir=runs/mean_flow_b4 \\
        --config.data.path=LATENTS

Without a variant, a small network is trained on the 8 x 8 digits of scikit-learn, in minutes on two CPU cores. Samples
take one evaluation of the network; --config.sampling.steps=2 and 4 take as many. `stacked_digits` is for the comparison
of families in docs/trilemma.md.

`imagenet256_b4` and `imagenet256_xl2` are MeanFlow's models of latents of ImageNet at 256 x 256, see `dit.py` for
LATENTS. The authors' README reports FID 11.35 in one step for B/4 after 240 epochs with guidance, and 48.16 without
(--config.system.kappa=0.0).
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def flow_map(**sections: Any) -> ConfigDict:
    """The sections that all variants share: straight paths, velocities, and one step of sampling."""
    config = replace(
        defaults(),
        process=dict(name="rectified_flow"),
        parameterization=dict(name="velocity", label="unit_time"),
        weighting=dict(name="velocity_matching"),
        solver=dict(name="flow_map"),
        sampling=dict(steps=1, grid=dict(name="uniform", t_min=0.0)),
    )
    return replace(config, **sections)


def digits() -> ConfigDict:
    # Samples in one step need u(x, 1, 0). Of the paper's times for latents, a logit-normal of standard deviation 1, one
    # in 3000 is above .95, too few for a short training; and one in two rows, not in four, has a gap.
    return flow_map(
        system=dict(name="mean_flow", ratio=0.5, power=0.5),
        times=dict(name="logit_normal", mean=-0.4, std=1.6),
        network=dict(name="mlp", gap=True, hidden=512, num_layers=4),
        **presets.digits(8000),
        sampling=dict(batch_size=500),
    )


def digits_shortcut() -> ConfigDict:
    # With the paper's values, 128 steps and one row in 8, one row in 56 has the whole gap: too few here.
    return replace(
        digits(), system=dict(name="shortcut", num_steps=16, every=2), times=dict(name="uniform", t_min=1e-3)
    )


def stacked_digits() -> ConfigDict:
    network = dict(name="mlp", gap=True, hidden=256, num_layers=4)
    return replace(digits(), network=network, **presets.compared(6000))


def imagenet256(*, num_steps: int, system: dict[str, Any], **network: Any) -> ConfigDict:
    return flow_map(
        system=dict(name="mean_flow", cond_dropout=0.1, **system),
        times=dict(name="logit_normal", mean=-0.4, std=1.0),
        network=dict(name="dit", gap=True, num_classes=1000, **network),
        data=dict(name="arrays", split="train", eval_split="train", image_size=32, channels=4, path=""),
        training=dict(num_steps=num_steps, batch_size=256, checkpoint_every=10_000, sample_every=0),
        optimizer=dict(name="adamw", learning_rate=1e-4, b1=0.9, b2=0.95, weight_decay=0.0, clip_norm=0.0),
        ema=dict(rates=(0.9999,), warmup=False),
        sampling=dict(batch_size=16, num_samples=16),
        evaluation=dict(metrics=(), after_training=False),
    )


def imagenet256_b4() -> ConfigDict:
    # 240 epochs of 1,281,167 images.
    return imagenet256(
        num_steps=1_200_000, system=dict(omega=1.0, kappa=0.5), patch_size=4, hidden_size=768, depth=12, num_heads=12
    )


def imagenet256_xl2() -> ConfigDict:
    return imagenet256(
        num_steps=1_200_000,
        system=dict(omega=0.2, kappa=0.92, t_min=0.3, t_max=0.8),
        patch_size=2,
        hidden_size=1152,
        depth=28,
        num_heads=16,
    )


VARIANTS = {
    "digits": digits,
    "digits_shortcut": digits_shortcut,
    "stacked_digits": stacked_digits,
    "imagenet256_b4": imagenet256_b4,
    "imagenet256_xl2": imagenet256_xl2,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
