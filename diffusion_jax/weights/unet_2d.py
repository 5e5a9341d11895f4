"""UNet2DModel of diffusers: the networks of DDPM and of unconditional latent diffusion, and of score SDEs.

One class of diffusers is two networks here: our `UNet`, and with "Skip" blocks our `NCSNpp`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_jax.networks.ncsnpp import NCSNpp
from diffusion_jax.networks.unet import UNet
from diffusion_jax.weights.layout import DEPRECATED_ATTENTION, Layout
from diffusion_jax.weights.options import options, refuse_changed, square, with_defaults

LAYOUT = Layout(
    rename=((r"\.to_out$", ".to_out.0"), (r"^time_embedding\.time_proj$", "time_proj")),
    aliases=DEPRECATED_ATTENTION,
    ignored=(r"^time_proj\.W$",),  # a second name of time_proj.weight in old files
)
# Defaults of UNet2DModel for a config.json without these entries.
_DEFAULTS: dict[str, Any] = dict(
    sample_size=None,
    in_channels=3,
    out_channels=3,
    time_embedding_type="positional",
    freq_shift=0.0,
    flip_sin_to_cos=True,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(224, 448, 672, 896),
    layers_per_block=2,
    mid_block_scale_factor=1.0,
    downsample_padding=1,
    dropout=0.0,
    norm_num_groups=None,
    norm_eps=1e-5,
    attention_head_dim=None,
    add_attention=True,
    num_class_embeds=None,
)
_FIXED: dict[str, tuple[Any, ...]] = dict(
    act_fn=("silu", "swish"),
    center_input_sample=(False,),
    class_embed_type=(None,),
    downsample_type=("conv",),
    upsample_type=("conv",),
    mid_block_type=("UNetMidBlock2D",),
    resnet_time_scale_shift=("default",),
    attn_norm_num_groups=(None, 32),
    time_embedding_dim=(None,),
    num_train_timesteps=(None, 1000, 2000),  # only of learned time embeddings
)


def is_ncsnpp(config: Mapping[str, Any]) -> bool:
    """Whether a config.json of UNet2DModel describes our `NCSNpp` rather than our `UNet`."""
    types = config.get("down_block_types")
    return isinstance(types, list | tuple) and any("Skip" in str(name) for name in types)


def ncsnpp_layout(levels: int) -> Layout:
    """The layout of an `NCSNpp` with so many levels, the last of which ends the network."""
    return Layout(
        rename=(
            (r"^time_embedding\.time_proj$", "time_proj"),
            (r"^(down|up)\.(\d+)\.blocks\.(\d+)\.resnet", r"\1_blocks.\2.resnets.\3"),
            (r"^down\.(\d+)\.blocks\.(\d+)\.attention", r"down_blocks.\1.attentions.\2"),
            (r"^up\.(\d+)\.blocks\.\d+\.attention", r"up_blocks.\1.attentions.0"),
            (r"^down\.(\d+)\.downsampler", r"down_blocks.\1.resnet_down"),
            (r"^down\.(\d+)\.combiner\.conv", r"down_blocks.\1.skip_conv"),
            (r"^mid\.(\d+)\.(resnet|attention)", r"mid_block.\2s.\1"),
            (rf"^up\.{levels - 1}\.output\.norm$", "conv_norm_out"),
            (rf"^up\.{levels - 1}\.output\.conv$", "conv_out"),
            (r"^up\.(\d+)\.output\.(norm|conv)", r"up_blocks.\1.skip_\2"),
            (r"^up\.(\d+)\.upsampler", r"up_blocks.\1.resnet_up"),
            (r"\.to_out$", ".to_out.0"),
        ),
        aliases=DEPRECATED_ATTENTION,
        ignored=(r"^time_proj\.W$",),
    )


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of our `UNet` from the config.json of a UNet2DModel.

    Raises ValueError for an option that our network does not support.
    """
    settings = _options(config, "UNet")
    if settings["mid_block_scale_factor"] != 1:
        raise ValueError(
            f"config.json: mid_block_scale_factor={settings['mid_block_scale_factor']} must be 1 for our UNet"
        )
    channels, mult = _multiples(settings["block_out_channels"])
    size = square(settings["sample_size"])
    levels = _attention_levels(settings, "", "DownBlock2D", "UpBlock2D")
    return dict(
        image_size=size,
        in_channels=settings["in_channels"],
        out_channels=settings["out_channels"],
        channels=channels,
        channel_mult=mult,
        num_res_blocks=settings["layers_per_block"],
        attention_resolutions=tuple(size // 2**level for level in levels),
        mid_block_add_attention=settings["add_attention"],
        head_dim=settings["attention_head_dim"],
        num_groups=32 if settings["norm_num_groups"] is None else settings["norm_num_groups"],
        norm_eps=float(settings["norm_eps"]),
        dropout=float(settings["dropout"]),
        downsample_padding=settings["downsample_padding"],
        embedding=settings["time_embedding_type"],
        flip_sin_to_cos=settings["flip_sin_to_cos"],
        freq_shift=float(settings["freq_shift"]),
        # The table has one more row, of the null class.
        num_classes=max((settings["num_class_embeds"] or 1) - 1, 0),
    )


def config_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of UNet2DModel for `arguments` of our `UNet`.

    Raises ValueError for an argument that UNet2DModel has no option for.
    """
    ours = with_defaults(UNet, arguments)
    theirs = "UNet2DModel of diffusers"
    kept = dict(vector_dim=0, token_dim=0, image_channels=0, resample_with_conv=True)
    refuse_changed(ours, kept | dict(residual_input=False, zero_emb=False), theirs)
    head_dim = ours["head_dim"]
    if head_dim is None and ours["num_heads"] > 1:
        raise ValueError(f"num_heads={ours['num_heads']} must be 1, or head_dim given: {theirs} has no such option")
    types = _block_types(ours["image_size"], ours["channel_mult"], ours["attention_resolutions"])
    return dict(
        _class_name="UNet2DModel",
        sample_size=ours["image_size"],
        in_channels=ours["in_channels"],
        out_channels=ours["out_channels"] or ours["in_channels"],
        time_embedding_type=ours["embedding"],
        freq_shift=ours["freq_shift"],
        flip_sin_to_cos=ours["flip_sin_to_cos"],
        down_block_types=[f"{kind}DownBlock2D" for kind in types],
        up_block_types=[f"{kind}UpBlock2D" for kind in types[::-1]],
        block_out_channels=[round(ours["channels"] * mult) for mult in ours["channel_mult"]],
        layers_per_block=ours["num_res_blocks"],
        downsample_padding=ours["downsample_padding"],
        dropout=ours["dropout"],
        attention_head_dim=head_dim,
        norm_num_groups=ours["num_groups"],
        norm_eps=ours["norm_eps"],
        add_attention=ours["mid_block_add_attention"],
        num_class_embeds=ours["num_classes"] + 1 if ours["num_classes"] else None,
    )


def ncsnpp_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of our `NCSNpp` from the config.json of a UNet2DModel with "Skip" blocks.

    Raises ValueError for an option that our network does not support.
    """
    # diffusers' network can rescale an input in [0, 1] to [-1, 1], which ours takes anyway.
    settings = _options({key: value for key, value in config.items() if key != "center_input_sample"}, "NCSNpp")
    nf, mult = _multiples(settings["block_out_channels"])
    size = square(settings["sample_size"])
    levels = _attention_levels(settings, "Skip", "SkipDownBlock2D", "SkipUpBlock2D")
    # Outside of the middle, attention in diffusers has its own number of groups.
    narrow = [settings["block_out_channels"][level] for level in levels if settings["block_out_channels"][level] < 128]
    if narrow:
        raise ValueError(
            f"config.json: block_out_channels with attention must be at least 128 for our NCSNpp, not {narrow}"
        )
    groups = min(settings["block_out_channels"][-1] // 4, 32)
    for name, value, allowed in (
        ("mid_block_scale_factor", round(settings["mid_block_scale_factor"], 5), (round(math.sqrt(2), 5),)),
        ("norm_eps", settings["norm_eps"], (1e-6,)),
        ("time_embedding_type", settings["time_embedding_type"], ("fourier",)),
        ("attention_head_dim", settings["attention_head_dim"], (None,)),
        ("norm_num_groups", settings["norm_num_groups"], (None, groups) if nf >= 128 else (None,)),
        ("num_class_embeds", settings["num_class_embeds"], (None,)),
        ("add_attention", settings["add_attention"], (True,)),
    ):
        if value not in allowed:
            raise ValueError(f"config.json: {name}={value!r} must be {allowed[0]!r} for our NCSNpp")
    return dict(
        image_size=size,
        in_channels=settings["in_channels"],
        out_channels=settings["out_channels"],
        nf=nf,
        ch_mult=mult,
        num_res_blocks=settings["layers_per_block"],
        attn_resolutions=tuple(size // 2**level for level in levels),
        dropout=float(settings["dropout"]),
        progressive="output_skip",
        progressive_input="input_skip",
    )


def ncsnpp_config_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of UNet2DModel for `arguments` of our `NCSNpp`, or ValueError if there is none."""
    ours = with_defaults(NCSNpp, arguments)
    wanted = dict(
        progressive="output_skip",
        progressive_input="input_skip",
        progressive_combine="sum",
        resblock_type="biggan",
        embedding="fourier",
        fir=True,
        skip_rescale=True,
        conditional=True,
        num_classes=0,
    )
    refuse_changed(ours, wanted | {"fir_kernel": (1, 3, 3, 1)}, "UNet2DModel of diffusers")
    types = _block_types(ours["image_size"], ours["ch_mult"], ours["attn_resolutions"])
    return dict(
        _class_name="UNet2DModel",
        sample_size=ours["image_size"],
        in_channels=ours["in_channels"],
        out_channels=ours["out_channels"] or ours["in_channels"],
        time_embedding_type="fourier",
        down_block_types=[f"{kind}SkipDownBlock2D" for kind in types],
        up_block_types=[f"{kind}SkipUpBlock2D" for kind in types[::-1]],
        block_out_channels=[round(ours["nf"] * mult) for mult in ours["ch_mult"]],
        layers_per_block=ours["num_res_blocks"],
        mid_block_scale_factor=math.sqrt(2),
        dropout=ours["dropout"],
        attention_head_dim=None,
        norm_num_groups=None,
        norm_eps=1e-6,
    )


def _options(config: Mapping[str, Any], network: str) -> dict[str, Any]:
    # Without these entries, heads have 8 channels and norms 32 groups; null means one head, and the default groups.
    settings = options({"attention_head_dim": 8, "norm_num_groups": 32, **config}, _DEFAULTS, _FIXED, network)
    levels = len(settings["block_out_channels"])
    for name in ("down_block_types", "up_block_types"):
        if len(settings[name]) != levels:
            raise ValueError(f"config.json: {name} has {len(settings[name])} entries, block_out_channels {levels}")
    return settings


def _multiples(widths: Sequence[int]) -> tuple[int, tuple[int | float, ...]]:
    """The width of the first level, and the widths of all levels divided by it."""
    if min(widths) < 1:
        raise ValueError(f"config.json: block_out_channels={list(widths)} must be positive")
    return widths[0], tuple(w // widths[0] if w % widths[0] == 0 else w / widths[0] for w in widths)


def _attention_levels(settings: Mapping[str, Any], kind: str, down: str, up: str) -> list[int]:
    """The levels with attention, which are the same in encoder and decoder."""
    kinds = [name.removesuffix(down) for name in settings["down_block_types"]]
    mirrored = [name.removesuffix(up) for name in settings["up_block_types"]][::-1]
    if kinds != mirrored or not set(kinds) <= {"", "Attn"}:
        names = [*settings["down_block_types"], *settings["up_block_types"]]
        raise ValueError(
            f"config.json: down_block_types and up_block_types must be {down} or Attn{down}, and {up} or Attn{up} in "
            f"reverse order; they are {', '.join(names)}"
        )
    return [level for level, name in enumerate(kinds) if name]


def _block_types(image_size: int, mult: Sequence[float | int], resolutions: Sequence[int]) -> list[str]:
    return ["Attn" if image_size // 2**level in resolutions else "" for level in range(len(mult))]
