"""How checkpoints of ADM's family are written: guided-diffusion, improved-diffusion, consistency models and LDM.

The files are PyTorch state dicts; what they are for is `networks.adm.ADM` and `networks.encoder_unet.EncoderUNet`.
"""

import dataclasses

from diffusion_jax.weights.layout import Layout, Rules

_DENSE = r"\.(qkv|qkv_proj|c_proj|proj_out)\.kernel$"
# Before the general rule: within a transformer "proj_out" is a convolution of ours as of theirs.
_TRANSFORMER: Rules = ((r"\.proj_(in|out)\.kernel$", "kernel"),)

# Models and noisy classifiers of guided-diffusion, models of improved-diffusion: attention has Conv1d layers.
LAYOUT = Layout(
    rename=((r"^out\.2\.proj$", "out.3"),),
    kinds=((r"^out\.2\.proj\.kernel$", "dense_as_conv2d"), (_DENSE, "dense_as_conv1d")),
)
# Consistency models (arXiv:2303.01469), and the EDM models they are distilled from: attention has Conv2d layers.
CONSISTENCY = Layout(kinds=((_DENSE, "dense_as_conv2d"),))
# LDM (arXiv:2112.10752), in a checkpoint with its first stage: without and with transformers, which read a context.
LDM = dataclasses.replace(LAYOUT, prefix="model.diffusion_model.")
