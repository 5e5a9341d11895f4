"""The weights of CLIP's encoders in the layouts of transformers and of OpenCLIP (and OpenAI's own, which is the same).

| file | layout |
|---|---|
| diffusers' text_encoder/, text_encoder_2/: `CLIPTextModel`, `CLIPTextModelWithProjection` | `TEXT` |
| transformers' `CLIPVisionModel`, `CLIPVisionModelWithProjection` | `VISION` |
| original checkpoints of Stable Diffusion 2 and XL, OpenCLIP's files | `OPENCLIP_TEXT` |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from diffusion_jax.networks.clip import ARGMAX_EOS
from diffusion_jax.weights.layout import Layout
from diffusion_jax.weights.transformers_config import read

TEXT = Layout(
    rename=(
        (r"^(token_embedding|position_embedding)$", r"text_model.embeddings.\1"),
        (r"^layers\.", "text_model.encoder.layers."),
        (r"^final_layer_norm$", "text_model.final_layer_norm"),
    ),
    # transformers 5 writes a model without projection without the outer name.
    aliases=((r"^(embeddings|encoder|final_layer_norm)\.", r"text_model.\1."),),
    ignored=(r"position_ids$",),
)
VISION = Layout(
    rename=(
        (r"^(patch_embedding|position_embedding)$", r"vision_model.embeddings.\1"),
        (r"^layers\.", "vision_model.encoder.layers."),
        (r"^(pre_layrnorm|post_layernorm)$", r"vision_model.\1"),
    ),
    names=((r"^class_embedding$", "vision_model.embeddings.class_embedding"),),
    aliases=((r"^(embeddings|encoder|pre_layrnorm|post_layernorm)\.", r"vision_model.\1."),),
    ignored=(r"position_ids$",),
)
OPENCLIP_TEXT = Layout(
    rename=(
        (r"^position_embedding$", "positional_embedding"),
        (r"^final_layer_norm$", "ln_final"),
        (r"^layers\.", "transformer.resblocks."),
        (r"\.self_attn\.out_proj$", ".attn.out_proj"),
        (r"\.layer_norm([12])$", r".ln_\1"),
        (r"\.mlp\.fc1$", ".mlp.c_fc"),
        (r"\.mlp\.fc2$", ".mlp.c_proj"),
    ),
    join=tuple(
        (rf"^layers\.(\d+)\.self_attn\.{name}_proj$", r"transformer.resblocks.\1.attn.in_proj", i, 3)
        for i, name in enumerate("qkv")
    ),
    names=(
        (r"\.in_proj\.(weight|bias)$", r".in_proj_\1"),
        (r"^(positional_embedding|text_projection)\.weight$", r"\1"),
    ),
    kinds=((r"^text_projection\.kernel$", "same"),),
    ignored=(r"\blogit_scale$", r"\battn_mask$", r"\bvisual\."),
)

_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
# Defaults of transformers, which writes config.json without them.
_TEXT_DEFAULTS = dict(
    hidden_size=512,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=8,
    layer_norm_eps=1e-5,
    vocab_size=49408,
    max_position_embeddings=77,
    eos_token_id=49407,
)
_VISION_DEFAULTS = dict(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    layer_norm_eps=1e-5,
    num_channels=3,
    image_size=224,
    patch_size=32,
)


def originals(arguments: Mapping[str, Any]) -> tuple[Layout, ...]:
    """The layouts of text encoders within the original checkpoints of Stable Diffusion 1, 2 and XL.

    The checkpoint of 2 also holds the last layer and the projection of OpenCLIP, which it does not use.
    """
    unread = [rf"\.resblocks\.{arguments['num_hidden_layers']}\."]
    unread += [] if arguments.get("projection_dim") else [r"\.text_projection$"]
    return (
        dataclasses.replace(TEXT, prefix="cond_stage_model.transformer."),
        dataclasses.replace(OPENCLIP_TEXT, prefix="cond_stage_model.model.", ignored=(*OPENCLIP_TEXT.ignored, *unread)),
        dataclasses.replace(TEXT, prefix="conditioner.embedders.0.transformer."),
        dataclasses.replace(OPENCLIP_TEXT, prefix="conditioner.embedders.1.model."),
    )


def text_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `CLIPTextModel` from the config.json of a text encoder, or of a whole CLIP,.

    There is a projection if "architectures" names `CLIPTextModelWithProjection` or the whole `CLIPModel`.

    Raises:
        ValueError: the config is of another model, or has an option that `CLIPTextModel` does not support.
    """
    return _arguments(config, "text", _TEXT_DEFAULTS)


def vision_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `CLIPVisionModel`, as in `text_arguments`."""
    return _arguments(config, "vision", _VISION_DEFAULTS)


def text_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that `text_arguments` reads `arguments` from, up to `skip` and `normalize`."""
    return _config({"eos_token_id": ARGMAX_EOS, **arguments}, "Text", _TEXT_DEFAULTS)


def vision_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that `vision_arguments` reads `arguments` from."""
    return _config(arguments, "Vision", _VISION_DEFAULTS)


def _arguments(config: Mapping[str, Any], kind: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    whole = config.get("model_type") == "clip"
    section = config.get(f"{kind}_config") or {} if whole else config
    arguments = read(section, defaults, f"clip_{kind}_model")
    act = section.get("hidden_act", "quick_gelu")
    if act not in _ACTIVATIONS:
        raise ValueError(f"config.json: hidden_act={act!r} is unknown; choose one of {', '.join(_ACTIVATIONS)}")
    projected = whole or any("WithProjection" in name for name in section.get("architectures") or ())
    dim = (config if whole else section).get("projection_dim", 512) if projected else None
    return arguments | {"hidden_act": _ACTIVATIONS[act], "projection_dim": dim}


def _config(arguments: Mapping[str, Any], kind: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    projection = arguments.get("projection_dim")
    config = {name: arguments[name] for name in defaults if name in arguments}
    config["hidden_act"] = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[
        arguments.get("hidden_act", "quick_gelu")
    ]
    return config | {
        "architectures": [f"CLIP{kind}Model{'WithProjection' if projection else ''}"],
        "model_type": f"clip_{kind.lower()}_model",
        **({"projection_dim": projection} if projection else {}),
    }
