"""Published values of Latent diffusion, its first stages, VQGAN and DiT."""

from __future__ import annotations

from benchmarks.published.entry import Published

LDM = "Latent diffusion (arXiv:2112.10752)"
_DIT_CODE = "facebookresearch/DiT"
_LDM_CODE = "CompVis/latent-diffusion"
_TAMING_CODE = "CompVis/taming-transformers"
_DIT_SHARED = {
    f"{_DIT_CODE} train.py:40,155,262": {
        "ema.rates": (0.9999,),
        "ema.warmup": False,
        "optimizer.name": "adamw",
        "optimizer.learning_rate": 1e-4,
        "optimizer.weight_decay": 0.0,
        "training.batch_size": 256,
    },
    f"{_DIT_CODE} models.py:158-160,262": {
        "system.cond_dropout": 0.1,
        "network.learn_sigma": True,
        "guidance.channels": 3,
    },
    f"{_DIT_CODE} sample_ddp.py:158-159": {"guidance.scale": 1.5, "sampling.steps": 250},
    f"{_DIT_CODE} diffusion/__init__.py:10-18": {
        "process.betas": "linear",
        "process.num_steps": 1000,
        "loss.name": "hybrid",
        "solver.variance": "learned",
    },
}
_LDM_SHARED = {
    f"{_LDM_CODE} ldm/modules/ema.py:6,30": {"ema.rates": (0.9999,), "ema.warmup": True},
    f"{_LDM_CODE} ldm/models/diffusion/ddpm.py:1370": {
        "optimizer.name": "adamw",
        "optimizer.weight_decay": 0.01,
        "optimizer.decay": "all",
    },
    f"{_LDM_CODE} ldm/modules/diffusionmodules/util.py:48-57": {
        "sampling.grid.spacing": "leading",
        "sampling.grid.offset": 1,
        "sampling.grid.end": 1,
    },
}
_LDM_VQ4 = {
    "process.betas": "scaled_linear",
    "process.beta_start": 0.0015,
    "process.beta_end": 0.0195,
    "network.model_channels": 224,
    "network.num_head_channels": 32,
    "system.normalize": "none",
}
_LDM_STEPS = "The number of steps is that of table 12 of the paper and was not confirmed in the repository."
_LDM_SPLIT = "Images for training and evaluation are split differently from the authors' lists of files."
_FIRST_STAGE = {
    f"{_LDM_CODE} ldm/models/autoencoder.py:30,202,388": {
        "ema.rates": (),
        "optimizer.name": "adam",
        "optimizer.b1": 0.5,
        "optimizer.b2": 0.9,
    },
}
_KL_DIFFERENCES = (
    "Batch and learning rate, 4.5e-6 per image, are those of one device: the authors' number of devices is not "
    "published.",
    "Discriminator and autoencoder are updated in the same step, the authors alternate; the norms of the discriminator "
    "are GroupNorm instead of BatchNorm.",
    "Data is any folder of images; the authors' class for OpenImages, and whether it flips images, is not published.",
)


def _kl(name: str, batch_size: int, num_steps: int, line: int) -> Published:
    return Published(
        paper=LDM,
        variants=(f"autoencoder_kl:openimages_{name}",),
        values={
            f"{_LDM_CODE} models/first_stage_models/kl-{name}/config.yaml": {
                "training.batch_size": batch_size,
                "optimizer.learning_rate": 4.5e-6 * batch_size,
                "system.kl_weight": 1e-6,
                "system.discriminator.start": 50_001,
                "system.discriminator.weight": 0.5,
                "data.crop": "random",
                "data.resize": (384, 384),
                "data.image_size": 256,
            },
            f"{_LDM_CODE} README.md:{line}": {"training.num_steps": num_steps},
            **_FIRST_STAGE,
        },
        differences=_KL_DIFFERENCES,
    )


TABLE: tuple[Published, ...] = (
    Published(
        paper="DiT (arXiv:2212.09748)",
        variants=("dit:imagenet256_xl2", "dit:imagenet256_b4", "latent_diffusion:imagenet_dit_xl2"),
        values=_DIT_SHARED,
        differences=(
            "The authors flip images before they encode them (train.py:160); `dit` reads latents, among which those of "
            "mirrored images must be. `latent_diffusion:imagenet_dit_xl2` flips.",
            "The number of steps of XL/2, 7 million, is the paper's and was not confirmed in the repository.",
        ),
    ),
    Published(
        paper="DiT (arXiv:2212.09748)",
        variants=("dit:imagenet256_b4",),
        values={f"{_DIT_CODE} README.md:97": {"training.num_steps": 400_000}},
    ),
    Published(
        paper="DiT (arXiv:2212.09748)",
        variants=("latent_diffusion:imagenet_dit_xl2",),
        values={f"{_DIT_CODE} train.py:160,203": {"system.latent_scale": 0.18215, "data.flip": True}},
        differences=(
            "The first stage is a run of `autoencoder_kl:openimages_f8`; the authors use Stable Diffusion's, whose "
            "decoder was trained longer.",
        ),
    ),
    Published(
        paper=LDM,
        variants=("latent_diffusion:celebahq_ldm4",),
        values={
            f"{_LDM_CODE} configs/latent-diffusion/celebahq-ldm-vq-4.yaml:2-63": {
                **_LDM_VQ4,
                "training.batch_size": 48,
                "optimizer.learning_rate": 2e-6 * 48,
            },
            f"{_LDM_CODE} README.md:298": {"sampling.steps": 200, "solver.eta": 0.0},
            f"{_TAMING_CODE} taming/data/faceshq.py:36": {"data.flip": False},
            **_LDM_SHARED,
        },
        differences=(_LDM_STEPS, _LDM_SPLIT),
    ),
    Published(
        paper=LDM,
        variants=("latent_diffusion:ffhq_ldm4",),
        values={
            f"{_LDM_CODE} configs/latent-diffusion/ffhq-ldm-vq-4.yaml:2-62": {
                **_LDM_VQ4,
                "training.batch_size": 42,
                "optimizer.learning_rate": 2e-6 * 42,
            },
            f"{_LDM_CODE} README.md:299": {"sampling.steps": 200, "solver.eta": 1.0},
            f"{_TAMING_CODE} taming/data/faceshq.py:58": {"data.flip": False},
            **_LDM_SHARED,
        },
        differences=(_LDM_STEPS, _LDM_SPLIT),
    ),
    Published(
        paper=LDM,
        variants=("latent_diffusion:lsun_bedroom_ldm4",),
        values={
            f"{_LDM_CODE} configs/latent-diffusion/lsun_bedrooms-ldm-vq-4.yaml:2-62": {
                **_LDM_VQ4,
                "training.batch_size": 48,
                "optimizer.learning_rate": 2e-6 * 48,
            },
            f"{_LDM_CODE} README.md:301": {"sampling.steps": 200, "solver.eta": 1.0},
            f"{_LDM_CODE} ldm/data/lsun.py:15": {"data.flip": True},
            **_LDM_SHARED,
        },
        differences=(_LDM_STEPS, _LDM_SPLIT),
    ),
    Published(
        paper=LDM,
        variants=("latent_diffusion:lsun_church_ldm8",),
        values={
            f"{_LDM_CODE} configs/latent-diffusion/lsun_churches-ldm-kl-8.yaml:2-68": {
                "process.beta_start": 0.0015,
                "process.beta_end": 0.0155,
                "loss.norm": "l1",
                "system.normalize": "scale",
                "optimizer.warmup_steps": 10_000,
                "optimizer.learning_rate": 5e-5,
                "network.model_channels": 192,
                "training.batch_size": 96,
            },
            f"{_LDM_CODE} README.md:300 and ldm/modules/diffusionmodules/util.py:48": {
                "sampling.steps": 500,
                "solver.eta": 0.0,
            },
            f"{_LDM_CODE} ldm/data/lsun.py:15": {"data.flip": True},
            **_LDM_SHARED,
        },
        differences=(
            "README.md names 400 steps; the code takes every second of 1000 timesteps then, which are 500.",
            "The standard deviation of the latents is an average over the training of the first stage; the authors "
            "take that of the first batch.",
            _LDM_STEPS,
        ),
    ),
    Published(
        paper=LDM,
        variants=("latent_diffusion:imagenet_ldm4",),
        values={
            f"{_LDM_CODE} configs/latent-diffusion/cin256-v2.yaml:2-66": {
                "process.beta_start": 0.0015,
                "process.beta_end": 0.0195,
                "optimizer.learning_rate": 1e-4,
                "network.model_channels": 192,
                "network.class_token_dim": 512,
                "system.normalize": "none",
            },
            f"{_LDM_CODE} ldm/data/imagenet.py:160": {"data.crop": "random", "data.flip": False},
            **_LDM_SHARED,
        },
        differences=(
            "Batch, number of steps and label dropout are those of the paper (table 13, appendix); steps and eta of "
            "the sampler follow the other models. They were not confirmed in the repository.",
        ),
    ),
    _kl("f4", 10, 176_991, 279),
    _kl("f8", 4, 246_803, 280),
    _kl("f16", 6, 442_998, 281),
    _kl("f32", 6, 406_763, 282),
    Published(
        paper=LDM,
        variants=("vqgan:openimages_f4",),
        values={
            f"{_LDM_CODE} models/first_stage_models/vq-f4/config.yaml:2-41": {
                "training.batch_size": 8,
                "optimizer.learning_rate": 4.5e-6 * 8,
                "system.discriminator.start": 0,
                "system.discriminator.weight": 0.75,
                "network.num_vq_embeddings": 8192,
                "data.crop": "random",
            },
            f"{_LDM_CODE} README.md:273": {"training.num_steps": 533_066},
            **_FIRST_STAGE,
        },
        differences=(
            *_KL_DIFFERENCES,
            "The size to which the smaller side is resized, 384 as for f8, is not in the file.",
        ),
    ),
    Published(
        paper=LDM,
        variants=("vqgan:openimages_f8",),
        values={
            f"{_LDM_CODE} models/first_stage_models/vq-f8/config.yaml:2-43": {
                "training.batch_size": 10,
                "optimizer.learning_rate": 4.5e-6 * 10,
                "system.discriminator.start": 1,
                "system.discriminator.weight": 0.6,
                "system.discriminator.n_layers": 2,
                "network.num_vq_embeddings": 16_384,
                "data.crop": "random",
                "data.resize": (384, 384),
            },
            f"{_LDM_CODE} README.md:275": {"training.num_steps": 971_043},
            **_FIRST_STAGE,
        },
        differences=_KL_DIFFERENCES,
    ),
    Published(
        paper="VQGAN (arXiv:2012.09841)",
        variants=("vqgan:imagenet_f16",),
        values={
            f"{_TAMING_CODE} configs/imagenet_vqgan.yaml:2-31": {
                "training.batch_size": 12,
                "optimizer.learning_rate": 4.5e-6 * 12,
                "system.discriminator.start": 250_001,
                "system.discriminator.weight": 0.8,
            },
            f"{_TAMING_CODE} README.md:69": {"network.num_vq_embeddings": 16_384},
            f"{_TAMING_CODE} taming/data/imagenet.py:135": {"data.crop": "random"},
            f"{_TAMING_CODE} taming/models/vqgan.py:128": {"optimizer.b1": 0.5, "optimizer.b2": 0.9, "ema.rates": ()},
        },
        differences=(
            "The published file of settings is that of 1,024 entries; those of 16,384 entries are trained so here.",
            "The number of steps is not published.",
            *_KL_DIFFERENCES[:2],
        ),
    ),
    Published(
        paper="VQGAN (arXiv:2012.09841)",
        variants=("vqgan:openimages_f4", "vqgan:openimages_f8", "vqgan:imagenet_f16"),
        values={
            f"{_TAMING_CODE} taming/modules/vqvae/quantize.py:222,294": {
                "system.codebook_weight": 0.25,
                "system.commitment_weight": 4.0,
                "system.decay": 0.0,
            },
        },
        differences=(
            "The authors' code weighs the commitment by 1 and the codebook by 0.25, the other way round than eq. 4 of "
            "the paper; these variants do the same.",
        ),
    ),
)
