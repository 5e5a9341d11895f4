"""Files of `torch.save`, read without PyTorch and without running code from them.

Such a file holds a pickle, which can name any function of any module and call it. Only the few names that tensors and
dictionaries of them need are known; what the file makes by any other is an `Unknown` next to the tensors, and refused
where tensors should be. The pickle is read by the machine of `pickles`, not by Python's.
"""

from __future__ import annotations

import functools
import io
import math
import os
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from diffusion_jax.weights.pickles import MAX_BYTES, Refused, Unknown, default_dict, ordered_dict, read_pickle

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
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
    "UntypedStorage": np.uint8,  # bytes of a dtype without a storage of its own
}
_DTYPES = {
    **{name: np.dtype(name) for name in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8")},
    **{name: np.dtype(name) for name in ("bool", "uint16", "uint32", "uint64", "complex64", "complex128")},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in ("float8_e4m3fnuz", "float8_e5m2fnuz")},
}
_MAX_AXES = 64  # of a NumPy array
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_LOCAL_HEADER = 30  # bytes before the name of a member in a zip file

Storage = Callable[[np.dtype, str, int], np.ndarray]  # (dtype, key, number of elements) -> its elements


def read_torch_file(path: str | os.PathLike) -> Any:
    """The object that `torch.save` wrote to `path`, with NumPy arrays instead of tensors.

    Both formats are read: zip files (since PyTorch 1.6), whose arrays are read-only and loaded from the disk when
    they are used, and the older ones, which are read at once. Dictionaries, lists, tuples, numbers, strings and
    tensors of floats (8 to 64 bits), integers, complex numbers and truth values are understood; a state dict is a
    dictionary of names and arrays. Anything else (argparse.Namespace, torch.device, modules, ...) is an `Unknown`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is cut off or of another kind, or as a whole something unknown, which is then quoted.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file")
    try:
        content = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
        if isinstance(content, Unknown):
            raise Refused(unknown(content))
        return content
    except Refused as error:
        raise ValueError(f"{path}: {error}") from error
    # A broken pickle or archive can raise almost anything.
    except Exception as error:
        raise ValueError(
            f"{path} is cut off, damaged or not a file of torch.save ({type(error).__name__}: {str(error)[:200]})"
        ) from error


def unknown(value: Unknown) -> str:
    """The reason for which something unknown is refused where tensors should be."""
    return f"it names {value.name}, which is neither a tensor nor a dictionary of tensors; save its state_dict()"


def _known(module: str, name: str) -> Any:
    known = {
        ("collections", "OrderedDict"): ordered_dict,
        ("torch", "Size"): _size,
        ("torch._utils", "_rebuild_tensor"): _tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_bytes,
        ("torch._utils", "_rebuild_parameter"): _first,
        ("torch._utils", "_rebuild_parameter_with_state"): _first,
        ("torch._tensor", "_rebuild_from_type_v2"): _of_type,
        ("collections", "defaultdict"): default_dict,
    }
    if (module, name) in known:
        return known[module, name]
    if module in ("torch", "torch.storage") and (name in _STORAGES or name in _DTYPES):
        return f"torch.{name}"
    return Unknown(f"{module[:100]}.{name[:100]}")


def _first(data: Any, *_: Any) -> Any:
    return data


def _of_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor of a subclass, or with attributes, as a plain one."""
    if function not in (_tensor, _tensor_of_bytes, _first) or not isinstance(arguments, tuple):
        return Unknown(getattr(function, "name", "torch._tensor._rebuild_from_type_v2"))
    return function(*arguments)


def _size(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return sizes


def _persistent(storage: Storage, pid: Any) -> np.ndarray:
    kind = str(pid[1]).removeprefix("torch.") if _is_storage(pid) else None
    if kind not in _STORAGES:
        raise Refused("it refers to something that is not the storage of a tensor; save its state_dict()")
    _, _, key, _, size, *view = pid
    if view and view[0] is not None:
        raise Refused("it holds views of storages, which PyTorch 0.1 wrote; save it again with a newer version")
    if type(size) is not int or not 0 <= size < 2**63:
        raise Refused(f"storage {str(key)[:100]!r} has a size that is no natural number")
    return storage(np.dtype(_STORAGES[kind]), str(key), size)


def _is_storage(pid: Any) -> bool:
    return isinstance(pid, tuple) and len(pid) >= 5 and type(pid[1]) is str and type(pid[2]) in (str, int)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
    """Elements offset + sum_i index_i stride_i of a storage, without a copy."""
    if not isinstance(storage, np.ndarray) or not (isinstance(size, tuple) and isinstance(stride, tuple)):
        raise Refused("a tensor has no storage, size or stride")
    numbers = (offset, *size, *stride)
    if not len(size) == len(stride) <= _MAX_AXES or any(type(n) is not int or not 0 <= n < 2**63 for n in numbers):
        raise Refused("a tensor has an offset, size or stride that is not made of natural numbers, or too long")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else 0
    # A tensor that repeats elements (stride 0) could claim any size.
    if count > storage.size or (count and last >= storage.size):
        raise Refused(f"a tensor of size {tuple(size)} does not fit into its storage of {storage.size} elements")
    bytes_ = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:] if count else storage[:0], size, bytes_)


def _tensor_of_bytes(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Any:
    """A tensor of a dtype without a storage of its own, such as 8-bit floats."""
    name = dtype.removeprefix("torch.") if isinstance(dtype, str) else ""
    if name not in _DTYPES or not isinstance(storage, np.ndarray):
        return Unknown(getattr(dtype, "name", "torch.dtype"))
    kind = _DTYPES[name]
    if kind.itemsize == 1:  # `as_strided` does not take all of them
        return _tensor(storage, offset, size, stride).view(kind)
    return _tensor(storage.view(kind), offset, size, stride)


def _read_zip(path: pathlib.Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = {entry.filename: entry for entry in archive.infolist()}
        pickled = next((name for name in members if name.endswith("/data.pkl") and name.count("/") == 1), None)
        if pickled is None:
            raise Refused("it is a zip file without data.pkl, so torch.save did not write it")
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}constants.pkl" in members:
            raise Refused("it is a TorchScript module; save its state_dict() with torch.save")
        byteorder = b"little"
        if f"{folder}byteorder" in members:
            with archive.open(f"{folder}byteorder") as file:
                byteorder = file.read(20)
        if byteorder != b"little":
            raise Refused(f"its byte order is {byteorder!r}; only little-endian files are read")
        storages: dict[str, np.ndarray] = {}
        # Once for all tensors: every map keeps a file open, and a system has a limit on these.
        whole = np.memmap(path, np.uint8, "r")

        def storage(dtype: np.dtype, key: str, size: int) -> np.ndarray:
            if key not in storages:
                storages[key] = _mapped(whole, members.get(f"{folder}data/{key}"), dtype, key, size)
            return _same(storages[key], dtype, key, size)

        with archive.open(pickled) as file:
            content = io.BytesIO(file.read(MAX_BYTES))  # a compressed member may announce any size
        return read_pickle(content, _known, functools.partial(_persistent, storage))


def _mapped(whole: np.ndarray, member: zipfile.ZipInfo | None, dtype: np.dtype, key: str, size: int) -> np.ndarray:
    if member is None:
        raise Refused(f"storage {key!r} is missing")
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != size * dtype.itemsize:
        raise Refused(f"storage {key!r} has {member.file_size} bytes where {size * dtype.itemsize} are announced")
    if size == 0:
        return np.empty(0, dtype)
    start = member.header_offset + _LOCAL_HEADER
    name, extra = (int.from_bytes(whole[at : at + 2].tobytes(), "little") for at in (start - 4, start - 2))
    held = whole[start + name + extra :][: member.file_size]
    if held.size != member.file_size:
        raise Refused(f"storage {key!r} is cut off")
    return held.view(dtype)


def _read_legacy(path: pathlib.Path) -> Any:
    limit = path.stat().st_size
    storages: dict[str, np.ndarray] = {}

    def nothing(pid: Any) -> np.ndarray:
        raise Refused("its header refers to tensors")

    def storage(dtype: np.dtype, key: str, size: int) -> np.ndarray:
        if key not in storages:
            if size * dtype.itemsize + sum(x.nbytes for x in storages.values()) > limit:
                raise Refused(f"it is cut off: storage {key!r} of {size * dtype.itemsize} bytes does not fit into it")
            storages[key] = np.empty(size, dtype)
        return _same(storages[key], dtype, key, size)

    with open(path, "rb") as file:
        magic, version, system = (read_pickle(file, _known, nothing) for _ in range(3))
        if magic != _LEGACY_MAGIC or version != _LEGACY_VERSION:
            raise Refused("it does not begin like a file of torch.save")
        if not system.get("little_endian"):
            raise Refused("only little-endian files are read")
        result = read_pickle(file, _known, functools.partial(_persistent, storage))
        # The elements follow the objects that are made of them.
        for key in read_pickle(file, _known, nothing):
            elements = storages.pop(str(key))
            written = int.from_bytes(file.read(8), "little")
            if written != elements.size or file.readinto(elements.view(np.uint8).data) != elements.nbytes:
                raise Refused(f"it is cut off: storage {key!r} of {elements.size} elements is not whole")
        if storages:
            raise Refused(f"storage {next(iter(storages))!r} is missing")
    return result


def _same(elements: np.ndarray, dtype: np.dtype, key: str, size: int) -> np.ndarray:
    if elements.dtype != dtype or elements.size != size:
        raise Refused(f"storage {key!r} is used as {size} {dtype} and as {elements.size} {elements.dtype}")
    return elements
