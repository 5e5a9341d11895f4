"""Windows of time series from .csv, .npz and .npy files, with missing values as NaN."""

from __future__ import annotations

import csv
import gzip
import io
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64

from diffusion_jax.data.derived import Derived
from diffusion_jax.data.source import NOTHING, Batch, Source, Tokenize
from diffusion_jax.data.sources import archives, files
from diffusion_jax.types import Spec, check

_SPLITS = ("train", "validation", "test")
_LENGTH, _CHANNELS = 80, 4  # of windows, and of the embedded recording
_ENDS = (0.7, 0.8, 1.0)
_MISSING = ("", "nan", "null", "na", "?")  # what a .csv file has for a missing value
_WHERE = (
    "give a .csv, .csv.gz, .npz or .npy file; ETTh1.csv, for example, is in the folder ETT-small of "
    "https://github.com/zhouhaoyi/ETDataset"
)


def spec(section: Mapping[str, Any]) -> Spec:
    """Windows [length, channels], or [length, 1] where channels are series of their own. Raises ValueError."""
    length, channels = section.get("length", _LENGTH), section.get("channels", _CHANNELS)
    for name, value, least in (("length", length, 2), ("channels", channels, 1)):
        whole = isinstance(value, int) and value >= least
        check(whole, f"data.{name}", value, f"an integer of at least {least}")
    return Spec((length, 1 if section.get("univariate", False) else channels), modality="series")


def open_source(
    *,
    split: str = "train",
    wanted: Mapping[str, Spec] = NOTHING,
    tokenize: Tokenize | None = None,
    derive: Derived | None = None,
    path: str = "",
    length: int = _LENGTH,
    channels: int = _CHANNELS,
    horizon: int = 0,
    stride: int = 0,
    ends: tuple[float, ...] = _ENDS,
    standardize: bool = True,
    univariate: bool = False,
    season: int = 0,
) -> Source:
    """Windows [length, channels] of a series, in which NaN marks what is missing.

    `path` is a .csv or .csv.gz file with a line of names and one row per time (columns without any number, such as
    dates, are left out), or an .npz (its array "x" or its only one) or .npy file with [steps, channels], [steps], or
    [n, length, channels]: n separate series, each of which is one window. Without a `path` it is `embedded`.

    The splits "train", "validation" and "test" end at the indices `ends`, fractions of the steps or of the n series
    where they are at most 1, numbers of them otherwise. Windows of "train" start at every step. Those of the other
    splits are `stride` apart (0: the horizon, or the length without one) and the last one ends with the split, so that
    nothing is dropped. The last `horizon` steps of a held-out window lie in its split, and what comes before may reach
    back into the split before; with horizon 0 the whole window lies in it.

    With `standardize` each channel has mean 0 and variance 1 over the present values of "train"; `facts` have the
    "mean" and "std" that were taken out. With `univariate` each channel is a series of its own, [length, 1]: example
    i is channel i mod C of window i // C. `season` is the period of the series in steps, for seasonal forecasts.

    Raises ValueError for a file that is missing, unreadable or too short, other numbers of channels, or ends that do
    not rise.
    """
    section = dict(length=length, channels=channels, univariate=univariate)
    entry = spec(section)
    check(0 <= horizon < length, "data.horizon", horizon, f"at least 0 and less than data.length={length}")
    check(stride >= 0, "data.stride", stride, "at least 0")
    check(season >= 0, "data.season", season, "at least 0")
    name = files.named(split)
    if name not in _SPLITS:
        raise ValueError(f"Unknown split {name!r} of a series: there are {', '.join(_SPLITS)}.")
    values = _values(path)
    separate = values.ndim == 3
    if values.shape[-1] != channels:
        raise ValueError(f"data.channels={channels}, and {path or 'the embedded series'} has {values.shape[-1]}.")
    if separate and values.shape[1] != length:
        raise ValueError(f"{path} holds series of {values.shape[1]} steps; data.length={length} must be the same.")
    bounds = _bounds(ends, len(values))
    first, last = bounds[_SPLITS.index(name)]
    mean, std = (
        _moments(values[slice(*bounds[0])], channels) if standardize else (np.zeros(channels), np.ones(channels))
    )
    values = ((values - mean) / std).astype(np.float32)
    if not separate:
        starts = _starts(first, last, length, 0 if name == "train" else horizon, 1 if name == "train" else stride)
        if not len(starts):
            raise ValueError(
                f"the split {name!r} of {path or 'the embedded series'} has {last - first} steps, too few for "
                f"data.length={length} with data.horizon={horizon}."
            )
        values = np.lib.stride_tricks.sliding_window_view(values, length, axis=0).swapaxes(1, 2)
    else:
        starts = np.arange(first, last)
    members = channels if univariate else 1
    chosen = np.arange(len(starts) * members)[files.bounds(split, len(starts) * members)]

    def read(indices: np.ndarray) -> Batch:
        window, channel = np.divmod(chosen[indices], members)
        x = values[starts[window]]
        return {"x": x[np.arange(len(x)), :, channel][..., None] if univariate else np.ascontiguousarray(x)}

    facts = {"mean": mean, "std": std, "season": season, "channels_of_window": members}
    return Source(entries={"x": entry}, size=len(chosen), read=read, facts=facts)


def embedded() -> Float64[np.ndarray, "800 4"]:
    """Four channels of an electroencephalogram, 800 steps, which matplotlib ships for its examples."""
    from matplotlib import cbook

    with cbook.get_sample_data("eeg.dat") as file:
        return np.frombuffer(file.read(), np.float64).reshape(-1, _CHANNELS)


def _starts(first: int, last: int, length: int, horizon: int, stride: int) -> Int64[np.ndarray, "n"]:
    """First steps of the windows whose last `horizon` steps, or all of whose steps, lie in first..last - 1."""
    low, high = max(first + horizon - length if horizon else first, 0), last - length
    starts = np.arange(low, high + 1, stride or horizon or length)
    return np.append(starts, high) if len(starts) and starts[-1] < high else starts


def _bounds(ends: tuple[float, ...], size: int) -> list[tuple[int, int]]:
    """(first, last) of each split."""
    check(len(ends) == len(_SPLITS), "data.ends", ends, f"the ends of {', '.join(_SPLITS)}")
    places = [round(end * size) if end <= 1 else int(end) for end in ends]
    rising = 0 < places[0] <= places[1] < places[2] <= size
    check(rising, "data.ends", ends, f"rising, the last at most 1 or the {size} steps of the data")
    return list(zip([0, *places[:-1]], places, strict=True))


def _moments(train: Float[np.ndarray, "*n channels"], channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the present values of each channel; 0 and 1 of one without any, or constant."""
    flat = train.reshape(-1, channels)
    present = np.isfinite(flat)
    count = np.maximum(present.sum(0), 1)
    mean = np.where(present, flat, 0).sum(0) / count
    std = np.sqrt(np.where(present, flat - mean, 0).__pow__(2).sum(0) / count)
    return mean, np.where(std > 0, std, 1)


def _values(path: str) -> Float64[np.ndarray, "*n channels"]:
    """The numbers of a file, [steps, channels] or [n, steps, channels]; NaN for what is missing."""
    if not path:
        return embedded()
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"data.path={path!r} is no file; {_WHERE}.")
    if file.suffix not in (".npz", ".npy"):
        return _table(file)
    try:
        if file.suffix == ".npy":
            values = np.load(file, allow_pickle=False)
        else:
            with np.load(file, allow_pickle=False) as archive:
                names = archive.files
            if len(names) > 1 and "x" not in names:
                raise ValueError(f"it has the arrays {', '.join(names)}; the series must be called 'x'")
            key = "x" if "x" in names else names[0]
            values = archives.read_npz(file, {key})[key]
        values = np.asarray(values, np.float64)
    except Exception as error:  # a broken archive can raise from zipfile, zlib or the header parser
        raise ValueError(f"{path} cannot be read as numbers: {error}") from error
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim not in (2, 3):
        raise ValueError(f"{path} has the shape {values.shape}; it must be [steps, channels] or [n, steps, channels].")
    return np.where(np.isfinite(values), values, np.nan)


def _table(file: pathlib.Path) -> Float64[np.ndarray, "steps channels"]:
    """The columns of numbers of a .csv file. Raises ValueError that names the line and column of other text."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        rows = [row for row in csv.reader(io.StringIO(content.decode("utf-8-sig"))) if row]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read as a .csv file: {error}; {_WHERE}.") from error
    if len(rows) < 2:
        raise ValueError(f"{file} has no rows below its line of names; {_WHERE}.")
    names, rows = rows[0], rows[1:]
    if all(_is_number(name) for name in names):
        raise ValueError(f"{file}: the first line, {','.join(names)[:60]!r}, must hold the names of the columns.")
    short = next((i for i, row in enumerate(rows) if len(row) != len(names)), None)
    if short is not None:
        raise ValueError(f"{file}: row {short + 1} has {len(rows[short])} values for {len(names)} columns.")
    columns = [_column(file, name, cells) for name, cells in zip(names, zip(*rows, strict=True), strict=True)]
    numbers = [column for column in columns if column is not None]
    if not numbers:
        raise ValueError(f"{file} has no column of numbers; {_WHERE}.")
    return np.stack(numbers, axis=1)


def _column(file: pathlib.Path, name: str, cells: tuple[str, ...]) -> Float64[np.ndarray, "steps"] | None:
    """One column as numbers; None if none of its cells is one. ValueError: some are, and one is not."""
    texts = ["nan" if cell.strip().lower() in _MISSING else cell for cell in cells]
    try:
        return np.array(texts, np.float64)
    except ValueError:
        pass
    wrong = [i for i, text in enumerate(texts) if not _is_number(text)]
    if any(_is_number(text) and text != "nan" for text in texts):
        raise ValueError(f"{file}: row {wrong[0] + 1} of column {name!r} is {texts[wrong[0]]!r}, which is no number.")
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
