"""Published values of R3GAN and of denoising diffusion GANs."""

from __future__ import annotations

from typing import Any

from benchmarks.published.entry import Published

R3GAN = "R3GAN (arXiv:2501.05441)"
DDGAN = "Denoising diffusion GANs (arXiv:2112.07804)"
_R3GAN_CODE = "brownvc/R3GAN"
_DDGAN_CODE = "NVlabs/denoising-diffusion-gan"

_SHARED: dict[str, dict[str, Any]] = {
    f"{_DDGAN_CODE} train_ddgan.py:54-85": {"process.betas": "vp"},
    f"{_DDGAN_CODE} train_ddgan.py:275-420": {
        "system.loss": "non_saturating",
        "system.r2": 0.0,
        "system.tanh": True,
        "optimizer.name": "adam",
        "optimizer.schedule": "cosine",
    },
    f"{_DDGAN_CODE} train_ddgan.py:505-550": {
        "network.attention_resolutions": (16,),
        "network.dropout": 0.0,
        "network.vector_dim": 100,
        "optimizer.b1": 0.5,
        "optimizer.b2": 0.9,
    },
}
_DIFFERENCES = (
    "The generator is ADM's network here, in which the embedding of z is added to that of the timestep, and both scale "
    "and shift normalised activations; the authors' NCSN++ adds the timestep, and z alone, after pixel normalisation "
    "and a deeper mapping, scales and shifts.",
    "The discriminator has R3GAN's blocks here, at the widths and resolutions of the authors', and no standard "
    "deviation over the batch, on which the logit of an image would depend.",
    "Both players step at once from the same x_t and z here; the authors let them take turns, with new draws.",
    "Without the authors' first beta of 1e-8 the state at t = 0 is the image itself.",
)


def _ddgan(name: str, lines: str, values: dict[str, Any], *differences: str) -> Published:
    return Published(
        paper=DDGAN,
        variants=(f"ddgan:{name}",),
        values={f"{_DDGAN_CODE} readme.md:{lines}": values | {"network.num_res_blocks": 2}} | _SHARED,
        differences=(*_DIFFERENCES, *differences),
    )


TABLE: tuple[Published, ...] = (
    Published(
        paper=R3GAN,
        variants=("gan:cifar10_r3gan",),
        values={
            f"{_R3GAN_CODE} train.py:178-196": {
                "system.latent_dim": 64,
                "system.r1": 0.05,
                "system.r2": 0.05,
                "system.final_factor": 0.1,
                "system.anneal_steps": 20_000_000 // 512,
                "network.channels": (768, 768, 768, 768),
                "network.num_res_blocks": 2,
                "network.expansion": 2,
                "network.group_width": 2 * 768 // 96,
                "system.discriminator.channels": (768, 768, 768, 768),
                "optimizer.learning_rate": 2e-4,
                "optimizer.final_factor": 0.25,
                "ema.rates": (0.5 ** (512 / 5_000_000),),
            },
            f"{_R3GAN_CODE} train.py:159-162": {"optimizer.name": "adam", "optimizer.b1": 0.0},
            f"{_R3GAN_CODE} README.md:36": {
                "training.batch_size": 512,
                "network.num_classes": 10,
                "data.flip": True,
            },
            f"{_R3GAN_CODE} R3GAN/Trainer.py:13-52": {"system.loss": "relativistic", "system.every": 1},
        },
        differences=(
            "Training ends here where the authors' schedules do, after 2e7 images; theirs goes on at the final values.",
            "Adam's second decay is 0.99 throughout here, where theirs rises from 0.9 to 0.99, and the average has its "
            "final rate from its warm-up on.",
            "There is no augmentation here; the authors have that of StyleGAN2-ADA, whose probability rises to 0.55.",
            "The computation is in float32 here; the authors have bfloat16 in the lower three resolutions.",
            "Both players step at once here, and in turn there.",
        ),
    ),
    _ddgan(
        "cifar10",
        "31-34",
        {
            "process.num_steps": 4,
            "network.model_channels": 128,
            "network.channel_mult": (1, 2, 2, 2),
            "training.batch_size": 4 * 64,
            "training.num_steps": 1800 * (50_000 // 256),
            "ema.rates": (0.9999,),
            "system.r1": 0.02,
            "system.every": 15,
            "optimizer.learning_rate": 1.6e-4,
            "optimizer.groups.discriminator.learning_rate": 1.25e-4,
        },
        "The authors take the checkpoint of epoch 1200, chosen by FID.",
    ),
    _ddgan(
        "lsun_church256",
        "41-43",
        {
            "process.num_steps": 4,
            "network.model_channels": 64,
            "network.channel_mult": (1, 1, 2, 2, 4, 4),
            "training.batch_size": 8 * 8,
            "training.num_steps": 500 * (120_000 // 64),
            "ema.rates": (0.999,),
            "system.r1": 1.0,
            "system.every": 10,
            "optimizer.learning_rate": 1.6e-4,
            "optimizer.groups.discriminator.learning_rate": 1e-4,
        },
        "All images of the set are read here, and the first 120,000 there.",
    ),
    _ddgan(
        "celebahq256",
        "50-52",
        {
            "process.num_steps": 2,
            "network.model_channels": 64,
            "network.channel_mult": (1, 1, 2, 2, 4, 4),
            "training.batch_size": 8 * 4,
            "system.r1": 2.0,
            "system.every": 10,
            "optimizer.learning_rate": 2e-4,
            "optimizer.groups.discriminator.learning_rate": 1e-4,
        },
        "The number of steps is 800 epochs of all 30,000 images; the authors hold some out.",
    ),
)
