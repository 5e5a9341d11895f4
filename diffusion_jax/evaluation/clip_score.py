"""How well images fit texts: cosines of CLIP's embeddings (arXiv:2103.00020, arXiv:2104.08718)."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jaxtyping import Array, Float32, UInt8

from diffusion_jax.data import tokenization
from diffusion_jax.evaluation.features import ImageSet, image_source, read_images
from diffusion_jax.networks.clip import CLIPTextModel, CLIPVisionModel
from diffusion_jax.networks.functional import init_methods
from diffusion_jax.training.rows import in_batches
from diffusion_jax.types import Params
from diffusion_jax.weights import clip
from diffusion_jax.weights.files import open_weights, read_json
from diffusion_jax.weights.folders import weights_file
from diffusion_jax.weights.layout import Layout, import_params

# Of the images that OpenAI's and OpenCLIP's networks were trained on, values in [0, 1].
MEAN = np.float32([0.48145466, 0.4578275, 0.40821073])
DEVIATION = np.float32([0.26862954, 0.26130258, 0.27577711])
_WEIGHT = 2.5  # arXiv:2104.08718, section 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIP:
    """The two encoders of a CLIP, which score how well images fit texts.

    Attributes:
      tokenize: texts -> ids.
      image_size: side in pixels of its input images.
      params: of both encoders.
      embed: (params, ids, images [n, image_size, image_size, 3] normalised) -> their embeddings, compiled.
    """

    tokenize: tokenization.Tokenizer
    image_size: int
    params: dict[str, Params]
    embed: Callable[[dict[str, Params], Array, Array], tuple[Array, Array]]


def load(folder: str | os.PathLike) -> CLIP:
    """The CLIP in a folder of transformers: config.json of a `CLIPModel`, its weights, and the files of its tokenizer.

    Raises:
      FileNotFoundError, ValueError: files are missing, damaged or of another network.
    """
    folder = pathlib.Path(folder).expanduser()
    config, tensors = read_json(folder / "config.json"), open_weights(weights_file(folder))
    if config.get("model_type") != "clip":
        raise ValueError(f"{folder}: config.json must be that of a whole CLIP, of model_type 'clip'")
    text, vision = clip.text_arguments(config), clip.vision_arguments(config)

    def opened(network: type, arguments: Mapping[str, Any], layout: Layout, *names: str) -> tuple[Params, Callable]:
        init, (call,) = init_methods(lambda rngs: network(**arguments, rngs=rngs), ("__call__",))
        part = {name: tensor for name, tensor in tensors.items() if name.startswith(names)}
        return import_params(layout, part, jax.eval_shape(init, jax.random.key(0)), what=str(folder)), call

    text_params, read = opened(CLIPTextModel, text, clip.TEXT, "text_model.", "text_projection.")
    vision_params, see = opened(CLIPVisionModel, vision, clip.VISION, "vision_model.", "visual_projection.")

    @jax.jit
    def embed(params: dict[str, Params], ids: Array, images: Array) -> tuple[Array, Array]:
        return read(params["text"], ids).pooled, see(params["vision"], images).pooled

    return CLIP(
        tokenize=tokenization.load(folder, text["max_position_embeddings"]),
        image_size=vision["image_size"],
        params={"text": text_params, "vision": vision_params},
        embed=embed,
    )


def similarities(
    model: CLIP, images: ImageSet, prompts: Sequence[str], *, batch_size: int = 64
) -> Float32[np.ndarray, "n"]:
    """The cosine of the embeddings of each image and its prompt, in [-1, 1].

    Args:
      model: from `load`.
      images: n of them, of any sizes; see `features.image_source`. Each is resized and centre-cropped to the model's
        input size.
      prompts: n texts.
      batch_size: images that are embedded at once, over all devices.

    Raises:
      ValueError: another number of prompts than images, a prompt that is no string, or images that cannot be read.
    """
    source, ids = image_source(images, 3), model.tokenize(prompts)
    if len(source) != len(ids) or not len(ids):
        raise ValueError(f"there must be as many prompts as images, and at least one, got {len(ids)} and {len(source)}")

    def draw(rows: Array | np.ndarray, cond: Mapping[str, Array | np.ndarray]) -> Array:
        text, image = model.embed(model.params, cond["ids"], cond["x"])
        norms = jnp.linalg.norm(text, axis=-1) * jnp.linalg.norm(image, axis=-1)
        return jnp.sum(text * image, axis=-1) / norms

    cosines, size = [], min(batch_size, len(ids))
    for start in range(0, len(ids), size):
        # The last batch is padded, so that nothing is compiled twice.
        rows = np.minimum(np.arange(start, start + size), len(ids) - 1)
        x = np.concatenate([prepared(image[None], model.image_size) for image in read_images(source, rows)])
        cosines.append(in_batches(draw, size, size, {"ids": ids[rows], "x": x}))
    return np.concatenate(cosines)[: len(ids)]


def clip_score(
    model: CLIP, images: ImageSet, prompts: Sequence[str], *, batch_size: int = 64
) -> dict[str, float | int]:
    """`clip_similarity`, the mean of `similarities`, and `clip_score`, that of 2.5 max(similarity, 0).

    The score is that of arXiv:2104.08718, section 3, whose prompts begin with "A photo depicts"; nothing is added here.
    Scores of different CLIPs are not comparable. `clip_score_num` is the number of images. The errors are those of
    `similarities`.
    """
    cosines = similarities(model, images, prompts, batch_size=batch_size)
    return {
        "clip_similarity": float(cosines.mean()),
        "clip_score": float(_WEIGHT * np.maximum(cosines, 0).mean()),
        "clip_score_num": len(cosines),
    }


def prepared(x: UInt8[np.ndarray, "n h w c"], size: int) -> Float32[np.ndarray, "n {size} {size} 3"]:
    """8-bit images as CLIP takes them: the shorter side resized to `size` by PIL's bicubic filter, the middle, and
    normalised. Grey ones get three equal channels."""
    height, width = x.shape[1:3]
    short = min(height, width)
    shape = (size * width // short, size * height // short)
    left, top = (shape[0] - size) // 2, (shape[1] - size) // 2
    pixels = np.empty((len(x), size, size, 3), np.float32)
    for row, image in zip(pixels, np.broadcast_to(x, (*x.shape[:3], 3)), strict=True):
        resized = PIL.Image.fromarray(np.ascontiguousarray(image)).resize(shape, PIL.Image.Resampling.BICUBIC)
        row[:] = np.asarray(resized)[top : top + size, left : left + size]
    return (pixels / 255 - MEAN) / DEVIATION
