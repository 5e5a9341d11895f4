"""Latents of a first stage, computed once and kept as ArrayRecord files.

A folder holds for each split NAME the records NAME.array_record, each the float32 values of one latent and its label
as int32 (-1 for none), and NAME.json, which says what they are.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterable

import numpy as np

from diffusion_jax.data import files
from diffusion_jax.data.sources import Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """What NAME.json says."""

    num: int
    shape: tuple[int, ...]  # of one latent, as the encoder gives it
    image_shape: tuple[int, ...]
    num_classes: int
    first_stage: str  # fingerprint of the weights that made them


def write(folder: pathlib.Path, split: str, batches: Iterable[dict[str, np.ndarray]], **header: object) -> Header:
    """Write {"x": float32 [n, *shape], "label": int32 [n] or absent} batch by batch; `header` as in `Header`, less num.

    The records appear under their name once all are written.

    Raises:
        ValueError: a split that is no plain name.
        OSError: the folder cannot be written.
    """
    from array_record.python import array_record_module

    _check_name(split)
    folder.mkdir(parents=True, exist_ok=True)
    part, num = folder / f"{split}.array_record.{os.getpid()}", 0
    # Single records are read in any order.
    writer = array_record_module.ArrayRecordWriter(str(part), "group_size:1")
    try:
        for batch in batches:
            labels = batch.get("label", np.full(len(batch["x"]), -1))
            for x, label in zip(batch["x"], labels, strict=True):
                writer.write(np.asarray(x, "<f4").tobytes() + np.asarray(label, "<i4").tobytes())
            num += len(batch["x"])
        writer.close()
        found = Header(num=num, **header)
        part.replace(folder / f"{split}.array_record")
    finally:
        part.unlink(missing_ok=True)
    (folder / f"{split}.json").write_text(json.dumps(dataclasses.asdict(found), indent=2) + "\n")
    return found


def read_header(folder: str | os.PathLike, split: str) -> Header:
    """What the folder says of `split` or of the split that it is a slice of. ValueError, naming the file."""
    path = pathlib.Path(folder).expanduser() / f"{_whole(split)}.json"
    try:
        found = json.loads(path.read_text())
        header = Header(**{**found, "shape": tuple(found["shape"]), "image_shape": tuple(found["image_shape"])})
        if min(header.num, *header.shape) < 1 or len(header.shape) != 3 or header.num_classes < 0:
            raise ValueError(f"the sizes {header.num}, {header.shape} and {header.num_classes} are out of range")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} does not describe latents ({type(error).__name__}: {error}); "
            "python -m diffusion_jax.latents encode makes them"
        ) from error
    return header


def source(folder: str | os.PathLike, split: str, num_workers: int = 1) -> Source:
    """One split, read by index.

    Raises:
        ValueError: there is no such split, or its files do not fit together.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    header = read_header(folder, split)
    path = pathlib.Path(folder).expanduser() / f"{_whole(split)}.array_record"
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    records = ArrayRecordDataSource(str(path))
    if len(records) != header.num:
        raise ValueError(f"{path} holds {len(records)} latents; {header.num} are announced")
    chosen = files.select(split, header.num)
    values = int(np.prod(header.shape))

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        found = records.__getitems__([int(chosen[i]) for i in indices])
        if any(len(record) != 4 * (values + 1) for record in found):
            raise ValueError(f"{path} holds records of another size than {4 * (values + 1)} bytes")
        rows = np.frombuffer(b"".join(found), "<f4").reshape(len(found), values + 1)
        batch = {"x": rows[:, :-1].reshape(-1, *header.shape).astype(np.float32)}
        if header.num_classes:
            batch["label"] = np.ascontiguousarray(rows[:, -1]).view("<i4").astype(np.int32)
        return batch

    return Source(
        read=read, size=len(chosen), shape=header.shape, num_classes=header.num_classes, num_workers=num_workers
    )


def _whole(split: str) -> str:
    name = split.partition("[")[0]
    _check_name(name)
    return name


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"The split {name!r} must be a name such as 'train'.")
