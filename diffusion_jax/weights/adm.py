"""How checkpoints of ADM's family are written: guided-diffusion, improved-diffusion, consistency models and LDM.

The files are PyTorch state dicts; what they are for is `networks.adm.ADM` and `networks.encoder_unet.EncoderUNet`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from diffusion_jax.weights.layout import Layout

_DENSE = r"\.(qkv|qkv_proj|c_proj|proj_out)\.kernel$"
_LDM = "model.diffusion_model."

# Models and noisy classifiers of guided-diffusion, models of improved-diffusion: attention has Conv1d layers.
LAYOUT = Layout(
    rename=((r"^out\.2\.proj$", "out.3"),),
    kinds=((r"^out\.2\.proj\.kernel$", "dense_as_conv2d"), (_DENSE, "dense_as_conv1d")),
)
# Consistency models (arXiv:2303.01469), and the EDM models they are distilled from: attention has Conv2d layers.
CONSISTENCY = Layout(kinds=((_DENSE, "dense_as_conv2d"),))
# LDM (arXiv:2112.10752), in one checkpoint with its first stage, and the averages there, whose names have no dots.
LDM = dataclasses.replace(LAYOUT, prefix=_LDM)
_TRANSFORMER = Layout(
    rename=((r"\.ff\.proj_in$", ".ff.net.0.proj"), (r"\.ff\.proj_out$", ".ff.net.2"), (r"\.to_out$", ".to_out.0"))
)
LDM_TRANSFORMER = dataclasses.replace(_TRANSFORMER, prefix=_LDM)
# The model with classes, whose table of tokens is outside of the network.
LDM_CLASSES = Layout(
    rename=(*_TRANSFORMER.rename, (r"^label_emb$", "cond_stage_model.embedding"), (r"^(?!cond_stage_model)", _LDM)),
    ignored=(r"^(?!model\.diffusion_model\.|cond_stage_model\.)",),
)


def layouts(arguments: Mapping[str, Any]) -> tuple[Layout, ...]:
    """The layouts of files of an `ADM` with these arguments, averages (EMA) before the weights."""
    if arguments["class_token_dim"]:
        return (LDM_CLASSES,)
    if arguments["token_dim"]:
        return _TRANSFORMER, averages(LDM_TRANSFORMER), LDM_TRANSFORMER
    return LAYOUT, CONSISTENCY, averages(LDM), LDM


def averages(layout: Layout) -> Layout:
    """The layout of the averages (EMA) in a checkpoint of LDM whose weights have the layout `layout`."""
    return dataclasses.replace(layout, prefix="model_ema.diffusion_model", names=((r"\.", ""),))
