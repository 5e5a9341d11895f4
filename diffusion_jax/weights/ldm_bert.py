"""The weights of LDM's text encoder in the layouts of diffusers' `LDMBertModel` and of the authors' checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_jax.weights.layout import Layout
from diffusion_jax.weights.transformers_config import read

LAYOUT = Layout(
    rename=(
        (r"^(embed_tokens|embed_positions|layer_norm)$", r"model.\1"),
        (r"^layers\.", "model.layers."),
        (r"\.layer_norm1$", ".self_attn_layer_norm"),
        (r"\.layer_norm2$", ".final_layer_norm"),
        (r"\.mlp\.(fc[12])$", r".\1"),
    ),
)
_DEFAULTS = dict(
    vocab_size=30522,
    max_position_embeddings=77,
    d_model=1280,
    encoder_layers=32,
    encoder_ffn_dim=5120,
    encoder_attention_heads=8,
    head_dim=64,
)


def original(encoder_layers: int) -> Layout:
    """The layout of the authors' checkpoints, where layers 2 i and 2 i + 1 are attention and perceptron of block i."""
    rules = [
        (r"^embed_tokens$", "token_emb"),
        (r"^embed_positions$", "pos_emb.emb"),
        (r"^layer_norm$", "norm"),
    ]
    for i in range(encoder_layers):
        here, first, second = rf"^layers\.{i}\.", f"attn_layers.layers.{2 * i}.", f"attn_layers.layers.{2 * i + 1}."
        rules += [
            (here + r"layer_norm1$", first + "0"),
            (here + r"self_attn\.([qkv])_proj$", first + r"1.to_\1"),
            (here + r"self_attn\.out_proj$", first + "1.to_out"),
            (here + r"layer_norm2$", second + "0"),
            (here + r"mlp\.fc1$", second + "1.net.0.0"),
            (here + r"mlp\.fc2$", second + "1.net.2"),
        ]
    return Layout(rename=tuple(rules), prefix="cond_stage_model.transformer.")


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `LDMBert` from a config.json of diffusers.

    Raises:
        ValueError: the config is of another model, a value is of another type, or an option is one that `LDMBert` has
            not.
    """
    for name, value in (("activation_function", "gelu"), ("scale_embedding", False)):
        if config.get(name, value) != value:
            raise ValueError(f"config.json: {name}={config[name]!r} must be {value!r} for our LDMBert")
    return read(config, _DEFAULTS, "ldmbert")


def config_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that `arguments` reads them from."""
    known = {name: arguments[name] for name in _DEFAULTS if name in arguments}
    return known | {"architectures": ["LDMBertModel"], "model_type": "ldmbert"}
