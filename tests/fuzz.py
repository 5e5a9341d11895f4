"""Hostile files and flags by the thousand: each must be read, or refused by the error that is documented for it.

    python -m tests.fuzz --inputs 20000
    python -m tests.fuzz --inputs 1000 --target torch_zip --seed 7

Every reader of files from outside is a target: a few valid files, which are damaged byte by byte, inside their
compression, or value by value. A crash of the interpreter, another exception, an input that takes longer than 20
seconds, or more than 3 GiB of memory beyond what the program began with is a failure; it is printed and its input kept.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gzip
import io
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any
from unittest import mock

import numpy as np
import PIL.Image

from diffusion_jax import data, main
from diffusion_jax.config import build, saved, sections
from diffusion_jax.config.defaults import from_file
from diffusion_jax.data import images, prepare, tokenization
from diffusion_jax.data.sources import archives
from diffusion_jax.evaluation.reference import read_statistics
from diffusion_jax.processes.discrete import beta_table
from diffusion_jax.run.job import prepare as prepare_job
from diffusion_jax.run.parameters import load_params
from diffusion_jax.training.writers import read_metrics
from diffusion_jax.weights import families, schedulers, statements
from diffusion_jax.weights.files import open_weights, read_json, write_weights
from diffusion_jax.weights.folders import open_component
from diffusion_jax.weights.torch_file import read_torch_file
from tests import conftest, runs
from tests.data import test_tokenization
from tests.weights import write_legacy, write_zip

_SECONDS = 20  # for one input
_MEMORY = 3 * 2**30  # beyond what the program has reserved at its start
_NUMBERS = (0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**62, 2**63, 2**64 - 1)

Mutate = Callable[[random.Random, bytes], bytes]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A reader, and what to feed it with.

    Attributes:
      seeds: folder -> valid inputs.
      mutations: each makes a bad input of a valid one.
      read: takes the path of a file with the input.
      refusals: what `read` may raise.
      name: of that file.
      cost: seconds per input, about; expensive targets get fewer.
    """

    seeds: Callable[[pathlib.Path], Sequence[bytes]]
    mutations: Sequence[Mutate]
    read: Callable[[pathlib.Path], Any]
    refusals: tuple[type[BaseException], ...] = (ValueError,)
    name: str = "input"
    cost: float = 0.001


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Bits flipped, numbers overwritten, parts cut out, doubled or moved; one to four times."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(content) + 1), rng.randint(1, 64)
        kind = rng.randrange(6)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            size = rng.choice((1, 2, 4, 8))
            number = (rng.choice(_NUMBERS) % 2 ** (8 * size)).to_bytes(size, rng.choice(("little", "big")))
            content[at : at + size] = number
        elif kind == 2:
            del content[at : at + length]
        elif kind == 3:
            content[at:at] = content[at : at + length] * rng.choice((1, 2, 50))
        elif kind == 4:
            content[at:at] = rng.randbytes(length)
        elif len(content) > 1:
            del content[rng.randrange(1, len(content)) :]
    return bytes(content)


def in_zip(rng: random.Random, content: bytes) -> bytes:
    """One member of a zip file damaged, its checksum made right again."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    victim = rng.choice(list(members))
    members[victim] = damaged(rng, members[victim])
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w", rng.choice((*3 * (zipfile.ZIP_STORED,), zipfile.ZIP_DEFLATED))) as archive:
        for name, member in members.items():
            archive.writestr(name if rng.random() < 0.98 else rng.choice(("../up", "/etc/passwd", name[::-1])), member)
    return result.getvalue()


def in_gzip(rng: random.Random, content: bytes) -> bytes:
    return gzip.compress(damaged(rng, gzip.decompress(content)), 1)


def in_json(rng: random.Random, content: bytes) -> bytes:
    """Values of a JSON object replaced, removed, renamed, exchanged or nested without end; one to three times."""
    tree = json.loads(content)
    for _ in range(rng.randint(1, 3)):
        places = [(tree, key) for key in tree]
        for node, key in places:
            children = node[key]
            keys = (
                children if isinstance(children, dict) else range(len(children)) if isinstance(children, list) else ()
            )
            places.extend((children, key) for key in keys)
        if not places:
            break
        (node, key), (other, other_key) = rng.choice(places), rng.choice(places)
        kind = rng.randrange(5)
        if kind == 0 or isinstance(node, list):
            node[key] = rng.choice(_values())
        elif kind == 1:
            del node[key]
        elif kind == 2:
            node[rng.choice(("name", "", "a.b", "_fields", "keys", "__class__", "x" * 300))] = node.pop(key)
        elif kind == 3:
            node[key] = json.loads(json.dumps(other[other_key]))
        else:
            node["added"] = rng.choice(_values())
    text = json.dumps(tree)
    if rng.random() < 0.02:
        text = text.replace(":", ":" + "[" * 10**5, 1)
    return text.encode()


def _values() -> tuple[Any, ...]:
    # Nothing that makes a network of a thousand layers, which takes its time and is nobody's fault.
    numbers = (0, 1, -1, 3, 7, 10**400, 0.5, -0.5, 1e308, 1e-308, float("nan"), float("inf"), -float("inf"))
    return (*numbers, None, True, False, "", "name", "..", "/", "x" * 1000, "\x00", "\ud800", [], [[]], [1, "a"], {})


def _torch(write: Callable) -> Callable[[pathlib.Path], list[bytes]]:
    def seeds(folder: pathlib.Path) -> list[bytes]:
        arrays = {"a.weight": np.ones((3, 4), np.float32), "b": np.arange(5), "c": np.zeros((), bool)}
        return [write(folder / "seed", arrays).read_bytes()]

    return seeds


def _safetensors(folder: pathlib.Path) -> list[bytes]:
    arrays = {"a.weight": np.ones((3, 4), np.float32), "b": np.arange(5), "c": np.zeros(2, np.float16)}
    (file,) = write_weights(folder, arrays)
    return [file.read_bytes()]


def in_header(rng: random.Random, content: bytes) -> bytes:
    """The description in front of a file of safetensors damaged, its length made right again."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = rng.choice((damaged, in_json))(rng, content[8:end])
    return len(header).to_bytes(8, "little") + header + content[end:]


def _weights_index(folder: pathlib.Path) -> list[bytes]:
    """The files lie beside the inputs, which are in the folder above `folder`."""
    arrays = {"a.weight": np.ones((3, 4), np.float32), "b": np.arange(50.0)}
    *_, index = write_weights(folder.parent, arrays, max_bytes=10)
    return [index.read_bytes()]


def _read_all(path: pathlib.Path) -> None:
    for tensor in open_weights(path).values():
        np.asarray(tensor)


def _components(folder: pathlib.Path) -> list[bytes]:
    """The config.json of networks, whose weights lie beside the inputs."""
    write_weights(folder.parent, {"a": np.ones(1, np.float32)})
    sizes = dict(image_size=32, in_channels=3)
    networks = ("unet", "autoencoder_kl", "vq_model", "dit", "unet_2d_condition", "controlnet")
    more = {"dit": {"num_classes": 3, "hidden_size": 16, "num_heads": 2}}
    return [json.dumps(families.named(name).config_of({**sizes, **more.get(name, {})})).encode() for name in networks]


def _schedulers(folder: pathlib.Path) -> list[bytes]:
    lists = (
        {"_class_name": "DDPMScheduler", "trained_betas": beta_table("linear", 9).tolist(), "num_train_timesteps": 9},
    )
    named = ({"_class_name": name, **kind.defaults} for name, kind in schedulers.SCHEDULERS.items() if kind.solver)
    return [json.dumps(config).encode() for config in (*lists, *named)]


def _read_scheduler(path: pathlib.Path) -> Any:
    scheduler = schedulers.parse(path, read_json(path))
    if scheduler.variance_exploding:
        return scheduler.solver()
    return statements.alpha_squared(scheduler.process()), scheduler.solver(), scheduler.grid(), scheduler.threshold()


def _npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _array_files(folder: pathlib.Path) -> list[bytes]:
    file = io.BytesIO()
    np.save(file, np.zeros((4, 6, 6, 3), np.uint8))
    return [
        file.getvalue(),
        _npz(images=np.zeros((4, 6, 6, 1), np.uint8), labels=np.arange(4)),
        _npz(x=np.linspace(-1, 1, 12).reshape(6, 2)),
    ]


def _statistics(folder: pathlib.Path) -> list[bytes]:
    return [_npz(mu=np.zeros(3), sigma=np.eye(3), mu_s=np.zeros(2), sigma_s=np.eye(2), num=9, extractor="a")]


def _pictures(folder: pathlib.Path) -> list[bytes]:
    contents = []
    for format in images.readable_formats():
        for mode in ("RGB", "L", "P", "I;16"):
            file = io.BytesIO()
            with contextlib.suppress(OSError, KeyError, ValueError):  # not every format has every mode
                PIL.Image.effect_noise((12, 9), 60).convert(mode).save(file, format)
                contents.append(file.getvalue())
    return contents


def _idx(folder: pathlib.Path) -> list[bytes]:
    return [gzip.compress(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0, 5]) + bytes(50))]


def _tar(folder: pathlib.Path) -> list[bytes]:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        member = tarfile.TarInfo("a")
        member.size = 100
        archive.addfile(member, io.BytesIO(bytes(100)))
    return [file.getvalue()]


def _metrics(folder: pathlib.Path) -> list[bytes]:
    return [b"".join(b'{"step": %d, "loss": 0.5, "note": "\xc3\xa4"}\n' % i for i in range(5))]


def _metadata(folder: pathlib.Path) -> list[bytes]:
    """The picture lies beside the inputs, which are in the folder above `folder`."""
    PIL.Image.new("L", (4, 4)).save(folder.parent / "a.png")
    return [
        b'{"file_name": "a.png", "text": "\xc3\xa4 b", "kind": "x"}\n',
        b'{"file_name": "a.png", "text": "", "kind": 1}',
    ]


def _read_metadata(path: pathlib.Path) -> None:
    options = dict(caption_key="text", label_key="kind", max_tokens=4)
    data.arrays(data.load(name="folder", path=str(path.parent), **options))


def _table(folder: pathlib.Path) -> list[bytes]:
    PIL.Image.new("L", (4, 4)).save(folder.parent / "a.png")
    return [b'file_name,text,kind\r\na.png,"\xc3\xa4, b",x\r\n', b"file_name,text,kind\na.png,,1\n"]


def _labels(folder: pathlib.Path) -> list[bytes]:
    PIL.Image.new("L", (4, 4)).save(folder.parent / "a.png")
    return [b'{"labels": [["a.png", 1]]}', b'{"labels": null}']


def _zip_archives(folder: pathlib.Path) -> list[bytes]:
    """Of a picture in a class folder, and of a picture with labels."""
    picture, contents = io.BytesIO(), []
    PIL.Image.effect_noise((8, 8), 60).save(picture, "PNG")
    for names in ({"a/0.png": picture.getvalue()}, {"0.png": picture.getvalue(), "dataset.json": _labels(folder)[1]}):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in names.items():
                archive.writestr(name, content)
        contents.append(file.getvalue())
    return contents


def _vocabulary(folder: pathlib.Path) -> list[bytes]:
    test_tokenization.write_clip(folder.parent, vocab_size=300)
    return [(folder.parent / "vocab.json").read_bytes()]


def _tokenizer(folder: pathlib.Path) -> list[bytes]:
    test_tokenization.write_clip(folder, vocab_size=300)
    (folder.parent / "tokenizer_config.json").write_text('{"pad_token": "!"}')
    return [tokenization.load(folder).backend.to_str().encode()]


def _read_tokenizer(path: pathlib.Path) -> None:
    tokenization.load(path.parent, 8)(["A red heart! \u2764", "", "caf\u00e9 " * 9])


def _configs(folder: pathlib.Path) -> list[bytes]:
    names = ("ddpm", "edm", "ncsn", "toy2d", "flow")
    configs = [runs.toy(), runs.digits(), *(from_file(str(runs.ROOT / "configs" / f"{name}.py")) for name in names)]
    return [json.dumps(config.to_dict()).encode() for config in configs]


def _open_run(path: pathlib.Path) -> None:
    (path.parent / "checkpoints").mkdir(exist_ok=True)
    with contextlib.suppress(sections.ConfigError):  # of a run of another model, as most are
        saved.check_same_model(runs.toy(), path.parent, resume=True)
    build.trained(str(path.parent), "config.weights")


def _checkpoint(folder: pathlib.Path) -> list[bytes]:
    """One file of a checkpoint each, after its path; `_restore` puts it back among the others."""
    from diffusion_jax.run import train

    train.train(runs.toy(training__num_steps=2, training__checkpoint_every=2), folder / "run")
    root = folder / "run" / "checkpoints" / "2"
    files = [file for file in root.rglob("*") if file.is_file()]
    return [str(file.relative_to(folder)).encode() + b"\n" + file.read_bytes() for file in files]


def _after_path(mutate: Mutate) -> Mutate:
    def mutated(rng: random.Random, content: bytes) -> bytes:
        path, _, content = content.partition(b"\n")
        return path + b"\n" + mutate(rng, content)

    return mutated


def _restore(path: pathlib.Path) -> None:
    name, _, content = path.read_bytes().partition(b"\n")
    copy = path.parent / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(path.parent / "seeds" / "run", copy)
    (copy / pathlib.Path(name.decode()).relative_to("run")).write_bytes(content)
    with contextlib.redirect_stderr(io.StringIO()):
        load_params(prepare_job(runs.toy()), copy)


def _flags(folder: pathlib.Path) -> list[bytes]:
    return ["\n".join(f"--config.{k}={v}" for k, v in sections.flatten(runs.toy()).items()).encode()]


def one_flag(rng: random.Random, content: bytes) -> bytes:
    """One to three flags of all that there are, most with another value, some with another name."""
    chosen = rng.sample(content.decode().split("\n"), rng.randint(1, 3))
    result = []
    for flag in chosen:
        name, _, value = flag.partition("=")
        if rng.random() < 0.2:
            name = rng.choice((name[:-1], name + ".name", name.upper(), "--config.x.y", name + "."))
        value = rng.choice((value, value[::-1], *(str(v).replace("\x00", "") for v in _values())))
        result.append(f"{name}={value}".replace("\n", ""))
    return "\n".join(result).encode("utf-8", "surrogatepass")


def _parse_flags(path: pathlib.Path) -> None:
    runs.forget_flags()
    arguments = path.read_bytes().decode("utf-8", "surrogatepass").split("\n")
    command = ["main", f"--config={runs.TOY}", "--mode=plan", *arguments]
    # ml_collections looks up the keys of a config in the command line of the program.
    with contextlib.redirect_stderr(io.StringIO()), mock.patch.object(sys, "argv", command):
        main.parse(command)
    config = runs.given_config()
    sections.drop_replaced(config, from_file(runs.TOY))
    prepare_job(config)


TARGETS = {
    "torch_zip": Target(seeds=_torch(write_zip), mutations=(damaged, in_zip), read=read_torch_file),
    "torch_legacy": Target(seeds=_torch(write_legacy), mutations=(damaged,), read=read_torch_file),
    "safetensors": Target(seeds=_safetensors, mutations=(damaged, in_header), read=_read_all, name="input.safetensors"),
    "weights_index": Target(
        seeds=_weights_index,
        mutations=(damaged, in_json, in_json),
        read=_read_all,
        refusals=(ValueError, FileNotFoundError),
        name="input.index.json",
    ),
    "component_json": Target(
        seeds=_components,
        mutations=(damaged, in_json, in_json),
        read=lambda path: open_component(path.parent),
        refusals=(ValueError, FileNotFoundError),
        name="config.json",
    ),
    "scheduler_json": Target(
        seeds=_schedulers,
        mutations=(damaged, in_json, in_json),
        read=_read_scheduler,
        refusals=(ValueError, FileNotFoundError),
        name="scheduler_config.json",
    ),
    "arrays": Target(
        seeds=_array_files,
        mutations=(damaged, lambda rng, content: (in_zip if content[:2] == b"PK" else damaged)(rng, content)),
        read=lambda path: data.arrays(data.load(name="arrays", path=str(path))),
        name="input.npz",
    ),
    "statistics": Target(seeds=_statistics, mutations=(damaged, in_zip), read=read_statistics, name="input.npz"),
    "pictures": Target(
        seeds=_pictures,
        mutations=(damaged,),
        read=lambda path: images.convert(images.read_image(path), size=8, channels=3),
    ),
    "idx": Target(seeds=_idx, mutations=(damaged, in_gzip), read=prepare.read_idx),
    "tar": Target(seeds=_tar, mutations=(damaged, in_gzip), read=lambda path: archives.read_tar(path, "a")),
    "metrics": Target(seeds=_metrics, mutations=(damaged,), read=read_metrics),
    "metadata": Target(seeds=_metadata, mutations=(damaged, in_json), read=_read_metadata, name="metadata.jsonl"),
    "metadata_csv": Target(seeds=_table, mutations=(damaged,), read=_read_metadata, name="metadata.csv"),
    "dataset_json": Target(
        seeds=_labels,
        mutations=(damaged, in_json),
        read=lambda path: data.arrays(data.load(name="folder", path=str(path.parent))),
        name="dataset.json",
    ),
    "zip_archives": Target(
        seeds=_zip_archives,
        mutations=(damaged, in_zip),
        read=lambda path: data.arrays(data.load(name="folder", path=str(path))),
        name="input.zip",
    ),
    "vocabulary": Target(seeds=_vocabulary, mutations=(damaged, in_json), read=_read_tokenizer, name="vocab.json"),
    "tokenizer": Target(seeds=_tokenizer, mutations=(damaged, in_json), read=_read_tokenizer, name="tokenizer.json"),
    "config_json": Target(
        seeds=_configs,
        mutations=(damaged, in_json, in_json, in_json),
        read=_open_run,
        refusals=(sections.ConfigError,),
        name="config.json",
        cost=0.3,
    ),
    "checkpoint": Target(
        seeds=_checkpoint,
        mutations=(_after_path(damaged),),
        read=_restore,
        refusals=(sections.ConfigError,),
        cost=0.3,
    ),
    "flags": Target(
        seeds=_flags, mutations=(one_flag,), read=_parse_flags, refusals=(sections.ConfigError, SystemExit), cost=0.3
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What became of the inputs of a target."""

    read: int
    refused: int
    failures: tuple[str, ...]
    slowest: float  # seconds


def fuzz(target: Target, folder: pathlib.Path, *, inputs: int, seed: int) -> Result:
    """Feed `inputs` mutated inputs to a reader, in this process. Input i depends on (seed, i) alone."""
    (folder / "seeds").mkdir(parents=True, exist_ok=True)
    valid = target.seeds(folder / "seeds")
    path, counts, failures, slowest = folder / target.name, [0, 0], [], 0.0
    for content in valid:
        path.write_bytes(content)
        target.read(path)
    with _limits():
        for i in range(inputs):
            rng = random.Random(f"{seed} {i}")
            path.write_bytes(rng.choice(target.mutations)(rng, rng.choice(valid)))
            began = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, _SECONDS)
            try:
                target.read(path)
                counts[0] += 1
            except target.refusals:
                counts[1] += 1
            except BaseException:
                failures.append(f"input {i} of seed {seed}:\n{traceback.format_exc()}")
                shutil.copy(path, folder / f"failure_{i}")
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            slowest = max(slowest, time.monotonic() - began)
            if len(failures) >= 5:
                break
    return Result(read=counts[0], refused=counts[1], failures=tuple(failures), slowest=slowest)


class _Hangs(BaseException):
    """Not an Exception, which a reader could take for a damaged file."""


@contextlib.contextmanager
def _limits():
    """Bound memory and time; a reader that catches everything still cannot go on."""

    def hangs(number: int, frame: FrameType | None) -> None:
        raise _Hangs(f"longer than {_SECONDS} s")

    before = signal.signal(signal.SIGALRM, hangs)
    memory = resource.getrlimit(resource.RLIMIT_AS)
    reserved = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (reserved + _MEMORY, memory[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, memory)
        signal.signal(signal.SIGALRM, before)


def _report(name: str, options: argparse.Namespace) -> None:
    """One target, in a process of its own."""
    folder = pathlib.Path(options.folder)
    result = fuzz(TARGETS[name], folder, inputs=options.inputs, seed=options.seed)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(
        f"{name:13} {result.read + result.refused:7,} inputs  {result.read:6,} read  {result.refused:6,} refused  "
        f"{len(result.failures)} failures  slowest {result.slowest:5.2f} s  peak {peak:5.0f} MiB",
        *result.failures,
        sep="\n",
        flush=True,
    )
    sys.exit(bool(result.failures))


def run() -> None:
    conftest.environment()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=20_000, help="in all, or for --target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=list(TARGETS), help="one of them, in this process")
    parser.add_argument("--folder", help="for scratch files and the inputs that fail")
    options = parser.parse_args()
    options.folder = options.folder or tempfile.mkdtemp(prefix="fuzz.")
    if options.target:
        _report(options.target, options)
    cheap = [name for name, target in TARGETS.items() if target.cost < 0.01]
    failed = []
    for name in TARGETS:
        # A few of the inputs for each of the slow readers, the rest in equal parts.
        inputs = options.inputs // (len(cheap) if name in cheap else 200)
        command = [sys.executable, "-m", "tests.fuzz", f"--target={name}", f"--inputs={inputs}"]
        code = subprocess.run(
            [*command, f"--seed={options.seed}", f"--folder={pathlib.Path(options.folder, name)}"], check=False
        ).returncode
        if code:
            failed.append(f"{name} ({f'signal {-code}' if code < 0 else 'see above'})")
    sys.exit(f"failed: {', '.join(failed)}; inputs in {options.folder}" if failed else 0)


if __name__ == "__main__":
    run()
