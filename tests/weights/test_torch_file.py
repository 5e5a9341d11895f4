import collections
import os
import pickle
import resource
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from diffusion_jax.weights import torch_file
from diffusion_jax.weights.torch_file import read_torch_file
from tests.weights import STORAGES, state_dict, tensor, text, write_legacy, write_zip


def _arrays():
    random = np.random.default_rng(0)
    arrays = {name: (8 * random.standard_normal((3, 4))).astype(name) for name in STORAGES if name != "bfloat16"}
    return arrays | {
        "bfloat16": random.standard_normal((2, 1, 5)).astype(ml_dtypes.bfloat16),
        "scalar": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_arrays_come_back_bit_by_bit(tmp_path, write):
    arrays = _arrays()
    found = read_torch_file(write(tmp_path / "weights.pth", arrays))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].shape == array.shape and found[name].dtype == array.dtype
        assert found[name].tobytes() == array.tobytes()


def test_zip_files_are_mapped_rather_than_read(tmp_path):
    found = read_torch_file(write_zip(tmp_path / "weights.pth", _arrays()))
    assert not found["float32"].flags.owndata and not found["float32"].flags.writeable


def test_a_file_of_many_tensors_is_opened_once(tmp_path):
    """Systems limit how many files are open, often to 1024, and checkpoints hold more tensors."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    path = write_zip(tmp_path / "weights.pth", {f"x{i}": np.full(3, i, np.float32) for i in range(300)})
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 50, limits[1]))
    try:
        found = read_torch_file(path)
        assert all((found[f"x{i}"] == i).all() for i in range(300))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_strided_views_share_their_storage(tmp_path):
    values = np.arange(12, dtype=np.float32)
    whole = tensor("FloatStorage", "0", 12, (3, 4), (4, 1))
    transposed = tensor("FloatStorage", "0", 12, (4, 3), (1, 4))
    pickled = b"\x80\x02}(" + text("a") + whole + text("b") + transposed + b"u."
    found = read_torch_file(write_zip(tmp_path / "weights.pth", {"a": values}, pickled))
    np.testing.assert_array_equal(found["a"], values.reshape(3, 4))
    np.testing.assert_array_equal(found["b"], values.reshape(3, 4).T)


class _Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_code_is_named_and_not_run(tmp_path, write):
    target = tmp_path / "written"
    path = write(tmp_path / "weights.pth", {}, pickle.dumps(_Code(target), protocol=2))
    with pytest.raises(
        ValueError, match=r"weights.pth: it names (io|_io|__builtin__|builtins)\.open, which is neither"
    ):
        read_torch_file(path)
    assert not target.exists()
    for name in (b"torch\nload", b"collections\nOrderedDict.fromkeys", b"torch._utils\n_rebuild_device_tensor"):
        with pytest.raises(ValueError, match="it names"):
            read_torch_file(write(path, {}, b"\x80\x02c" + name + b"\n."))


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_a_pickle_cannot_change_the_reader(tmp_path, write):
    """The opcode `b` sets attributes of what is on the stack."""
    pickled = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}" + text("marked") + b"Nsb."
    with pytest.raises(ValueError, match="function where a dict belongs"):
        read_torch_file(write(tmp_path / "bad.pth", {}, pickled))
    assert not hasattr(torch_file._tensor, "marked")


# What Python's own unpickler would hash, reserve or hand on without end.
ENDLESS = {
    "a key that holds itself 2^60 times": (b"}(K\x01\x85" + b"2\x86" * 60 + b"K\x02u.", "instruction DUP"),
    "the same with a memo": (
        b"}(K\x01\x85" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b"K\x02u.",
        "tuple as a key",
    ),
    "a value that holds itself 2^60 times": (
        b"K\x01\x85" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b".",
        "the same parts again",
    ),
    "a list in itself": (b"]q\x00h\x00a.", "or itself"),
    "a memo entry of number 2^32 - 1": (b"K\x01r\xff\xff\xff\xffK\x02.", "cut off, damaged"),
    "a string of 2^62 bytes": (b"\x8d" + struct.pack("<Q", 2**62) + b"a.", "cut off, damaged"),
    "bytes of 2^62": (b"\x96" + struct.pack("<Q", 2**62) + b"a.", "cut off, damaged"),
    "an integer of 10^6 digits": (b"L" + b"9" * 10**6 + b"L\n.", "cut off, damaged"),
    "a tensor of 1000 axes": (
        b"\x80\x02" + tensor("FloatStorage", "0", 6, (1,) * 1000, (1,) * 1000) + b".",
        "too long",
    ),
    "a million instructions": (b"\x80\x02" * 2**20 + b"N.", "more than 1048576 instructions"),
}


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("pickled, message", ENDLESS.values(), ids=ENDLESS)
def test_pickles_without_end_are_refused(tmp_path, write, pickled, message):
    path = write(tmp_path / "bad.pth", {"a": np.arange(6, dtype=np.float32)}, pickled)
    with pytest.raises(ValueError, match=message):
        read_torch_file(path)


def test_a_compressed_description_may_not_swell(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", b"\x8d" + struct.pack("<Q", 2**27) + bytes(2**27) + b".")
    assert (tmp_path / "bomb.pth").stat().st_size < 2**20
    tracemalloc.start()
    with pytest.raises(ValueError, match="cut off"):
        read_torch_file(tmp_path / "bomb.pth")
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_every_protocol_of_plain_data(tmp_path, protocol):
    content = {"step": 7, "names": ["a", ("b", 1.5, None)], "big": 2**80, "on": True, "nested": {0: -1, "": [[]]}}
    ordered = collections.OrderedDict(content)
    for value in (content, ordered):
        path = write_zip(tmp_path / "data.pth", {}, pickle.dumps(value, protocol=protocol))
        assert read_torch_file(path) == content


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_files_cut_off_anywhere_are_refused(tmp_path, write):
    path = write(tmp_path / "weights.pth", {"a": np.arange(50.0), "b": np.arange(20, dtype=np.int32)})
    content = path.read_bytes()
    for size in [0, 1, 10, 60, *range(100, len(content) - 1, 97), len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"weights\.pth"):
            read_torch_file(path)


def test_sizes_that_do_not_fit_are_refused(tmp_path):
    values = {"a": np.arange(6, dtype=np.float32)}
    for shape, strides, message in [
        ((7,), (1,), "does not fit into its storage of 6"),
        ((3, 3), (2, 1), "does not fit into its storage of 6"),
        ((10**9, 10**9), (0, 0), "does not fit into its storage of 6"),
        ((-1,), (1,), "size"),
        ((2, 3), (1,), "stride"),
    ]:
        pickled = b"\x80\x02" + tensor("FloatStorage", "0", 6, shape, strides) + b"."
        with pytest.raises(ValueError, match=message):
            read_torch_file(write_zip(tmp_path / "weights.pth", values, pickled))
    huge = b"\x80\x02" + tensor("FloatStorage", "0", 10**15, (2,), (1,), view=b"N") + b"."
    with pytest.raises(ValueError, match="cut off"):
        read_torch_file(write_legacy(tmp_path / "weights.pth", values, huge))
    for storage, key, size, message in [
        ("FloatStorage", "0", 5, "has 24 bytes where 20"),
        ("FloatStorage", "1", 6, "'1' is missing"),
        ("DoubleStorage", "0", 6, "has 24 bytes where 48"),
    ]:
        pickled = b"\x80\x02" + tensor(storage, key, size, (2,), (1,)) + b"."
        with pytest.raises(ValueError, match=message):
            read_torch_file(write_zip(tmp_path / "weights.pth", values, pickled))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_torch_file(tmp_path / "nothing.pth")
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match=r"without data.pkl"):
        read_torch_file(tmp_path / "arrays.npz")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match=r"not a file of torch\.save"):
        read_torch_file(tmp_path / "text.pth")
    with zipfile.ZipFile(tmp_path / "script.pth", "w") as archive:
        archive.writestr("net/data.pkl", state_dict({}))
        archive.writestr("net/constants.pkl", b"")
    with pytest.raises(ValueError, match="TorchScript"):
        read_torch_file(tmp_path / "script.pth")
    with zipfile.ZipFile(tmp_path / "big.pth", "w") as archive:
        archive.writestr("net/data.pkl", state_dict({}))
        archive.writestr("net/byteorder", "big")
    with pytest.raises(ValueError, match="byte order"):
        read_torch_file(tmp_path / "big.pth")
