"""The weights of T5's encoder in the layout of transformers' `T5EncoderModel`; a decoder in the file is ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_jax.weights.layout import Layout
from diffusion_jax.weights.transformers_config import read

_DEFAULTS = dict(
    vocab_size=32128,
    d_model=512,
    d_kv=64,
    d_ff=2048,
    num_layers=6,
    num_heads=8,
    feed_forward_proj="relu",
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
    layer_norm_epsilon=1e-6,
)


def layout(feed_forward_proj: str) -> Layout:
    """The names of an encoder whose perceptrons are "relu" or "gated-gelu"."""
    block = r"^layers\.(\d+)\."
    there = r"encoder.block.\1.layer."
    return Layout(
        rename=(
            (r"^relative_attention_bias$", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"),
            (r"^final_layer_norm$", "encoder.final_layer_norm"),
            (block + r"self_attn\.([qkv])_proj$", there + r"0.SelfAttention.\2"),
            (block + r"self_attn\.out_proj$", there + "0.SelfAttention.o"),
            (block + r"layer_norm1$", there + "0.layer_norm"),
            (block + r"layer_norm2$", there + "1.layer_norm"),
            (block + r"mlp\.gate$", there + "1.DenseReluDense.wi_0"),
            (block + r"mlp\.fc1$", there + f"1.DenseReluDense.wi{'_1' if 'gated' in feed_forward_proj else ''}"),
            (block + r"mlp\.fc2$", there + "1.DenseReluDense.wo"),
        ),
        # The table of the tokens under its other name, and the decoder.
        ignored=(r"^encoder\.embed_tokens\.weight$", r"^decoder\.", r"^lm_head\."),
    )


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `T5Encoder` from a config.json of transformers.

    Raises:
        ValueError: the config is of another model, or a value is of another type.
    """
    return read(config, _DEFAULTS, "t5")


def config_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that `arguments` reads them from."""
    known = {name: arguments[name] for name in _DEFAULTS if name in arguments}
    return known | {"architectures": ["T5EncoderModel"], "model_type": "t5"}
