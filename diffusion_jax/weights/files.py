"""Files of weights: opened lazily whatever their format, and written as `.safetensors`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from diffusion_jax.training.faults import replacing
from diffusion_jax.weights.pickles import Unknown
from diffusion_jax.weights.torch_file import read_torch_file, unknown

MAX_SHARD_BYTES = 10**10  # of one file, as in diffusers
_MAX_JSON_BYTES = 2**24
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
# Those that safetensors does not read into NumPy.
_EIGHT_BITS = {"F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2)}
# Keys of the weights in files of training scripts; averages (EMA) come first.
_WRAPPERS = ("ema", "ema_state_dict", "model_ema", "state_dict", "model_state_dict", "model", "params_ema", "params")
_AVERAGES = ("ema", "ema_state_dict", "model_ema", "params_ema")
_LFS = b"version https://git-lfs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LazyArray:
    """A lazily loaded array, read again on every access. `dtype` is a string if NumPy has no such type."""

    shape: tuple[int, ...]
    dtype: np.dtype | str
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype)


def open_weights(path: str | os.PathLike) -> Mapping[str, Any]:
    """The tensors in a file by name: objects with `shape` and `dtype` that are read when they become an array.

    By its name `path` is a file of safetensors (`*.safetensors`), the index of several (`*.index.json`, with its files
    next to it), or otherwise one of `torch.save` (`.bin`, `.pt`, `.pth`, `.ckpt`), see `read_torch_file`. Of a training
    checkpoint of PyTorch the averaged weights (EMA) are taken, or else the weights.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is cut off, damaged, of another kind, names files outside of its folder, or holds no tensors. What
        a training checkpoint holds next to them is ignored; code is not run.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file")
    with path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise ValueError(f"{path} is a pointer of Git LFS, not the file itself; fetch it with: git lfs pull")
    if _is_index(path.name):
        return _open_index(path)
    return _open_safetensors(path) if path.suffix == ".safetensors" else _state_dict(path, read_torch_file(path))


def metadata(path: pathlib.Path) -> dict[str, str]:
    """The metadata in the header of a file of safetensors; {} for other files."""
    if path.suffix != ".safetensors":
        return {}
    try:
        return safe_open(path, "np").metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {str(error)[:200]}") from error


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file. Raises FileNotFoundError, and ValueError for anything else in it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file")
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"it has more than {_MAX_JSON_BYTES} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value


def write_weights(
    folder: str | os.PathLike,
    arrays: Mapping[str, Any],
    *,
    stem: str = "diffusion_pytorch_model",
    max_bytes: int = MAX_SHARD_BYTES,
) -> list[pathlib.Path]:
    """Write `arrays` to `folder`/`stem`.safetensors, or to several files and their index, as diffusers reads them.

    No file is larger than about `max_bytes`, unless a single tensor is. Each appears under its name when it is
    complete, the index last. Arrays are read file by file. transformers' files have the stem "model".

    Returns the files. Raises OSError when they cannot be written.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = [[]]
    size = 0
    for name, array in arrays.items():
        nbytes = int(np.prod(array.shape, dtype=np.int64)) * np.dtype(array.dtype).itemsize
        if shards[-1] and size + nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    if len(shards) == 1:
        return [_write(folder / f"{stem}.safetensors", arrays, shards[0])]
    files = [f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    written = [_write(folder / file, arrays, names) for file, names in zip(files, shards, strict=True)]
    total = sum(path.stat().st_size for path in written)
    placed = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
    return [*written, write_json(folder / f"{stem}.safetensors.index.json", index)]


def write_json(path: pathlib.Path, value: dict[str, Any]) -> pathlib.Path:
    """Write `value` to `path`, in one piece."""
    with replacing(path, "w") as file:
        file.write(json.dumps(value, indent=2, sort_keys=True) + "\n")
    return path


def _is_index(name: str) -> bool:
    return re.search(r"\.index(\.\w+)?\.json$", name) is not None  # with or without the variant of the weights


def _open_safetensors(path: pathlib.Path) -> dict[str, LazyArray]:
    try:
        file = safe_open(path, "np")
        entries = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is not a dictionary
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} is cut off, damaged or not a file of safetensors: {str(error)[:200]}") from error

    def lazy(name: str, entry: Any) -> LazyArray:
        dtype, shape = entry.get_dtype(), tuple(entry.get_shape())
        if dtype in _EIGHT_BITS:
            return LazyArray(shape=shape, dtype=_EIGHT_BITS[dtype], read=lambda: _eight_bits(path, name, dtype, shape))
        return LazyArray(shape=shape, dtype=_DTYPES.get(dtype, dtype), read=lambda: file.get_tensor(name))

    return {name: lazy(name, entry) for name, entry in entries.items()}


def _eight_bits(path: pathlib.Path, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of 8-bit floats, whose position the header of the file states; the library has checked it."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        start, end = json.loads(file.read(size))[name]["data_offsets"]
        file.seek(8 + size + start)
        return np.frombuffer(file.read(end - start), _EIGHT_BITS[dtype]).reshape(shape)


def _open_index(path: pathlib.Path) -> dict[str, Any]:
    placed = read_json(path).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(file, str) for file in placed.values()) or not placed:
        raise ValueError(f"{path} has no weight_map from the names of tensors to those of files")
    outside = sorted({file for file in placed.values() if pathlib.PurePath(file).name != file or "\\" in file})
    if outside:
        raise ValueError(f"{path} names {outside[0][:200]!r}, which is not a file in its folder")
    tensors: dict[str, Any] = {}
    for file in sorted(set(placed.values())):
        if _is_index(file):
            raise ValueError(f"{path} names the index {file!r} as a file of weights")
        if not os.path.isfile(path.parent / file):  # also False for names that no system allows
            raise FileNotFoundError(f"{path} names {file[:200]!r}, which is missing")
        held = open_weights(path.parent / file)
        absent = [name for name, where in placed.items() if where == file and name not in held]
        if absent:
            raise ValueError(f"{path} places {len(absent)} tensors in {file!r} that it lacks: {absent[0][:200]!r}")
        tensors |= held
    return tensors


def _state_dict(path: pathlib.Path, content: Any) -> dict[str, np.ndarray]:
    """The tensors by name in the content of a file of `torch.save`."""
    try:
        weights = _unwrapped(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if weights is None and isinstance(content, dict):
        for value in content.values():
            if isinstance(value, Unknown):
                raise ValueError(f"{path}: {unknown(value)}")
    if weights is None:
        kind = (
            f"a dictionary of {', '.join(map(str, content))}" if isinstance(content, dict) else type(content).__name__
        )
        raise ValueError(f"{path} holds no state dict of names and tensors; it is {kind[:300]}")
    return {name: array for name, array in weights.items() if isinstance(name, str) and isinstance(array, np.ndarray)}


def _unwrapped(content: Any) -> dict[str, Any] | None:
    if not isinstance(content, dict):
        return None
    averaged = _averaged(content)
    if averaged is not None:
        return averaged
    for key in _AVERAGES:
        if isinstance(content.get(key), Unknown):
            raise ValueError(f"the averages {key!r} cannot be read: {unknown(content[key])}")
    for key in _WRAPPERS:
        inner = _unwrapped(content.get(key))
        if inner is not None:
            return inner
    return content if any(isinstance(value, np.ndarray) and value.ndim for value in content.values()) else None


def _averaged(content: dict[str, Any]) -> dict[str, Any] | None:
    """The weights under "model", with the trained ones replaced by their averages, which lie in order under "ema".

    None without such averages. A weight that does not have the shape of the next average is not trained. Raises
    ValueError if the averages are of other weights.
    """
    model, ema = content.get("model"), content.get("ema")
    averages = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(model, dict) or not isinstance(averages, list | tuple):
        return None
    left = [average for average in averages if isinstance(average, np.ndarray)][::-1]
    result = {}
    for name, array in model.items():
        trained = left and isinstance(array, np.ndarray) and array.shape == left[-1].shape
        result[name] = left.pop() if trained else array
    if left:
        raise ValueError("the averages in ema.shadow_params are not those of the weights in model")
    return result


def _write(path: pathlib.Path, arrays: Mapping[str, Any], names: list[str]) -> pathlib.Path:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # `save_file` writes the memory of an array whatever its strides.
        contiguous = {name: np.asarray(arrays[name], order="C") for name in names}
        part.touch()
        mode = part.stat().st_mode
        save_file(contiguous, part, {"format": "pt"})  # required by PyTorch's readers
        part.chmod(mode)  # the library sets other permissions
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return path
