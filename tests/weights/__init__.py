"""Tests of reading weights, and a writer of PyTorch's two file formats that needs no PyTorch."""

import pathlib
import pickle
import struct
import zipfile
from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx

from diffusion_jax.networks.inception import Inception

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


def write_zip(path: pathlib.Path, arrays: Mapping[str, np.ndarray], pickled: bytes | None = None) -> pathlib.Path:
    """A state dict as `torch.save` writes it today, or with another pickle in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", state_dict(arrays) if pickled is None else pickled)
        archive.writestr("archive/byteorder", "little")
        for i, array in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{i}", np.ascontiguousarray(array).tobytes())
    return path


def write_legacy(path: pathlib.Path, arrays: Mapping[str, np.ndarray], pickled: bytes | None = None) -> pathlib.Path:
    """A state dict as `torch.save` wrote it before PyTorch 1.6, or with another pickle in it."""
    header = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
    with open(path, "wb") as file:
        for part in header:
            pickle.dump(part, file, protocol=2)
        file.write(state_dict(arrays, view=b"N") if pickled is None else pickled)
        pickle.dump([str(i) for i in range(len(arrays))], file, protocol=2)
        for array in arrays.values():
            file.write(struct.pack("<q", array.size) + np.ascontiguousarray(array).tobytes())
    return path


def state_dict(arrays: Mapping[str, np.ndarray], view: bytes = b"") -> bytes:
    """The pickle of an OrderedDict of tensors, opcode by opcode: PyTorch's classes are named, not imported."""
    items = b"".join(
        text(name)
        + tensor(STORAGES[array.dtype.name], str(i), array.size, array.shape, _strides(array.shape), view=view)
        for i, (name, array) in enumerate(arrays.items())
    )
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u."


def tensor(
    storage: str, key: str, size: int, shape: tuple[int, ...], strides: tuple[int, ...], *, view: bytes = b""
) -> bytes:
    where = b"(" + text("storage") + f"ctorch\n{storage}\n".encode() + text(key) + text("cpu") + _integer(size)
    arguments = where + view + b"tQ" + _integer(0) + _tuple(shape) + _tuple(strides) + b"\x89" + b"N"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor_of_bytes(key: str, nbytes: int, shape: tuple[int, ...], dtype: str) -> bytes:
    """A tensor of a dtype without a storage of its own, such as float8_e4m3fn."""
    where = b"(" + text("storage") + b"ctorch.storage\nUntypedStorage\n" + text(key) + text("cpu") + _integer(nbytes)
    arguments = where + b"tQ" + _integer(0) + _tuple(shape) + _tuple(_strides(shape)) + b"\x89" + b"N"
    return b"ctorch._utils\n_rebuild_tensor_v3\n(" + arguments + f"ctorch\n{dtype}\n".encode() + b"tR"


def _integer(value: int) -> bytes:
    return b"I%d\n" % value


def _tuple(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))


def inception_state(seed: int = 0) -> dict[str, np.ndarray]:
    """A state dict of FID's Inception network under PyTorch's names, with random values of sensible size."""
    random = np.random.default_rng(seed)
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Inception(rngs=nnx.Rngs(0)))))
    state = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]:
        *parents, last = (key.key for key in path)
        if last == "bias" or parents == ["fc"]:
            continue
        name, (height, width, inputs, outputs) = ".".join(parents), leaf.shape
        scale = np.float32(np.sqrt(2 / (height * width * inputs)))
        state[f"{name}.weight"] = scale * random.standard_normal((outputs, inputs, height, width), np.float32)
        norm = name.removesuffix("conv") + "bn"
        for part in ("weight", "running_var"):
            state[f"{norm}.{part}"] = random.uniform(0.5, 1.5, outputs).astype(np.float32)
        for part in ("bias", "running_mean"):
            state[f"{norm}.{part}"] = np.float32(0.1) * random.standard_normal(outputs, np.float32)
    state["fc.weight"] = np.float32(0.05) * random.standard_normal((1008, 2048), np.float32)
    state["fc.bias"] = random.standard_normal(1008, np.float32)
    return state
