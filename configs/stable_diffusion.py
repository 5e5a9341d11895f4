"""Stable Diffusion, SDXL, ControlNet: text to image with public checkpoints (arXiv:2112.10752, 2307.01952, 2302.05543).

    python -m diffusion_jax.main --config=configs/stable_diffusion.py --workdir=runs/words
    python -m diffusion_jax.main --config=configs/stable_diffusion.py:sd15 --workdir=runs/sd15 --mode=sample \\
        --config.weights=FOLDER --config.sampling.cond="a photograph of an astronaut|a watercolour of a fox"

Without a variant, a small network of this kind learns the digits of scikit-learn from words such as "seven", from
scratch, in minutes on two CPU cores and without a file of weights. The text encoder is random and not trained, which is
enough to distinguish ten words; the latents are the pixels. `digits_edits` is InstructPix2Pix of this size: it inverts,
rotates or thickens a digit as a word says, and learns it from pairs that are computed. `emoji_edits` edits pictures in
colour.

All other variants are those of public checkpoints. FOLDER holds one of them as diffusers writes it, with
model_index.json; it provides the network, the text encoders, the tokenizer and the first stage. With --mode=train the
network is fine-tuned on the images and texts of config.data.path (--config.data.caption_key says where the texts are).

`sd15` (also 1.1 to 1.4), `sd21` and `sdxl` are text to image. `image_to_image` starts from an image, with
config.system.strength of the noise; `inpainting` paints where a mask is white; `instruct_pix2pix` edits an image as the
text says; `x4_upscaler` is super-resolution; `controlnet` follows a control image such as edges or poses (FOLDER is
then the ControlNet's, and the U-Net is read from config.system.pipeline). Their requests are a file *.json, see
docs/stable_diffusion.md. `ldm` is latent diffusion's first text-to-image model, of 1.45 billion parameters with its
text encoder.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import choose, defaults, presets, replace


def clip(width: int, layers: int, heads: int, activation: str, **options: int) -> dict[str, Any]:
    """The text encoder of CLIP or OpenCLIP."""
    sizes = dict(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads)
    return dict(name="clip_text", **sizes, hidden_act=activation, **options)


VIT_L = clip(768, 12, 12, "quick_gelu")
# OpenCLIP's ViT-H without the last of its 24 blocks, as Stable Diffusion 2 uses it.
VIT_H = clip(1024, 23, 16, "gelu")
VIT_BIG_G = clip(1280, 32, 20, "gelu", projection_dim=1280)
KL_F8 = dict(
    name="autoencoder_kl",
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    latent_channels=4,
)
SD1 = dict(
    name="unet_2d_condition",
    block_out_channels=(320, 640, 1280, 1280),
    layers_per_block=2,
    transformer_layers=(1, 1, 1, 0),
    num_attention_heads=8,
    token_dim=768,
    max_tokens=77,
)
SD2 = SD1 | dict(num_attention_heads=(5, 10, 20, 20), use_linear_projection=True, token_dim=1024)


def digits() -> ConfigDict:
    return replace(
        defaults(),
        system=dict(
            name="text_to_image",
            task="text_to_image",
            tokenizer="bytes",
            embeddings=(),
            first_stage=dict(name="identity"),
            text_encoder=dict(
                name="clip_text",
                vocab_size=257,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=8,
            ),
            cond_dropout=0.1,
        ),
        process=dict(name="discrete_vp", betas="cosine", num_steps=1000),
        parameterization=dict(name="v", label="index"),
        times=dict(name="discrete", num_steps=1000),
        network=dict(
            name="unet_2d_condition",
            block_out_channels=(32, 64),
            layers_per_block=1,
            transformer_layers=(0, 1),
            num_attention_heads=4,
            norm_num_groups=8,
            token_dim=64,
            max_tokens=8,
        ),
        solver=dict(name="ddim"),
        guidance=dict(name="classifier_free", scale=2.0),
        data=dict(captions=presets.WORDS),
        **presets.digits(2000, batch_size=64, warmup_steps=100),
        sampling=dict(
            steps=50, batch_size=500, grid=dict(name="discrete", spacing="trailing"), threshold=dict(name="static")
        ),
    )


def edits(config: ConfigDict, examples: dict[str, Any], names: tuple[str, ...]) -> ConfigDict:
    """The same model as InstructPix2Pix (arXiv:2211.09800), of edits that are computed.

    Text and image are dropped independently, each in 5 % of the examples, as almost exactly there. The weights,
    max(SNR, 1), train D at high noise as well, where the edit of the image is decided.
    """
    size = dict(image_size=config.data.image_size, channels=config.data.channels)
    config.system.task, config.system.cond_dropout = "instruct_pix2pix", 0.05
    config.network.image_channels = size["channels"]
    return replace(
        config,
        weighting=dict(name="truncated_snr"),
        guidance=dict(name="instruct_pix2pix", scale=1.5, image_scale=1.0),
        data=dict(name="edits", split="train", eval_split="test", **size, examples=examples, edits=names),
        evaluation=dict(metrics=(), after_training=False),
    )


def digits_edits() -> ConfigDict:
    names = ("invert", "mirror", "rotate", "left", "brighten", "darken", "thicken", "blur")
    return edits(digits(), dict(name="digits"), names)


def emoji_edits() -> ConfigDict:
    """32 x 32 pictures in an .npz file, config.data.examples.path, of which a twentieth is held out."""
    config = digits()
    config.data.image_size, config.data.channels = 32, 3
    config.network.block_out_channels, config.network.transformer_layers = (64, 128, 128), (0, 1, 1)
    config.network.max_tokens = config.system.text_encoder.max_position_embeddings = 16
    names = ("mirror", "rotate", "invert", "brighten", "darken", "blur", "grey", "swap", "rotate_colours")
    config = edits(config, dict(name="arrays", path=""), names)
    config.data.split, config.data.eval_split = "train[:95%]", "train[95%:]"
    config.training.update(num_steps=20_000, batch_size=64, checkpoint_every=1000, sample_every=5000)
    return config


def public(
    *,
    network: dict[str, Any],
    text_encoder: dict[str, Any],
    image_size: int,
    task: str = "text_to_image",
    first_stage: dict[str, Any] = KL_F8,
    latent_scale: float = 0.18215,
    parameterization: str = "eps",
    betas: tuple[float, float] = (0.00085, 0.012),
    guidance: dict[str, Any] | None = None,
    **system: Any,
) -> ConfigDict:
    """The sections that all public variants share: a scaled linear noise schedule, DDIM in 50 steps."""
    return replace(
        defaults(),
        system=dict(
            name="text_to_image",
            task=task,
            pipeline="",
            tokenizer="",
            embeddings=(),
            first_stage=first_stage,
            latent_scale=latent_scale,
            text_encoder=text_encoder,
            negative_prompt="",
            cond_dropout=0.1,
            decode_batch_size=1,
            **system,
        ),
        process=dict(name="discrete_vp", betas="scaled_linear", num_steps=1000, beta_start=betas[0], beta_end=betas[1]),
        parameterization=dict(name=parameterization, label="index"),
        times=dict(name="discrete", num_steps=1000),
        network=network,
        solver=dict(name="ddim"),
        guidance=guidance or dict(name="classifier_free", scale=7.5),
        data=dict(
            name="folder",
            split="train[:99%]",
            eval_split="train[99%:]",
            image_size=image_size,
            channels=3,
            path="",
            caption_key="text",
        ),
        training=dict(num_steps=10_000, batch_size=8, log_every=10, sample_every=0, dtype="bfloat16"),
        optimizer=dict(name="adamw", learning_rate=1e-5, weight_decay=0.01, warmup_steps=500, clip_norm=1.0),
        ema=dict(rates=()),
        sampling=dict(
            num_samples=4, batch_size=4, steps=50, grid=dict(name="discrete", spacing="leading", offset=1, end=1)
        ),
        evaluation=dict(metrics=(), after_training=False),
    )


def sd15(network: dict[str, Any] = SD1, **given: Any) -> ConfigDict:
    return public(network=network, text_encoder=VIT_L, image_size=512, **given)


def sd21() -> ConfigDict:
    return public(network=SD2, text_encoder=VIT_H, image_size=768, parameterization="v")


def image_to_image() -> ConfigDict:
    return sd15(task="image_to_image", strength=0.8)


def inpainting() -> ConfigDict:
    return sd15(SD1 | dict(image_channels=5), task="inpainting")


def instruct_pix2pix() -> ConfigDict:
    guidance = dict(name="instruct_pix2pix", scale=7.5, image_scale=1.5)
    return sd15(SD1 | dict(image_channels=4), task="instruct_pix2pix", guidance=guidance)


def controlnet() -> ConfigDict:
    return sd15(SD1 | dict(name="controlnet", hint_channels=(16, 32, 96, 256)))


def x4_upscaler() -> ConfigDict:
    network = SD2 | dict(
        block_out_channels=(256, 512, 512, 1024),
        transformer_layers=(0, 1, 1, 1),
        num_attention_heads=8,
        only_cross_attention=(True, True, True, False),
        num_classes=999,
        image_channels=3,
    )
    return public(
        network=network,
        text_encoder=VIT_H,
        image_size=512,
        task="upscaling",
        first_stage=KL_F8 | dict(block_out_channels=(128, 256, 512)),
        latent_scale=0.08333,
        parameterization="v",
        betas=(0.0001, 0.02),
        guidance=dict(name="classifier_free", scale=9.0),
        noise_level=20,
    )


def sdxl() -> ConfigDict:
    network = SD1 | dict(
        block_out_channels=(320, 640, 1280),
        transformer_layers=(0, 2, 10),
        num_attention_heads=(5, 10, 20),
        use_linear_projection=True,
        token_dim=2048,
        vector_dim=1280,
        num_sizes=6,
        sizes_dim=256,
    )
    return public(
        network=network,
        text_encoder=VIT_L | dict(skip=1, normalize=False),
        text_encoder_2=VIT_BIG_G | dict(skip=1, normalize=False),
        image_size=1024,
        latent_scale=0.13025,
        guidance=dict(name="classifier_free", scale=5.0),
        zero_negative=True,
    )


def ldm() -> ConfigDict:
    return public(network=SD1 | dict(token_dim=1280), text_encoder=dict(name="ldm_bert"), image_size=256)


VARIANTS = {
    "digits": digits,
    "digits_edits": digits_edits,
    "emoji_edits": emoji_edits,
    "sd15": sd15,
    "sd21": sd21,
    "image_to_image": image_to_image,
    "inpainting": inpainting,
    "instruct_pix2pix": instruct_pix2pix,
    "controlnet": controlnet,
    "x4_upscaler": x4_upscaler,
    "sdxl": sdxl,
    "ldm": ldm,
}


def get_config(variant: str | None = None) -> ConfigDict:
    return choose(variant, VARIANTS, "digits")()
