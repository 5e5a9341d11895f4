"""DiT: the authors' own files, and diffusers' DiTTransformer2DModel, formerly Transformer2DModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_jax.networks.dit import DiT
from diffusion_jax.weights.layout import Layout
from diffusion_jax.weights.options import options, refuse_changed, square, with_defaults

LAYOUT = Layout(
    rename=(
        (r"^x_embedder\.", "pos_embed."),
        (r"^t_embedder\.mlp\.fc([12])$", r"transformer_blocks.0.norm1.emb.timestep_embedder.linear_\1"),
        (r"^y_embedder\.", "transformer_blocks.0.norm1.emb.class_embedder."),
        (r"^blocks\.(\d+)\.adaLN_modulation$", r"transformer_blocks.\1.norm1.linear"),
        (r"^blocks\.(\d+)\.attn\.proj$", r"transformer_blocks.\1.attn1.to_out.0"),
        (r"^blocks\.(\d+)\.mlp\.fc1$", r"transformer_blocks.\1.ff.net.0.proj"),
        (r"^blocks\.(\d+)\.mlp\.fc2$", r"transformer_blocks.\1.ff.net.2"),
        (r"^final_layer\.adaLN_modulation$", "proj_out_1"),
        (r"^final_layer\.linear$", "proj_out_2"),
    ),
    split=((r"^blocks\.(\d+)\.attn\.qkv$", tuple(rf"transformer_blocks.\1.attn1.to_{name}" for name in "qkv")),),
    # Every block embeds the timestep and the label with weights of its own, which are the same.
    copies=((r"transformer_blocks\.0\.norm1\.emb\.(.*)", (r"transformer_blocks.*.norm1.emb.\1",)),),
    ignored=(r"^pos_embed\.pos_embed$",),  # the fixed table of positions
)
ORIGINAL = Layout(
    rename=(
        (r"^t_embedder\.mlp\.fc1$", "t_embedder.mlp.0"),
        (r"^t_embedder\.mlp\.fc2$", "t_embedder.mlp.2"),
        (r"adaLN_modulation$", "adaLN_modulation.1"),
    ),
    ignored=(r"^pos_embed$",),
)
_DEFAULTS: dict[str, Any] = dict(
    num_attention_heads=16,
    attention_head_dim=72,
    in_channels=4,
    out_channels=None,
    num_layers=28,
    sample_size=32,
    patch_size=2,
    num_embeds_ada_norm=1000,
    norm_eps=1e-5,
)
_FIXED: dict[str, tuple[Any, ...]] = dict(
    activation_fn=("gelu-approximate",),
    attention_bias=(True,),
    norm_type=("ada_norm_zero",),
    norm_elementwise_affine=(False,),
    dropout=(0.0,),
    norm_num_groups=(32, None),
    attention_type=("default",),
    upcast_attention=(False, True),
)


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of our `DiT` from the config.json of diffusers' transformer.

    diffusers computes other frequencies of the timestep than the authors, and another epsilon before the MLPs; these
    arguments are diffusers'. Raises ValueError for an option that our network does not support.
    """
    settings = options(config, _DEFAULTS, _FIXED, "DiT")
    channels = settings["in_channels"]
    out_channels = settings["out_channels"] or channels
    if out_channels not in (channels, 2 * channels):
        raise ValueError(
            f"config.json: out_channels={out_channels} must be in_channels={channels} or twice as many for our DiT"
        )
    return dict(
        image_size=square(settings["sample_size"]),
        in_channels=channels,
        patch_size=settings["patch_size"],
        hidden_size=settings["num_attention_heads"] * settings["attention_head_dim"],
        depth=settings["num_layers"],
        num_heads=settings["num_attention_heads"],
        num_classes=settings["num_embeds_ada_norm"],
        learn_sigma=out_channels != channels,
        freq_shift=1.0,
        mlp_norm_eps=float(settings["norm_eps"]),
    )


def config_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of DiTTransformer2DModel for `arguments` of our `DiT`, up to `freq_shift`.

    Raises ValueError for an argument that diffusers has no option for.
    """
    ours = with_defaults(DiT, arguments)
    theirs = "DiTTransformer2DModel of diffusers"
    refuse_changed(ours, dict(mlp_ratio=4.0, vector_dim=0, token_dim=0), theirs)
    if not ours["num_classes"]:
        raise ValueError(f"num_classes=0: {theirs} is always conditional")
    return dict(
        _class_name="DiTTransformer2DModel",
        num_attention_heads=ours["num_heads"],
        attention_head_dim=ours["hidden_size"] // ours["num_heads"],
        in_channels=ours["in_channels"],
        out_channels=ours["in_channels"] * (2 if ours["learn_sigma"] else 1),
        num_layers=ours["depth"],
        sample_size=ours["image_size"],
        patch_size=ours["patch_size"],
        num_embeds_ada_norm=ours["num_classes"],
        norm_eps=ours["mlp_norm_eps"],
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
