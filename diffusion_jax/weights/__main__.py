"""Convert weights: `python -m diffusion_jax.weights`.

  a folder of diffusers to a work directory      --from ddpm-cifar10-32 --to runs/cifar10 --format orbax
  with a config of ours, also a single file      --from DiT-XL-2-256x256.pt --to runs/dit --format orbax \\
                                                     --config configs/dit.py:imagenet256_xl2
  a work directory to a folder of diffusers      --from runs/ddpm --to ddpm-mnist --format diffusers
  a run's low-rank updates to a file             --from runs/lora --to style --format lora
  with kohya's names                             --from runs/lora --to style --format kohya
  a run's learned token vectors to a file        --from runs/inversion --to token --format embeddings
  from the Hub                                   --from hub:google/ddpm-cifar10-32 --to runs/cifar10 --format orbax

A work directory is sampled and trained by --config=DIR/config.py --workdir=DIR, and other configs name it as
config.weights or, if it is a first stage, config.system.first_stage. Folders of diffusers hold the averaged parameters.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

from diffusion_jax.training.faults import check_local_options, one_line_if_interrupted
from diffusion_jax.weights.files import MAX_SHARD_BYTES


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m diffusion_jax.weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--from", dest="source", required=True, metavar="PATH", help="or hub:owner/name[/component]")
    parser.add_argument("--to", dest="target", required=True, type=pathlib.Path, metavar="PATH", help="an empty folder")
    formats = ("diffusers", "orbax", "lora", "kohya", "embeddings")
    parser.add_argument("--format", required=True, choices=formats, help="of --to")
    parser.add_argument("--config", default="", metavar="FILE.py[:variant]", help="what network --from is of")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="for diffusers")
    parser.add_argument("--max_bytes", type=int, default=MAX_SHARD_BYTES, metavar="N", help="per file, for diffusers")
    flags = parser.parse_args(argv)
    from diffusion_jax.config import from_file
    from diffusion_jax.run import convert

    try:
        check_local_options({"from": flags.source, "to": flags.target, "config": flags.config})
        config = from_file(flags.config) if flags.config else None
        source = convert.fetch(flags.source)
        if flags.format == "orbax":
            written = convert.to_workdir(source, flags.target, config)
        elif flags.format in ("lora", "kohya"):
            written = convert.to_lora(source, flags.target, kohya=flags.format == "kohya")
        elif flags.format == "embeddings":
            written = convert.to_embeddings(source, flags.target)
        else:
            options = dict(dtype=flags.dtype, max_bytes=flags.max_bytes)
            written = convert.to_folder(source, flags.target, config, **options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print("written:", *written, sep="\n  ")


if __name__ == "__main__":
    with one_line_if_interrupted():
        main()
