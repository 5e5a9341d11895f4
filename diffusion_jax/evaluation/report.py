"""An evaluation as a table for the terminal, as `evaluation.json`, and as a line of `evaluations.jsonl`."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_jax.training.faults import replacing


def format_report(results: Mapping[str, Any]) -> str:
    """A table with one row per metric.

    `name_std`, `name_num`, `name_real` and `name_ratio` are in the row of `name`, as its standard deviation, the
    number of samples behind it, the same metric of real data, and the ratio of both. The first two columns are left
    out where they would be empty.
    """
    titles = {"": "samples", "_std": "+-", "_num": "n", "_real": "real data", "_ratio": "ratio"}
    paired = {name + suffix for name in results for suffix in titles if suffix and name + suffix in results}
    suffixes = [s for s in titles if s not in ("_std", "_num") or any(name.endswith(s) for name in paired)]
    rows = [("", *(titles[s] for s in suffixes))]
    for name in results:
        if name not in paired:
            rows.append((name, *(_text(results[name + s]) if name + s in results else "" for s in suffixes)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def write_evaluation(path: str | os.PathLike, results: Mapping[str, Any]) -> None:
    """Write `results` as JSON to `path`, atomically: a reader sees the old file or the new one, never a part.

    NumPy and JAX scalars become numbers, arrays become lists, and NaN and infinity become null, as JSON has neither.

    Raises:
      TypeError: a value is of a type that JSON has no form for.
    """
    text = json.dumps(_plain(results), indent=2, allow_nan=False) + "\n"
    with replacing(path, "w") as file:
        file.write(text)


def append_evaluation(path: str | os.PathLike, results: Mapping[str, Any]) -> pathlib.Path:
    """Append `results`, with the time, as a line of JSON to `evaluations.jsonl` next to `path`; the path of this file.

    `path` is the file of the newest evaluation. If there is no history yet, its results are the first line.
    """
    path = pathlib.Path(path)
    history = path.with_name("evaluations.jsonl")
    lines = [{"time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"), **_plain(results)}]
    if path.exists() and not history.exists():
        with contextlib.suppress(OSError, ValueError):  # not a file of ours
            lines.insert(0, json.loads(path.read_text()))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with history.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    except OSError as error:
        raise OSError(f"{history} cannot be written: {error.strerror or error}") from error
    return history


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _text(value: Any) -> str:
    value = _plain(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
