"""Metadata of the images of a folder: fields of a file metadata.jsonl, or a text file next to each image.

The first is the convention of Hugging Face's imagefolder: one JSON object per line, whose `file_name` is the path of an
image relative to the folder; other fields may name further images in the folder. The second is that of many training
scripts: 0001.png and 0001.txt.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

FILE = "metadata.jsonl"


def captions(root: pathlib.Path, paths: Sequence[pathlib.Path], key: str) -> list[str]:
    """The text of each image: the first line of the file next to it for a suffix such as ".txt", else a field.

    Raises:
        ValueError: naming the image or the line, where there is no text, or something else.
    """
    if not key.startswith("."):
        texts = values(root, paths, key)
        for path, text in zip(paths, texts, strict=True):
            if not isinstance(text, str):
                raise ValueError(f"{root / FILE}: {key!r} of {path.name} must be a string, got {text!r}.")
        return texts
    return [_first_line(path.with_suffix(key)) for path in paths]


def named_files(root: pathlib.Path, key: str) -> set[pathlib.PurePosixPath]:
    """The files in `root` that the field `key` of `root`/metadata.jsonl names, one or a list of them on each line, and
    that have no line of their own.

    Raises:
        ValueError: naming the line or the path, if one is not inside the folder.
    """
    named, entries = set(), _entries(root / FILE)
    for entry in entries.values():
        value = entry.get(key, [])
        for name in value if isinstance(value, list) else [value]:
            path = pathlib.PurePosixPath(name if isinstance(name, str) else "")
            if not path.name or path.is_absolute() or ".." in path.parts:
                raise ValueError(
                    f"{root / FILE}: {key!r} of {entry['file_name']} must be the path of a file in the folder, or a "
                    f"list of them, got {value!r}."
                )
            named.add(path)
    return named - entries.keys()


def values(root: pathlib.Path, paths: Sequence[pathlib.Path], key: str) -> list[Any]:
    """The field `key` of each image in `root`/metadata.jsonl.

    Raises:
        ValueError: naming the file, and the image or the line, that is missing or cannot be read.
    """
    file = root / FILE
    entries = _entries(file)
    fields = []
    for path in paths:
        name = pathlib.PurePosixPath(path.relative_to(root).as_posix())
        if name not in entries:
            raise ValueError(f"{file} has no line for the image {name}.")
        if key not in entries[name]:
            known = ", ".join(sorted(entries[name]))
            raise ValueError(f"{file} has no field {key!r} for the image {name}; it has {known}.")
        fields.append(entries[name][key])
    return fields


def _entries(file: pathlib.Path) -> dict[pathlib.PurePosixPath, dict[str, Any]]:
    """The object of each image by its path."""
    entries = {}
    for number, line in enumerate(_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}, line {number}: {error}.") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise ValueError(f'{file}, line {number}: it must be an object with the string "file_name".')
        entries[pathlib.PurePosixPath(entry["file_name"])] = entry
    return entries


def _first_line(file: pathlib.Path) -> str:
    return next(iter(_text(file).strip().splitlines()), "").strip()


def _text(file: pathlib.Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Cannot read {file}: {error}.") from error
