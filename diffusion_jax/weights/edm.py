"""How checkpoints of EDM are written, for `networks.edm.SongUNet` and `DhariwalUNet` (arXiv:2206.00364).

The authors' files are pickles of whole objects, which are not read here; a file of `net.state_dict()` is.
"""

from diffusion_jax.weights.layout import Layout

LAYOUT = Layout(
    prefix="model.",
    rename=((r"_aux_residual\.conv$", "_aux_residual"),),
    names=((r"^map_noise\.weight$", "map_noise.freqs"),),
    kinds=((r"\.(qkv|proj)\.kernel$", "dense_as_conv2d"),),
    ignored=(r"\.resample_filter$",),
)
