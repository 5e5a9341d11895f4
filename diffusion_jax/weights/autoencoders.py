"""First stages of latent diffusion: AutoencoderKL and VQModel of diffusers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from diffusion_jax.networks.autoencoder_kl import AutoencoderKL
from diffusion_jax.networks.vq_model import VQModel
from diffusion_jax.weights.layout import DEPRECATED_ATTENTION, Layout
from diffusion_jax.weights.options import options, square, with_defaults

LAYOUT = Layout(rename=((r"\.to_out$", ".to_out.0"),), aliases=DEPRECATED_ATTENTION)

_SHARED: dict[str, Any] = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=("DownEncoderBlock2D",),
    up_block_types=("UpDecoderBlock2D",),
    block_out_channels=(64,),
    layers_per_block=1,
    norm_num_groups=32,
    sample_size=32,
    scaling_factor=0.18215,
    mid_block_add_attention=True,
)
_KL = _SHARED | dict(latent_channels=4, use_quant_conv=True, use_post_quant_conv=True)
_VQ = _SHARED | dict(latent_channels=3, num_vq_embeddings=256, vq_embed_dim=None)
_KL_FIXED: dict[str, tuple[Any, ...]] = dict(
    act_fn=("silu", "swish"),
    force_upcast=(True, False),
    shift_factor=(None,),
    latents_mean=(None,),
    latents_std=(None,),
)
_VQ_FIXED: dict[str, tuple[Any, ...]] = dict(
    act_fn=("silu", "swish"), force_upcast=(False, True), norm_type=("group",), lookup_from_codebook=(False,)
)
_SAME = ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups")
_KL_SAME = (*_SAME, "mid_block_add_attention", "use_quant_conv", "use_post_quant_conv")
_VQ_SAME = (*_SAME, "mid_block_add_attention", "num_vq_embeddings", "vq_embed_dim")


def kl_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of our `AutoencoderKL` from the config.json of diffusers'.

    Raises ValueError for an option that our network does not support.
    """
    return _arguments(options(config, _KL, _KL_FIXED, "AutoencoderKL"), _KL_SAME)


def kl_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of diffusers' AutoencoderKL for `arguments` of ours."""
    return _config(with_defaults(AutoencoderKL, arguments), "AutoencoderKL", _KL_SAME)


def vq_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of our `VQModel` from the config.json of diffusers', or ValueError."""
    return _arguments(options(config, _VQ, _VQ_FIXED, "VQModel"), _VQ_SAME)


def vq_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of diffusers' VQModel for `arguments` of ours."""
    return _config(with_defaults(VQModel, arguments), "VQModel", _VQ_SAME)


def scaling_factor(config: Mapping[str, Any]) -> float:
    """What diffusers multiplies the latents of this first stage by."""
    return float(options({"scaling_factor": config.get("scaling_factor", 0.18215)}, _SHARED, {}, "")["scaling_factor"])


def _arguments(settings: Mapping[str, Any], same: tuple[str, ...]) -> dict[str, Any]:
    kinds = [name.removesuffix("DownEncoderBlock2D") for name in settings["down_block_types"]]
    mirrored = [name.removesuffix("UpDecoderBlock2D") for name in settings["up_block_types"]][::-1]
    if kinds != mirrored or not set(kinds) <= {"", "Attn"} or len(kinds) != len(settings["block_out_channels"]):
        raise ValueError(
            "config.json: down_block_types must be DownEncoderBlock2D or AttnDownEncoderBlock2D, one for each of "
            "block_out_channels, and up_block_types those of the same levels for UpDecoderBlock2D; they are "
            f"{', '.join((*settings['down_block_types'], *settings['up_block_types']))}"
        )
    levels = tuple(level for level, kind in enumerate(kinds) if kind)
    return {name: settings[name] for name in same} | dict(
        image_size=square(settings["sample_size"]), attention_levels=levels
    )


def _config(ours: Mapping[str, Any], class_name: str, same: tuple[str, ...]) -> dict[str, Any]:
    kinds = ["Attn" if i in ours["attention_levels"] else "" for i in range(len(ours["block_out_channels"]))]
    config = {name: list(ours[name]) if isinstance(ours[name], tuple) else ours[name] for name in same}
    return config | dict(
        _class_name=class_name,
        out_channels=ours["out_channels"] or ours["in_channels"],
        down_block_types=[f"{kind}DownEncoderBlock2D" for kind in kinds],
        up_block_types=[f"{kind}UpDecoderBlock2D" for kind in kinds[::-1]],
        sample_size=ours["image_size"] or 32,
    )


def originals(arguments: Mapping[str, Any]) -> tuple[Layout, Layout]:
    """The layouts of LDM's own files: of a first stage by itself, and within a model of its latents."""
    last = len(arguments["block_out_channels"]) - 1
    rename = (
        # Their levels of the decoder count from the full resolution, ours from the lowest.
        *((rf"^decoder\.up_blocks\.{i}\.", f"decoder.up.{last - i}.") for i in range(last + 1)),
        (r"^encoder\.down_blocks\.", "encoder.down."),
        (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
        (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
        (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
        (r"\.resnets\.(\d+)\.", r".block.\1."),
        (r"\.attentions\.(\d+)\.", r".attn.\1."),
        (r"\.downsamplers\.0\.", ".downsample."),
        (r"\.upsamplers\.0\.", ".upsample."),
        (r"\.conv_shortcut$", ".nin_shortcut"),
        (r"\.group_norm$", ".norm"),
        (r"\.to_([qkv])$", r".\1"),
        (r"\.to_out$", ".proj_out"),
        (r"\.conv_norm_out$", ".norm_out"),
    )
    alone = Layout(
        rename=rename,
        kinds=((r"\.to_(q|k|v|out)\.kernel$", "dense_as_conv2d"),),
        ignored=(r"^(first_stage_model\.)?loss\.", r"^model_ema\."),
    )
    return alone, dataclasses.replace(alone, prefix="first_stage_model.")
