"""VDM (variational diffusion models): network and noise schedule trained on the variational bound (arXiv:2107.00630).

    python -m diffusion_jax.main --config=configs/vdm.py --workdir=runs/vdm
    python -m diffusion_jax.main --config=configs/vdm.py:cifar10 --workdir=runs/vdm_cifar10

`held_out_bits_per_dim` in evaluation.json is the bound in continuous time, held_out_reconstruction, _prior and
_diffusion its three parts; density_baseline_bits_per_dim is the value of a Gaussian mixture on the same examples
(docs/vdm.md). --config.system.num_steps=T takes the bound of T steps.

Without a variant, a small network is trained on the 8 x 8 digits of scikit-learn, in minutes on two CPU cores. `mnist`
trains a small U-Net in about 20 minutes on a CPU; prepare the data with
`python -m diffusion_jax.data.prepare mnist --from DIR`.

`cifar10`, `imagenet32` and `imagenet64` are the paper's settings: networks without down-sampling of depth 32, 32 and
64, Fourier features and a linear schedule of log-SNR, whose ends are learned. It reports 2.65, 3.72 and 3.40 bits/dim.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def vdm(*, gamma_0: float = -13.3, hidden: int = 0, **sections: Any) -> ConfigDict:
    """The sections that all variants share. Log-SNR is linear in time at first, for hidden = 0 always: then its ends
    are learned alone. Time is continuous."""
    config = replace(
        defaults(),
        system=dict(name="vdm", num_steps=0, minimize_variance=True),
        process=dict(name="learned_vp", gamma_0=gamma_0, gamma_1=5.0, hidden=hidden),
        parameterization=dict(name="eps", label="log_snr"),
        solver=dict(name="ancestral"),
        sampling=dict(steps=250, grid=dict(name="uniform", t_min=0.0), denoise=True),
    )
    return replace(config, **sections)


def small(**sections: Any) -> ConfigDict:
    """The variants for a CPU. The noise schedule has ten times the learning rate of the network."""
    config = vdm(hidden=64, evaluation=dict(metrics=("classifier", "density_baseline")), **sections)
    return replace(config, optimizer=dict(groups=dict(schedule=dict(learning_rate=1e-2))))


def digits() -> ConfigDict:
    return small(
        gamma_0=-7.0,  # noise under which the 17 grey levels are far apart already
        # A network without skip connections from input to output learns fastest with EDM's preconditioning.
        parameterization=dict(name="edm", sigma_data=0.5),
        network=dict(name="mlp", hidden=512, num_layers=4, dropout=0.2, fourier=(3, 4)),
        data=dict(levels=17),
        **presets.digits(10_000),
        sampling=dict(batch_size=500),
    )


def mnist() -> ConfigDict:
    return small(
        network=presets.mnist_unet(fourier=(7, 8)),
        **presets.mnist(3000),
        sampling=dict(steps=100, batch_size=100),
    )


def paper(*, depth: int, channels: int, **data: Any) -> ConfigDict:
    """The paper's networks: `depth` residual blocks in the encoder path, without down-sampling, and attention in the
    middle block only."""
    return vdm(
        network=dict(
            name="unet",
            channels=channels,
            channel_mult=(1,),
            num_res_blocks=depth,
            attention_resolutions=(),
            dropout=0.1,
            fourier=(7, 8),
            kernel_init="fan_in",
            residual_input=True,
            zero_emb=True,
        ),
        data=dict(channels=3, path="", **data),
        training=dict(num_steps=10_000_000, batch_size=128, checkpoint_every=10_000, sample_every=100_000),
        optimizer=dict(
            name="adamw",
            learning_rate=2e-4,
            b2=0.99,
            weight_decay=0.01,
            decay="no_biases",
            warmup_steps=100,
            clip_norm=0.0,
        ),
        ema=dict(rates=(0.9999,), warmup=False),
        sampling=dict(steps=1000, num_samples=64, batch_size=64),
        evaluation=dict(metrics=(), after_training=False),
    )


def cifar10() -> ConfigDict:
    return paper(depth=32, channels=128, name="cifar10", split="train", eval_split="test", image_size=32)


def imagenet32() -> ConfigDict:
    return paper(
        depth=32, channels=256, name="downsampled_imagenet/32x32", split="train", eval_split="validation", image_size=32
    )


def imagenet64() -> ConfigDict:
    return paper(
        depth=64, channels=256, name="downsampled_imagenet/64x64", split="train", eval_split="validation", image_size=64
    )


VARIANTS = {
    "digits": digits,
    "mnist": mnist,
    "cifar10": cifar10,
    "imagenet32": imagenet32,
    "imagenet64": imagenet64,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
