"""Latents of a trained first stage, made once for training diffusion models, and the way back.

    python -m diffusion_jax.latents encode --first_stage=runs/autoencoder_kl --to=runs/latents [--split=train]
    python -m diffusion_jax.latents decode --first_stage=runs/autoencoder_kl --from=runs/latents --to=decoded.npz

`encode` reads the data that the first stage was trained on (another folder or file with --path) and writes what its
encoder gives as ArrayRecord files, for --config.data.name=latents --config.data.path=runs/latents. For a Gaussian these
are mean and log variance, so that every epoch draws the latents anew. Labels, captions (cut at --max_tokens;
--caption_key says where they are, see `data.load`, and --tokenizer is the config.data.tokenizer that the diffusion
model has as well) and other conditions of the data stay beside them. A slice such as train[:95%] holds the same
examples of the latents as of the data. It prints mean and standard deviation of the standardised latents, which are
near 0 and 1 if the data are those of training.

`decode` takes such a folder, or an .npz or .npy file of standardised latents as a diffusion model draws them, and
writes images as an array and a PNG.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
from collections.abc import Callable, Iterator

import jax
import numpy as np

from diffusion_jax import data
from diffusion_jax.config import build
from diffusion_jax.config.sections import ConfigError, refusal
from diffusion_jax.config.trained import Trained
from diffusion_jax.data.sources import latents
from diffusion_jax.evaluation import sheets
from diffusion_jax.processes import row_keys
from diffusion_jax.systems import Autoencoder
from diffusion_jax.training import mesh as meshes
from diffusion_jax.training.rows import in_batches
from diffusion_jax.types import Params

_CALLS = 16  # batches that are in memory at once


def encode(
    first_stage: str,
    folder: pathlib.Path,
    *,
    split: str = "train",
    path: str = "",
    caption_key: str = "",
    max_tokens: int = 0,
    tokenizer: str = "",
    batch_size: int = 128,
) -> tuple[latents.Header, np.ndarray, np.ndarray]:
    """Write the latents of a split, see the module.

    Returns what was written, and mean and standard deviation of each channel of the standardised latents.
    Raises ConfigError: no first stage, no such data, or images of another size.
    """
    run, params = _open(first_stage)
    changed = {"split": split, "path": path, "caption_key": caption_key, "tokenizer": tokenizer}
    section = run.config.data.to_dict() | {key: value for key, value in changed.items() if value}
    with refusal("the data of the first stage"):
        section = {key: value for key, value in section.items() if value != ""}
        for key in ("image_key", "control_key"):
            if key in section and section["name"] == "folder":
                raise ValueError(f"data.{key}: images as conditions stay beside latents from arrays only")
        source = data.load(**section, max_tokens=max_tokens)
    if source.shape != run.system.shape:
        raise ConfigError(f"the images are of {source.shape}; {first_stage} was trained on {run.system.shape}")
    sums = np.zeros((3, run.system.latent_shape[-1]))

    @jax.jit
    def encoded(ids, cond):
        h = run.system.encode(params["network"], cond["x"])
        return {"x": h, "z": run.system.latents(params, row_keys(jax.random.key(0), ids), h)}

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for rows in _chunks(source, _CALLS * batch_size):
            found = in_batches(encoded, len(rows["x"]), batch_size, {"x": rows["x"]})
            z = found["z"].astype(np.float64)
            sums[:] += np.stack([np.ones_like(z).sum((0, 1, 2)), z.sum((0, 1, 2)), np.square(z).sum((0, 1, 2))])
            yield {"x": found["x"], **{name: value for name, value in rows.items() if name != "x"}}

    name = split.partition("[")[0]
    with jax.set_mesh(meshes.make_mesh()), refusal("--to"):
        header = latents.write(
            folder,
            name,
            batches(),
            image_shape=source.shape,
            num_classes=source.num_classes,
            first_stage=first_stage.fingerprint(params),
        )
    mean = sums[1] / sums[0]
    return header, mean, np.sqrt(np.maximum(sums[2] / sums[0] - mean**2, 0))


def decode(
    first_stage: str, path: pathlib.Path, *, split: str = "train", num: int = 64, batch_size: int = 128
) -> np.ndarray:
    """The images [n, h, w, c] of at most `num` latents of a folder or file, see the module. Raises ConfigError."""
    run, params = _open(first_stage)
    system = run.system
    if path.is_dir():
        with refusal("--from"):
            header = latents.read_header(path, split)
            if header.first_stage != first_stage.fingerprint(params):
                raise ValueError(f"{path} holds latents of another first stage")
            h = data.arrays(latents.source(path, split), num)["x"]
        decoder = functools.partial(_decode_encoded, system, params)
    else:
        with refusal("--from"):
            h = data.arrays(data.load(name="arrays", path=str(path)), num)["x"]
        if h.shape[1:] != system.latent_shape:
            raise ConfigError(f"--from={path} holds arrays of {h.shape[1:]}; latents are {system.latent_shape}")
        decoder = functools.partial(system.decode_latents, params)
    draw: Callable = jax.jit(lambda ids, cond: decoder(cond["h"]))
    with jax.set_mesh(meshes.make_mesh()):
        return in_batches(draw, len(h), batch_size, {"h": h})


def _decode_encoded(system: Autoencoder, params: Params, h: jax.Array) -> jax.Array:
    return system.decode(params["network"], system.bottleneck.latent(None, h))


def _open(first_stage: str) -> tuple[Trained, Params]:
    run = build.trained(first_stage, "--first_stage")
    if not isinstance(run.system, Autoencoder):
        raise ConfigError(f"--first_stage={first_stage} is a run of {run.config.system.name!r}, no first stage")
    return run, run.load()


def _chunks(source: data.Source, size: int) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(source), size):
        yield source.batch(np.arange(start, min(start + size, len(source))))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m diffusion_jax.latents",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("encode", "images to latents"), ("decode", "latents to images")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--first_stage", required=True, help="work directory of the trained first stage")
        command.add_argument("--to", required=True, type=pathlib.Path, help="folder of latents, or .npz file of images")
        command.add_argument("--split", default="train")
        command.add_argument("--batch_size", type=int, default=128)
    commands.choices["encode"].add_argument("--path", default="", help="folder or file of the data")
    commands.choices["encode"].add_argument("--caption_key", default="", help="where the captions are, if any")
    commands.choices["encode"].add_argument("--max_tokens", type=int, default=0, help="length of captions, if any")
    commands.choices["encode"].add_argument("--tokenizer", default="", help="folder of their tokenizer, if not bytes")
    commands.choices["decode"].add_argument("--from", dest="path", required=True, type=pathlib.Path)
    commands.choices["decode"].add_argument("--num", type=int, default=64)
    options = parser.parse_args(arguments)
    shared = dict(split=options.split, batch_size=options.batch_size)
    try:
        if options.command == "encode":
            names = ("path", "caption_key", "max_tokens", "tokenizer")
            given = {name: getattr(options, name) for name in names}
            header, mean, std = encode(options.first_stage, options.to, **given, **shared)
            print(f"{header.num} latents of {header.shape} in {options.to}")
            print(f"standardised: mean {np.round(mean, 3)}, standard deviation {np.round(std, 3)}")
        else:
            images = decode(options.first_stage, options.path, num=options.num, **shared)
            options.to.parent.mkdir(parents=True, exist_ok=True)
            np.savez(options.to, samples=sheets.to_uint8(images))
            sheets.image_sheet(images, path=options.to.with_suffix(".png"))
            print(f"{len(images)} images in {options.to} and {options.to.with_suffix('.png')}")
    except (ConfigError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
