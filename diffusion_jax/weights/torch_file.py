"""Files of `torch.save`, read without PyTorch and without running what is in them.

Such a file holds a pickle, which can name any function of any module and call it. Here only the few names that
tensors and dictionaries of them are made of are known, and every other one is refused.
"""

from __future__ import annotations

import collections
import io
import math
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_LOCAL_HEADER = 30  # bytes before the name of a member in a zip file

Storage = Callable[[np.dtype, str, int], np.ndarray]  # (dtype, key, number of elements) -> its elements


def read_torch_file(path: str | os.PathLike) -> Any:
    """What `torch.save` wrote to `path`, with a NumPy array in the place of every tensor.

    Both formats are read: zip files (since PyTorch 1.6), whose arrays are read-only and loaded from the disk when
    they are used, and the older ones, which are read at once. Dictionaries, lists, tuples, numbers, strings and
    tensors of floats (float16, bfloat16, float32, float64), integers and truth values are understood; a state dict
    is a dictionary of names and arrays.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is cut off or of another kind, or names anything else, which is then quoted and not run.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is no file")
    try:
        return _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
    except _Refused as error:
        raise ValueError(f"{path}: {error}") from error
    # A broken pickle or archive can raise almost anything.
    except Exception as error:
        raise ValueError(
            f"{path} is cut off, damaged or not a file of torch.save ({type(error).__name__}: {error})"
        ) from error


class _Refused(ValueError):
    """Something readable that is not wanted."""


class _Unpickler(pickle.Unpickler):
    """Knows the names in `_known` only, and gets the elements of tensors from `storage`."""

    def __init__(self, file: io.BufferedIOBase, storage: Storage):
        super().__init__(file, encoding="utf-8")
        self._storage = storage
        # Functions of this object alone: a pickle can set attributes of what it is given.
        self._known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor"): lambda *arguments: _tensor(*arguments),
            ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: _tensor(*arguments),
            ("torch._utils", "_rebuild_parameter"): lambda data, requires_grad, hooks: data,
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._known:
            return self._known[module, name]
        if module == "torch" and (name in _STORAGES or name in _DTYPES):
            return f"torch.{name}"
        raise _Refused(
            f"it names {module}.{name}, which is neither a tensor nor a dictionary of tensors; save its state_dict()"
        )

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind = str(pid[1]).removeprefix("torch.") if isinstance(pid, tuple) and len(pid) >= 5 else None
        if kind not in _STORAGES or pid[0] != "storage":
            raise _Refused(
                f"it refers to {str(pid)[:100]}, which is not the storage of a tensor; save its state_dict()"
            )
        _, _, key, _, size, *view = pid
        if view and view[0] is not None:
            raise _Refused("it holds views of storages, which PyTorch 0.1 wrote; save it anew")
        if type(size) is not int or size < 0:
            raise _Refused(f"storage {key!r} has the size {size!r}")
        return self._storage(np.dtype(_STORAGES[kind]), str(key), size)


def _tensor(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
    """Elements offset + sum_i index_i stride_i of a storage, without a copy."""
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
        raise _Refused(f"a tensor has offset {offset!r}, size {size!r} and stride {stride!r}")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else 0
    # A tensor that repeats elements (stride 0) could claim any size.
    if count > storage.size or (count and last >= storage.size):
        raise _Refused(f"a tensor of size {tuple(size)} does not fit into its storage of {storage.size} elements")
    bytes_ = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:] if count else storage[:0], size, bytes_)


def _read_zip(path: pathlib.Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = {entry.filename: entry for entry in archive.infolist()}
        pickled = next((name for name in members if name.endswith("/data.pkl") and name.count("/") == 1), None)
        if pickled is None:
            raise _Refused("it is a zip file without data.pkl, so torch.save did not write it")
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}constants.pkl" in members:
            raise _Refused("it is a TorchScript module; save its state_dict() with torch.save")
        byteorder = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in members else b"little"
        if byteorder != b"little":
            raise _Refused(f"its byte order is {byteorder[:20]!r}; only little-endian files are read")
        storages: dict[str, np.ndarray] = {}

        def storage(dtype: np.dtype, key: str, size: int) -> np.ndarray:
            if key not in storages:
                storages[key] = _mapped(path, members.get(f"{folder}data/{key}"), dtype, key, size)
            return _same(storages[key], dtype, key, size)

        with archive.open(pickled) as file:
            return _Unpickler(file, storage).load()


def _mapped(path: pathlib.Path, member: zipfile.ZipInfo | None, dtype: np.dtype, key: str, size: int) -> np.ndarray:
    if member is None:
        raise _Refused(f"storage {key!r} is missing")
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != size * dtype.itemsize:
        raise _Refused(f"storage {key!r} has {member.file_size} bytes where {size * dtype.itemsize} are announced")
    if size == 0:
        return np.empty(0, dtype)
    with open(path, "rb") as file:
        file.seek(member.header_offset + _LOCAL_HEADER - 4)
        name_and_extra = sum(int.from_bytes(file.read(2), "little") for _ in range(2))
    offset = member.header_offset + _LOCAL_HEADER + name_and_extra
    return np.memmap(path, dtype, "r", offset, (size,))


def _read_legacy(path: pathlib.Path) -> Any:
    limit = path.stat().st_size
    storages: dict[str, np.ndarray] = {}

    def nothing(dtype: np.dtype, key: str, size: int) -> np.ndarray:
        raise _Refused("its header refers to tensors")

    def storage(dtype: np.dtype, key: str, size: int) -> np.ndarray:
        if key not in storages:
            if size * dtype.itemsize + sum(x.nbytes for x in storages.values()) > limit:
                raise _Refused(f"it is cut off: storage {key!r} of {size * dtype.itemsize} bytes does not fit into it")
            storages[key] = np.empty(size, dtype)
        return _same(storages[key], dtype, key, size)

    with open(path, "rb") as file:
        magic, version, system = (_Unpickler(file, nothing).load() for _ in range(3))
        if magic != _LEGACY_MAGIC or version != _LEGACY_VERSION:
            raise _Refused("it does not begin like a file of torch.save")
        if not system.get("little_endian"):
            raise _Refused("only little-endian files are read")
        result = _Unpickler(file, storage).load()
        # The elements follow the objects that are made of them.
        for key in _Unpickler(file, nothing).load():
            elements = storages.pop(str(key))
            written = int.from_bytes(file.read(8), "little")
            if written != elements.size or file.readinto(elements.view(np.uint8).data) != elements.nbytes:
                raise _Refused(f"it is cut off: storage {key!r} of {elements.size} elements is not whole")
        if storages:
            raise _Refused(f"storage {next(iter(storages))!r} is missing")
    return result


def _same(elements: np.ndarray, dtype: np.dtype, key: str, size: int) -> np.ndarray:
    if elements.dtype != dtype or elements.size != size:
        raise _Refused(f"storage {key!r} is used as {size} {dtype} and as {elements.size} {elements.dtype}")
    return elements
