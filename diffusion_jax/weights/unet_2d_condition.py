"""The weights of text-to-image U-Nets and ControlNets in the layouts of diffusers and of their authors' checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from diffusion_jax.networks.controlnet import ControlNetModel
from diffusion_jax.networks.unet_2d_condition import UNet2DConditionModel
from diffusion_jax.weights.adm import averages
from diffusion_jax.weights.layout import Layout
from diffusion_jax.weights.options import options, refuse_changed, square, with_defaults

_TRANSFORMER = ((r"\.to_out$", ".to_out.0"), (r"\.ff\.proj_in$", ".ff.net.0.proj"), (r"\.ff\.proj_out$", ".ff.net.2"))
# UNet2DConditionModel and ControlNetModel of diffusers.
_FILM = (r"^film_embedding$", "class_embedding")
LAYOUT = Layout(rename=((r"^encoder\.", ""), (r"\.cross_attentions\.", ".attentions."), _FILM, *_TRANSFORMER))
# The parts of a residual block, and what lies outside of all blocks, in the names of the authors.
_ORIGINAL = (
    (r"(\.resnets\.\d+)\.norm1$", r"\1.in_layers.0"),
    (r"(\.resnets\.\d+)\.conv1$", r"\1.in_layers.2"),
    (r"(\.resnets\.\d+)\.time_emb_proj$", r"\1.emb_layers.1"),
    (r"(\.resnets\.\d+)\.norm2$", r"\1.out_layers.0"),
    (r"(\.resnets\.\d+)\.conv2$", r"\1.out_layers.3"),
    (r"(\.resnets\.\d+)\.conv_shortcut$", r"\1.skip_connection"),
    (r"^encoder\.time_embedding\.linear_1$", "time_embed.0"),
    (r"^encoder\.time_embedding\.linear_2$", "time_embed.2"),
    (r"^encoder\.add_embedding\.linear_1$", "label_emb.0.0"),
    (r"^encoder\.add_embedding\.linear_2$", "label_emb.0.2"),
    (r"^encoder\.class_embedding$", "label_emb"),
    (r"^encoder\.film_embedding$", "film_emb"),
    (r"^encoder\.conv_in$", "input_blocks.0.0"),
    (r"^encoder\.mid_block\.resnets\.0\.", "middle_block.0."),
    (r"^encoder\.mid_block\.cross_attentions\.0\.", "middle_block.1."),
    (r"^encoder\.mid_block\.resnets\.1\.", "middle_block.2."),
    (r"^conv_norm_out$", "out.0"),
    (r"^conv_out$", "out.2"),
    (r"^controlnet_down_blocks\.(\d+)$", r"zero_convs.\1.0"),
    (r"^controlnet_mid_block$", "middle_block_out.0"),
    (r"^controlnet_cond_embedding\.conv_in$", "input_hint_block.0"),
)

NUM_SIZES = 6  # numbers SDXL is conditioned on: height, width, top and left of the crop, height and width of the target
_PLAIN, _CROSS = ("DownBlock2D", "UpBlock2D"), ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
_PASSED = ("block_out_channels", "layers_per_block", "use_linear_projection", "norm_num_groups")  # as they are
# Options of both classes, with diffusers' defaults.
_SHARED: dict[str, Any] = dict(
    in_channels=4,
    block_out_channels=(320, 640, 1280, 1280),
    layers_per_block=2,
    use_linear_projection=False,
    norm_num_groups=32,
    cross_attention_dim=1280,
    down_block_types=(_CROSS[0],) * 3 + (_PLAIN[0],),
    num_class_embeds=None,
    addition_embed_type="",
    addition_time_embed_dim=None,
    projection_class_embeddings_input_dim=None,
)
_UNET: dict[str, Any] = _SHARED | dict(
    sample_size=None,
    out_channels=4,
    dropout=0.0,
    up_block_types=(_PLAIN[1],) + (_CROSS[1],) * 3,
    time_cond_proj_dim=None,
    class_embed_type="",
    class_embeddings_concat=False,
)
_CONTROLNET: dict[str, Any] = _SHARED | dict(
    conditioning_channels=3, conditioning_embedding_out_channels=(16, 32, 96, 256)
)
_BY_LEVEL = dict(only_cross_attention=False, transformer_layers_per_block=1, attention_head_dim=8)
_FIXED: dict[str, tuple[Any, ...]] = dict(
    act_fn=("silu",),
    addition_embed_type_num_heads=(64,),
    attention_type=("default",),
    controlnet_conditioning_channel_order=("rgb",),
    conv_in_kernel=(3,),
    conv_out_kernel=(3,),
    downsample_padding=(1,),
    flip_sin_to_cos=(True,),
    freq_shift=(0,),
    mid_block_scale_factor=(1,),
    mid_block_type=("UNetMidBlock2DCrossAttn",),
    norm_eps=(1e-5,),
    resnet_out_scale_factor=(1.0,),
    resnet_time_scale_shift=("default",),
    time_embedding_type=("positional",),
    upcast_attention=(False, True, None),  # the softmax is in float32 anyway
)


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `UNet2DConditionModel` from the config.json of a diffusers U-Net.

    `image_size` is missing if it is not in the file. Channels of the input beyond those of the output are the condition
    "image", and the last of its classes is the null class.

    Raises:
        ValueError: an option that `UNet2DConditionModel` does not support.
    """
    widths, without_tokens = config.get("block_out_channels"), {}
    if isinstance(widths, list) and config.get("cross_attention_dim") == widths:  # self-attention instead
        config = {name: value for name, value in config.items() if name != "cross_attention_dim"}
        without_tokens = {"cross_attention": False}
    settings, ours = _shared_arguments(config, _UNET, "UNet2DConditionModel")
    ours |= without_tokens | _film(settings)
    mirrored = tuple(_CROSS[1] if depth else _PLAIN[1] for depth in reversed(ours["transformer_layers"]))
    if settings["up_block_types"] != mirrored:
        raise ValueError(
            f"config.json: up_block_types={settings['up_block_types']} must mirror down_block_types, which makes them "
            f"{mirrored}"
        )
    channels = settings["out_channels"]
    if not 0 < channels <= settings["in_channels"]:
        raise ValueError(
            f"config.json: out_channels={channels} must be in 1..{settings['in_channels']}, the in_channels"
        )
    ours |= {
        "in_channels": channels,
        "image_channels": settings["in_channels"] - channels,
        "dropout": settings["dropout"],
        "time_cond_proj_dim": settings["time_cond_proj_dim"] or 0,
    }
    return ours | ({"image_size": square(settings["sample_size"])} if settings["sample_size"] else {})


def _film(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a condition "vector" whose projection is concatenated to the embedding, as in AudioLDM."""
    kind, dim = settings["class_embed_type"], settings["projection_class_embeddings_input_dim"]
    if not kind:
        return {}
    if kind != "simple_projection" or not settings["class_embeddings_concat"] or not dim:
        raise ValueError(
            f"config.json: class_embed_type={kind!r} must be null, or 'simple_projection' with class_embeddings_concat "
            f"and projection_class_embeddings_input_dim={dim!r} a size"
        )
    return {"vector_dim": dim, "vector_concat": True}


def originals(arguments: Mapping[str, Any]) -> tuple[Layout, ...]:
    """The layouts of LDM's and Stable Diffusion's own checkpoints: of the averages (EMA), of the network within a
    model, and of a file of the network alone.

    Their blocks are numbered through all levels, with those that change the resolution.
    """
    alone = _original(arguments)
    whole = dataclasses.replace(alone, prefix="model.diffusion_model.")
    return averages(whole), whole, alone


def controlnet_originals(arguments: Mapping[str, Any]) -> tuple[Layout, ...]:
    """The layouts of the authors' ControlNets; see `originals`."""
    alone = _original(arguments)
    hints = len(arguments["hint_channels"])
    rules = [(r"^controlnet_cond_embedding\.conv_out$", f"input_hint_block.{4 * hints - 2}")]
    rules += [
        (rf"^controlnet_cond_embedding\.blocks\.{i}$", f"input_hint_block.{2 * i + 2}") for i in range(2 * hints - 2)
    ]
    alone = dataclasses.replace(alone, rename=(*rules, *alone.rename))
    return dataclasses.replace(alone, prefix="control_model."), alone


def _original(arguments: Mapping[str, Any]) -> Layout:
    depths, size = arguments["transformer_layers"], arguments["layers_per_block"] + 1
    levels, rules = len(arguments["block_out_channels"]), []
    for i in range(levels):
        down, up = rf"^encoder\.down_blocks\.{i}\.", rf"^up_blocks\.{i}\."
        for j in range(size):
            first, second = f"input_blocks.{1 + i * size + j}", f"output_blocks.{i * size + j}"
            rules += [(rf"{down}resnets\.{j}\.", f"{first}.0."), (rf"{down}cross_attentions\.{j}\.", f"{first}.1.")]
            rules += [(rf"{up}resnets\.{j}\.", f"{second}.0."), (rf"{up}cross_attentions\.{j}\.", f"{second}.1.")]
        # In the last block of a level, after its transformer if it has one.
        place = f"output_blocks.{(i + 1) * size - 1}.{2 if depths[levels - 1 - i] else 1}"
        rules.append((rf"{down}downsamplers\.0\.conv$", f"input_blocks.{(i + 1) * size}.0.op"))
        rules.append((rf"{up}upsamplers\.0\.conv$", f"{place}.conv"))
    return Layout(rename=(*_ORIGINAL, *rules, *_TRANSFORMER))


def controlnet_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `ControlNetModel`; see `arguments`."""
    settings, ours = _shared_arguments(config, _CONTROLNET, "ControlNetModel")
    return ours | {
        "in_channels": settings["in_channels"],
        "control_channels": settings["conditioning_channels"],
        "hint_channels": settings["conditioning_embedding_out_channels"],
    }


def config_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that `arguments` reads these from. ValueError: diffusers has no such network."""
    ours = with_defaults(UNet2DConditionModel, arguments)
    in_channels = ours["in_channels"] + ours["image_channels"]
    if ours["out_channels"] not in (None, ours["in_channels"]):
        raise ValueError(f"out_channels={ours['out_channels']} must be in_channels={ours['in_channels']} or None")
    return _shared_config(ours, "UNet2DConditionModel") | {
        "in_channels": in_channels,
        "out_channels": ours["in_channels"],
        "up_block_types": [_CROSS[1] if depth else _PLAIN[1] for depth in reversed(ours["transformer_layers"])],
        "dropout": ours["dropout"],
        "time_cond_proj_dim": ours["time_cond_proj_dim"] or None,
        "sample_size": ours["image_size"],
    }


def controlnet_config_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a ControlNetModel; see `config_of`."""
    ours = with_defaults(ControlNetModel, arguments)
    refuse_changed(ours, {"vector_concat": False, "cross_attention": True}, "ControlNetModel of diffusers")
    return _shared_config(ours, "ControlNetModel") | {
        "in_channels": ours["in_channels"],
        "conditioning_channels": ours["control_channels"],
        "conditioning_embedding_out_channels": list(ours["hint_channels"]),
    }


def _shared_arguments(
    config: Mapping[str, Any], defaults: Mapping[str, Any], network: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the options in `defaults`, arguments that U-Net and ControlNet share)."""
    plain = {name: value for name, value in config.items() if name not in _BY_LEVEL and value is not None}
    settings = options(plain, defaults, _FIXED, network)
    down, levels = settings["down_block_types"], len(settings["block_out_channels"])
    if not set(down) <= {_PLAIN[0], _CROSS[0]} or len(down) != levels:
        raise ValueError(
            f"config.json: down_block_types={down} must be {_PLAIN[0]!r} or {_CROSS[0]!r} for each of the {levels} "
            "levels of block_out_channels"
        )
    by_level = {name: _by_level(config, name, levels) for name in _BY_LEVEL}
    depths = by_level["transformer_layers_per_block"]
    classes, ours = settings["num_class_embeds"], {name: settings[name] for name in _PASSED}
    return settings, ours | _numbers(settings) | {
        "transformer_layers": tuple(
            depth if kind == _CROSS[0] else 0 for depth, kind in zip(depths, down, strict=True)
        ),
        "mid_transformer_layers": depths[-1],
        # `attention_head_dim` of diffusers is the number of heads.
        "num_attention_heads": by_level["attention_head_dim"],
        "only_cross_attention": by_level["only_cross_attention"],
        "token_dim": settings["cross_attention_dim"],
        "num_classes": classes - 1 if classes else 0,
    }


def _by_level(config: Mapping[str, Any], name: str, levels: int) -> tuple[Any, ...]:
    default, value = _BY_LEVEL[name], config.get(name)
    value = default if value is None else value
    values = tuple(value) if isinstance(value, list | tuple) else (value,) * levels
    good = len(values) == levels and all(type(entry) is type(default) for entry in values)
    if not good or (default and min(values) < 1):
        raise ValueError(f"config.json: {name}={str(value)[:100]} must be like {default!r}, or one of these per level")
    return values


def _numbers(settings: Mapping[str, Any]) -> dict[str, int]:
    if not settings["addition_embed_type"]:
        return {}
    kind, waves = settings["addition_embed_type"], settings["addition_time_embed_dim"]
    whole = settings["projection_class_embeddings_input_dim"]
    if kind != "text_time" or not waves or not whole or whole <= NUM_SIZES * waves:
        raise ValueError(
            f"config.json: addition_embed_type={kind!r} must be 'text_time' or null, and then projection_class_"
            f"embeddings_input_dim={whole!r} more than {NUM_SIZES} times addition_time_embed_dim={waves!r}"
        )
    return {"vector_dim": whole - NUM_SIZES * waves, "num_sizes": NUM_SIZES, "sizes_dim": waves}


def _shared_config(ours: Mapping[str, Any], name: str) -> dict[str, Any]:
    depths, mid = ours["transformer_layers"], ours["mid_transformer_layers"]
    mid = next((depth for depth in reversed(depths) if depth), 1) if mid is None else mid
    if depths[-1] not in (0, mid) or mid < 1:
        raise ValueError(f"mid_transformer_layers={mid} must be the last of transformer_layers={depths}, or that 0")
    refuse_changed(ours, {"masked_tokens": False}, f"{name} of diffusers")
    vector, sizes, classes = ours["vector_dim"], ours["num_sizes"], ours["num_classes"]
    film = ours["vector_concat"]
    if not film and (vector or sizes) and (sizes != NUM_SIZES or not vector):
        raise ValueError(f"num_sizes={sizes} must be {NUM_SIZES} with vector_dim={vector}, or both must be 0")
    config = {key: _list(ours[key]) for key in _PASSED} | {
        "_class_name": name,
        "down_block_types": [_CROSS[0] if depth else _PLAIN[0] for depth in depths],
        # Levels without a transformer need a number too, and the last is that of the middle.
        "transformer_layers_per_block": _short((*(depth or 1 for depth in depths[:-1]), mid)),
        "attention_head_dim": _short(ours["num_attention_heads"]),
        "only_cross_attention": _short(ours["only_cross_attention"]),
        "cross_attention_dim": ours["token_dim"] if ours["cross_attention"] else _list(ours["block_out_channels"]),
        "num_class_embeds": classes + 1 if classes else None,
    }
    if film:
        config |= {
            "class_embed_type": "simple_projection",
            "class_embeddings_concat": True,
            "projection_class_embeddings_input_dim": vector,
        }
    elif vector:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": ours["sizes_dim"],
            "projection_class_embeddings_input_dim": vector + sizes * ours["sizes_dim"],
        }
    return config


def _short(value: Any) -> Any:
    """One value instead of several equal ones, so that the same network has the same config.json."""
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else _list(value)


def _list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
