"""--mode=encode and --mode=decode: precompute latents with a trained first stage, and decode latents to images.

    python -m diffusion_jax.main --config=configs/autoencoder_kl.py --workdir=runs/autoencoder_kl --mode=encode \
        --to=runs/latents
    python -m diffusion_jax.main --config=configs/autoencoder_kl.py --workdir=runs/autoencoder_kl --mode=decode \
        --from=runs/latents

`encode` reads config.data, which may be other data than the first stage was trained on, and writes the outputs of the
encoder as ArrayRecord files, for --config.data.name=latents --config.data.path=runs/latents. For a Gaussian bottleneck
these are mean and log variance, and training draws new latents from them in every epoch. Labels, captions
(config.data.caption_key, truncated to config.data.max_tokens) and other conditions are written with them. A slice such
as train[:95%] selects the same examples from the latents as from the data. The command prints mean and standard
deviation of the standardised latents, which are near 0 and 1 on the training data.

`decode` reads such a folder, or an .npz or .npy file of standardised latents, such as the samples of a diffusion model,
and writes at most config.sampling.num_samples images as an array and a PNG.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.config import build
from diffusion_jax.config import data as config_data
from diffusion_jax.config.recipes.latent_diffusion import fingerprint
from diffusion_jax.config.sections import ConfigError, refusal
from diffusion_jax.data import tokenization
from diffusion_jax.data.sources import latents
from diffusion_jax.evaluation import sheets
from diffusion_jax.processes import row_keys
from diffusion_jax.run import codes, workdir
from diffusion_jax.run.job import Job, prepare
from diffusion_jax.run.parameters import params_of
from diffusion_jax.run.report import say
from diffusion_jax.run.sample import keep_earlier
from diffusion_jax.training.faults import check_local_options, replacing
from diffusion_jax.training.rows import in_batches
from diffusion_jax.types import Params, Spec

_CALLS = 16  # number of batches that are in memory at once


def encode(config: ConfigDict, directory: pathlib.Path, to: pathlib.Path) -> None:
    """Write the latents of config.data.split to the folder `to`; of a diffusion autoencoder what `run.codes` lists.

    Raises ConfigError.
    """
    job = prepare(config)
    if job.recipe.role == codes.ROLE:
        workdir.check_writable(to, "--to")
        codes.write(job, params_of(job, directory)[0], to)
        return
    _check_first_stage(job, "encode")
    workdir.check_writable(to, "--to")
    for key in ("image_key", "control_key"):
        if config.data.get(key, "") and config.data.name == "folder":
            raise ConfigError(
                f"config.data.{key}={config.data[key]!r} must be '': images as conditions are encoded from "
                "config.data.name='arrays' only"
            )
    system, size = job.system, config.training.batch_size
    params, _ = params_of(job, directory)
    source = _source(job)
    sums = np.zeros((3, system.latent_shape[-1]))  # of 1, z and z^2, by channel

    @jax.jit
    def encoded(ids, cond):
        h = system.encode(params["network"], cond["x"])
        return {"x": h, "z": system.latents(params, row_keys(jax.random.key(0), ids), h)}

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for rows in _chunks(source, _CALLS * size):
            found = in_batches(encoded, len(rows["x"]), size, {"x": rows["x"]})
            z = found["z"].astype(np.float64)
            sums[:] += np.stack([np.ones_like(z).sum((0, 1, 2)), z.sum((0, 1, 2)), np.square(z).sum((0, 1, 2))])
            yield {"x": found["x"], **{name: value for name, value in rows.items() if name != "x"}}

    name = config.data.split.partition("[")[0]
    facts = dict(image_shape=source.shape, num_classes=source.num_classes, first_stage=fingerprint(params))
    facts["classes"] = source.facts.get("classes", ())
    replaced = (to / f"{name}.json").exists()
    with jax.set_mesh(job.mesh), refusal("--to"):
        header = latents.write(to, name, batches(), **facts)
    mean = sums[1] / sums[0]
    std = np.sqrt(np.maximum(sums[2] / sums[0] - mean**2, 0))
    say(
        f"{header.num} latents of {header.shape} in {to}",
        f"standardised: mean {np.round(mean, 3)}, standard deviation {np.round(std, 3)}",
        *([f"they replace the earlier latents of {name!r} there"] if replaced else []),
    )


def _source(job: Job) -> data.Source:
    """The images to encode, with their conditions; texts are cut at config.data.max_tokens. Raises ConfigError."""
    config, specs = job.config.copy_and_resolve_references(), dict(job.system.batch)
    length = config.data.get("max_tokens", 0)
    if "max_tokens" in config.data:
        del config.data["max_tokens"]
    if length:
        specs["tokens"] = Spec((length,), "int32")
    return config_data.source(config, specs, tokenize=_tokenizer(config, length), training="")


def _tokenizer(config: ConfigDict, length: int) -> tokenization.Tokenizer | None:
    """The tokenizer of config.data.tokenizer; None for bytes. The diffusion model checks the ids when it reads them."""
    if not config.data.get("tokenizer", "") or not length:
        return None
    with refusal(f"config.data.tokenizer={config.data.tokenizer!r}"):
        return tokenization.load_for_network(config.data.tokenizer, length)


def decode(config: ConfigDict, directory: pathlib.Path, path: pathlib.Path, to: pathlib.Path) -> None:
    """Decode the latents in the folder or file `path`; write the images to the .npz file `to`. Raises ConfigError."""
    job = prepare(config)
    _check_first_stage(job, "decode")
    workdir.check_writable(to.parent, "--to")
    to = to if to.suffix == ".npz" else to.with_name(f"{to.name}.npz")
    params, _ = params_of(job, directory)
    images = decoded(job, params, path)
    if jax.process_index() == 0:
        with refusal("--from"):
            pixels = sheets.to_uint8(images)
        kept = keep_earlier(to, (".npz", ".png"))
        with replacing(to) as file:
            np.savez(file, samples=pixels)
        sheets.write_png(sheets.image_sheet(images), to.with_suffix(".png"))
        say(f"{len(images)} images in {to} and {to.with_suffix('.png')}")
        if kept:
            say(f"earlier images of this name are now {kept}")


def decoded(job: Job, params: Params, path: pathlib.Path) -> np.ndarray:
    """Decode the first latents of a folder or file to images [n, h, w, c]. Raises ConfigError."""
    system, num = job.system, job.config.sampling.num_samples
    with refusal("--from"):
        if path.is_dir():
            split = job.config.data.split
            if latents.read_header(path, split).first_stage != fingerprint(params):
                raise ValueError(f"{path} holds latents of another first stage")
            h, decoder = data.arrays(latents.source(path, split), num)["x"], functools.partial(_decode, system, params)
        else:
            h = data.arrays(data.load(name="arrays", path=str(path), modality="array"), num)["x"]
            if h.shape[1:] != system.latent_shape:
                raise ValueError(f"{path} holds arrays of {h.shape[1:]}; latents are {system.latent_shape}")
            decoder = functools.partial(system.decode_latents, params)
    draw: Callable = jax.jit(lambda ids, cond: decoder(cond["h"]))
    with jax.set_mesh(job.mesh):
        return in_batches(draw, len(h), job.config.sampling.batch_size, {"h": h})


def _decode(system, params: Params, h: jax.Array) -> jax.Array:
    return system.decode(params["network"], system.bottleneck.latent(None, h))


def _check_first_stage(job: Job, mode: str) -> None:
    if job.recipe.role != "first_stage":
        raise ConfigError(
            f"--mode={mode} needs a first stage, such as configs/autoencoder_kl.py; config.system.name="
            f"{job.config.system.name!r} has no {mode}r of that kind"
        )


def _chunks(source: data.Source, size: int) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(source), size):
        yield source.batch(np.arange(start, min(start + size, len(source))))


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m diffusion_jax.latents encode|decode --first_stage=DIR --to=PATH ...`."""
    parser = argparse.ArgumentParser(prog="python -m diffusion_jax.latents", description="see --mode=encode and decode")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("encode", "images to latents"), ("decode", "latents to images")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--first_stage", required=True, help="work directory of the trained first stage")
        command.add_argument("--to", required=True, type=pathlib.Path, help="folder of latents, or .npz file of images")
        command.add_argument("--split", default="train")
        command.add_argument("--batch_size", type=int, default=128)
    commands.choices["encode"].add_argument("--path", default="", help="folder or file of the data")
    commands.choices["encode"].add_argument("--caption_key", default="", help="key of the captions, if any")
    commands.choices["encode"].add_argument(
        "--max_tokens", type=int, default=0, help="tokens of a caption; default: none"
    )
    commands.choices["encode"].add_argument("--tokenizer", default="", help="folder of their tokenizer; default: bytes")
    commands.choices["decode"].add_argument("--from", dest="path", required=True, type=pathlib.Path)
    commands.choices["decode"].add_argument("--num", type=int, default=64)
    options = parser.parse_args(arguments)
    try:
        with refusal():
            check_local_options(vars(options))
        config = build.reset_unread(build.trained(options.first_stage, "--first_stage", role="first_stage").config)
        config.data.split = options.split
        config.training.batch_size = config.sampling.batch_size = options.batch_size
        config.training.accumulate = 1
        if options.command == "encode":
            for key in ("path", "caption_key", "max_tokens", "tokenizer"):
                if getattr(options, key):
                    config.data[key] = getattr(options, key)
            encode(config, pathlib.Path(options.first_stage), options.to)
        else:
            config.sampling.num_samples = options.num
            decode(config, pathlib.Path(options.first_stage), options.path, options.to)
    except (ConfigError, OSError) as error:
        parser.error(str(error))
