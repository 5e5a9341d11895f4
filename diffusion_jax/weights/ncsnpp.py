"""How checkpoints of score SDEs are written: `all_modules.N` of score_sde_pytorch, for `networks.ncsnpp.NCSNpp`."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from diffusion_jax.weights.layout import Layout

_INNER = (
    (r"\.norm1$", ".GroupNorm_0"),
    (r"\.norm2$", ".GroupNorm_1"),
    (r"\.conv1$", ".Conv_0"),
    (r"\.conv2$", ".Conv_1"),
    (r"\.conv_shortcut$", ".Conv_2"),
    (r"\.time_emb_proj$", ".Dense_0"),
    (r"\.group_norm$", ".GroupNorm_0"),
    *((rf"\.to_{name}$", f".NIN_{i}") for i, name in enumerate(("q", "k", "v", "out"))),
)


def originals(arguments: Mapping[str, Any]) -> tuple[Layout, ...]:
    """The layouts of the authors' checkpoints of a network with these arguments, as trained and without DataParallel.

    Empty for networks with classes, which they do not have, and for "ddpm" blocks, whose shortcuts have another form.
    """
    if arguments["resblock_type"] != "biggan" or arguments["num_classes"]:
        return ()
    modules = list(enumerate(_modules(arguments)))
    fourier = arguments["embedding"] == "fourier"
    plain = Layout(
        rename=(
            *((rf"^{re.escape(ours)}(?=\.|$)", f"all_modules.{n}{inner}") for n, (ours, inner) in modules),
            *_INNER,
        ),
        names=(
            (r"(NIN_\d)\.weight$", r"\1.W"),
            (r"(NIN_\d)\.bias$", r"\1.b"),
            *(((r"^all_modules\.0\.weight$", "all_modules.0.W"),) if fourier else ()),
        ),
        kinds=((r"\.to_(q|k|v|out)\.kernel$", "same"),),
        ignored=(r"^(module\.)?sigmas$",),
    )
    return dataclasses.replace(plain, prefix="module."), plain


def _modules(arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """For each of `all_modules`, the path of our module (" " without parameters) and the suffix of its number."""
    num_levels = len(arguments["ch_mult"])
    attends = [arguments["image_size"] // 2**i in arguments["attn_resolutions"] for i in range(num_levels)]
    if arguments["embedding"] == "fourier":
        yield ("time_embedding.time_proj" if arguments["conditional"] else " "), ""
    if arguments["conditional"]:
        yield "time_embedding.linear_1", ""
        yield "time_embedding.linear_2", ""
    yield "conv_in", ""
    for level in range(num_levels):
        for i in range(arguments["num_res_blocks"]):
            yield f"down.{level}.blocks.{i}.resnet", ""
            if attends[level]:
                yield f"down.{level}.blocks.{i}.attention", ""
        if level < num_levels - 1:
            yield f"down.{level}.downsampler", ""
            if arguments["progressive_input"] == "input_skip":
                yield " ", ""
                yield f"down.{level}.combiner.conv", ".Conv_0"
            elif arguments["progressive_input"] == "residual":
                yield f"down.{level}.combiner.conv", ".Conv2d_0" if arguments["fir"] else ".Conv_0"
    for ours in ("mid.0.resnet", "mid.0.attention", "mid.1.resnet"):
        yield ours, ""
    for up, level in enumerate(reversed(range(num_levels))):
        for i in range(arguments["num_res_blocks"] + 1):
            yield f"up.{up}.blocks.{i}.resnet", ""
        if attends[level]:
            yield f"up.{up}.blocks.{arguments['num_res_blocks']}.attention", ""
        if arguments["progressive"] == "output_skip":
            if up:
                yield " ", ""
            yield f"up.{up}.output.norm", ""
            yield f"up.{up}.output.conv", ""
        if level:
            yield f"up.{up}.upsampler", ""
    if arguments["progressive"] == "none":
        yield "output.norm", ""
        yield "output.conv", ""
