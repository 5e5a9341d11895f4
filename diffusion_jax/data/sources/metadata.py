"""Metadata of the images of a folder: fields of metadata.jsonl or metadata.csv, or a text file next to each image.

The first two are the convention of Hugging Face's imagefolder: one JSON object per line, or one row of a table, whose
`file_name` is the path of an image relative to the file; other fields may name further images. The file lies in the
folder of the split, or one folder above, next to the folders of all splits. The third is that of many training
scripts: 0001.png and 0001.txt.
"""

from __future__ import annotations

import csv
import io
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.data.sources.trees import Member, Root

_INTEGER = re.compile(r"-?\d+")


class Table(NamedTuple):
    """The fields of each image by its path, and the folder that paths start from."""

    file: pathlib.Path | Member  # for messages
    root: Root
    within: str  # the split's folder in `root`, "" if it is `root` itself
    rows: Mapping[str, Mapping[str, Any]]
    text: bool  # whether the file has no types: every field is a text

    def values(self, names: Sequence[str], key: str) -> list[Any]:
        """The field `key` of each image. Raises ValueError, naming the file and the image without a line or field."""
        fields = []
        for name in names:
            path = _joined(self.within, name)
            if path not in self.rows:
                raise ValueError(f"{self.file} has no line for the image {path}.")
            if key not in self.rows[path]:
                known = ", ".join(sorted(self.rows[path]))
                raise ValueError(f"{self.file} has no field {key!r} for the image {path}; it has {known}.")
            fields.append(self.rows[path][key])
        return fields

    def labels(self, names: Sequence[str], key: str) -> np.ndarray:
        """The field `key` as classes; in a file without types, texts are integers if all of them are digits."""
        values = self.values(names, key)
        if {type(value) for value in values} not in ({str}, {int}):
            strange = next((value for value in values if type(value) not in (str, int)), values[0])
            raise ValueError(f"{self.file}: {key!r} must be strings, or integers, of all images, got {strange!r}.")
        if self.text and all(_INTEGER.fullmatch(value) for value in values):
            values = [int(value) for value in values]
        return np.array(values)

    def captions(self, names: Sequence[str], key: str) -> list[str]:
        """The field `key` as texts. Raises ValueError, naming the image, for anything else."""
        texts = self.values(names, key)
        for name, text in zip(names, texts, strict=True):
            if not isinstance(text, str):
                raise ValueError(f"{self.file}: {key!r} of {name} must be a string, got {text!r}.")
        return texts

    def named_files(self, key: str) -> set[str]:
        """The files below the split's folder that the field `key` names, one or a list of them on each line, and that
        have no line of their own.

        Raises:
            ValueError: naming the line or the path, if one is not inside the folder of the file.
        """
        named = set()
        for row in self.rows.values():
            value = row.get(key, [])
            for name in value if isinstance(value, list) else [value]:
                path = pathlib.PurePosixPath(name if isinstance(name, str) else "")
                if not path.name or path.is_absolute() or ".." in path.parts:
                    raise ValueError(
                        f"{self.file}: {key!r} of {row['file_name']} must be the path of a file in the folder, or a "
                        f"list of them, got {value!r}."
                    )
                named.add(str(path))
        prefix = _joined(self.within, "")
        return {name.removeprefix(prefix) for name in named - self.rows.keys() if name.startswith(prefix)}


def table(places: Sequence[tuple[Root, str]], exists: Callable[[Root, str], bool], files: Sequence[str] = ()) -> Table:
    """The metadata of a split: in the first of `places` that has a file of it, (folder, folder of the split in it).

    `files` are those of the split, for a message that says where else there is metadata.

    Raises:
        ValueError: there is no file, there are two, one cannot be read, or it describes an image in two ways: naming
            the file and the line.
    """
    for root, within in places:
        present = [name for name in READERS if exists(root, name)]
        if len(present) > 1:
            raise ValueError(f"{root} holds {' and '.join(present)}: leave one of them.")
        if present:
            file = root / present[0]
            rows: dict[str, Mapping[str, Any]] = {}
            for number, row in READERS[present[0]](file, read_text(file)):
                if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
                    raise ValueError(f'{file}, line {number}: it must be an object with the string "file_name".')
                name = str(pathlib.PurePosixPath(row["file_name"]))
                if rows.get(name, row) != row:
                    raise ValueError(f"{file}, line {number}: {name} has another line before, with other fields.")
                rows[name] = row
            return Table(file, root, within, rows, present[0].endswith(".csv"))
    parquet = any(exists(root, "metadata.parquet") for root, _ in places)
    below = next((name for name in files if pathlib.PurePosixPath(name).name in READERS), "")
    raise ValueError(
        f"There is neither {' nor '.join(READERS)} in {' or '.join(str(root) for root, _ in places)}"
        f"{'; metadata.parquet is not read, write one of these from it' if parquet else ''}"
        f"{f'; {below} lies below it: write one file for all images' if below else ''}."
    )


def first_lines(root: Root, names: Sequence[str], suffix: str) -> list[str]:
    """The first line of the text file next to each image, such as 0001.txt for the suffix ".txt".

    Raises:
        ValueError: naming the file, if it is missing or not text in UTF-8.
    """
    return [_first_line(root / pathlib.PurePosixPath(name).with_suffix(suffix)) for name in names]


def read_text(file: pathlib.Path | Member) -> str:
    """The text of a file in UTF-8. Raises ValueError, naming the file, if it is missing or in another encoding."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"Cannot read {file}: {error}.") from error
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"Cannot read {file}: it is text in UTF-16; save it as UTF-8.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"Cannot read {file}: it is not text in UTF-8 ({error}); save it as UTF-8.") from error


def _jsonl(file: pathlib.Path | Member, text: str) -> list[tuple[int, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file}, line {number}: {error}.") from error
    return rows


def _csv(file: pathlib.Path | Member, text: str) -> list[tuple[int, Any]]:
    rows, reader = [], csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"the fields must be {', '.join(reader.fieldnames or ())}, one of each")
            rows.append((reader.line_num, row))
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{file}, line {reader.line_num}: {error}.") from error
    return rows


READERS = {"metadata.jsonl": _jsonl, "metadata.csv": _csv}


def _first_line(file: pathlib.Path | Member) -> str:
    return next(iter(read_text(file).strip().splitlines()), "").strip()


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
