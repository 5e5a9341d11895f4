"""Latents of a first stage, computed once and kept as ArrayRecord files.

A folder holds for each split NAME the records NAME.array_record, each the bytes of one latent and of its conditions,
one array after the other, and NAME.json, which says their types and shapes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from diffusion_jax.data.derived import Derived
from diffusion_jax.data.images import CONDITIONS
from diffusion_jax.data.source import NOTHING, Batch, Source, Tokenize
from diffusion_jax.data.sources import files, images
from diffusion_jax.types import Spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """What NAME.json says."""

    num: int
    fields: dict[str, tuple[str, tuple[int, ...]]]  # type and shape of each array of an example, in their order
    image_shape: tuple[int, ...]
    num_classes: int
    first_stage: str  # fingerprint of the weights that made them
    classes: tuple[str, ...] = ()  # their names, if they have any

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one latent, as the encoder gives it."""
        return self.fields["x"][1]

    @property
    def record_bytes(self) -> int:
        return sum(np.dtype(kind).itemsize * math.prod(shape) for kind, shape in self.fields.values())


def write(folder: pathlib.Path, split: str, batches: Iterable[dict[str, np.ndarray]], **header: object) -> Header:
    """Write {"x": float32 [n, *shape], "label": int32 [n], ...} batch by batch; `header` as in `Header`, less the first
    two.

    The records appear under their name once all are written.

    Raises:
        ValueError: a split that is no plain name, or no example.
        OSError: the folder cannot be written.
    """
    from array_record.python import array_record_module

    _check_name(split)
    folder.mkdir(parents=True, exist_ok=True)
    part, num, fields = folder / f"{split}.array_record.{os.getpid()}", 0, {}
    # Single records are read in any order.
    writer = array_record_module.ArrayRecordWriter(str(part), "group_size:1")
    try:
        for batch in batches:
            fields = {name: (np.asarray(value).dtype.str, value.shape[1:]) for name, value in batch.items()}
            for i in range(len(batch["x"])):
                writer.write(b"".join(np.ascontiguousarray(value[i]).tobytes() for value in batch.values()))
            num += len(batch["x"])
        writer.close()
        if not num:
            raise ValueError("There is nothing to write.")
        written = Header(num=num, fields=fields, **header)
        part.replace(folder / f"{split}.array_record")
    finally:
        part.unlink(missing_ok=True)
    (folder / f"{split}.json").write_text(json.dumps(dataclasses.asdict(written), indent=2) + "\n")
    return written


def read_header(folder: str | os.PathLike, split: str) -> Header:
    """What the folder says of `split` or of the split that it is a slice of. ValueError, naming the file."""
    path = pathlib.Path(folder).expanduser() / f"{_whole(split)}.json"
    try:
        content = json.loads(path.read_text())
        fields = {name: (np.dtype(kind).str, tuple(shape)) for name, (kind, shape) in content["fields"].items()}
        known = {"fields": fields, "image_shape": tuple(content["image_shape"])}
        header = Header(**{**content, **known, "classes": tuple(content.get("classes", ()))})
        sizes = [size for _, shape in fields.values() for size in shape]
        kinds = {np.dtype(kind).kind for kind, _ in fields.values()}
        if min(header.num, *sizes) < 1 or len(header.shape) != 3 or header.num_classes < 0 or not kinds <= set("fiub"):
            raise ValueError(f"the sizes {header.num}, {fields} and {header.num_classes} are out of range")
        if not all(isinstance(name, str) for name in header.classes):
            raise ValueError("the names of classes must be strings")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} does not describe latents ({type(error).__name__}: {error}); --mode=encode makes them"
        ) from error
    return header


def spec(section: Mapping[str, Any]) -> Spec:
    """Latents of the shape in the header of config.data.path. ValueError: it cannot be read."""
    return Spec(read_header(section.get("path", ""), section.get("split", "train")).shape, modality="latents")


def open_source(
    *,
    split: str = "train",
    wanted: Mapping[str, Spec] = NOTHING,
    tokenize: Tokenize | None = None,
    derive: Derived | None = None,
    path: str = "",
    image_size: int | None = None,
    channels: int | None = None,
    num_workers: int = 1,
) -> Source:
    """One split of a folder of latents; `image_size` and `channels` are those of the images that were encoded."""
    return source(path, split, num_workers)


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
    size = header.record_bytes

    def read(indices: np.ndarray) -> Batch:
        rows = records.__getitems__([int(chosen[i]) for i in indices])
        if any(len(row) != size for row in rows):
            raise ValueError(f"{path} holds records of another size than {size} bytes")
        rows, batch, start = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), size), {}, 0
        for name, (kind, shape) in header.fields.items():
            stop = start + np.dtype(kind).itemsize * math.prod(shape)
            batch[name] = np.ascontiguousarray(rows[:, start:stop]).view(kind).reshape(len(rows), *shape)
            start = stop
        return batch

    source = Source(
        entries=_entries(header),
        size=len(chosen),
        read=read,
        ready=images.ready_conditions,
        num_workers=num_workers,
    )
    return images.with_facts(source, classes=header.classes)


def _entries(header: Header) -> dict[str, Spec]:
    entries = {name: Spec(shape, np.dtype(kind).name) for name, (kind, shape) in header.fields.items()}
    for name in entries.keys() & {*CONDITIONS}:  # 8-bit images are scaled
        entries[name] = Spec(entries[name].shape, "float32", "image")
    if "label" in entries:
        entries["label"] = entries["label"]._replace(values=header.num_classes)
    return entries | {"x": entries["x"]._replace(modality="latents")}


def _whole(split: str) -> str:
    name = split.partition("[")[0]
    _check_name(name)
    return name


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"The split {name!r} must be a name such as 'train'.")
